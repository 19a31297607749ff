"""From the words typed to an exit code: the commands, registered with Typer, and what their help shows."""

import ast
import codecs
import functools
import inspect
import os
import sys
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import typer

from lora_mnist import __version__
from lora_mnist.cli import commands as c
from lora_mnist.cli import errors
from lora_mnist.cli.errors import handle_signals, report_error, returns_exit_code, silence_stdout
from lora_mnist.cli.options import PANELS, expand_home, folder
from lora_mnist.cli.sweep_commands import sweep
from lora_mnist.settings.layers import overlay, read_config

COMMANDS: dict[str, tuple[Callable[..., int | None], ...]] = {
    "Main job": (c.run, c.pretrain, c.import_base, c.evaluate, c.finetune, c.verify, c.report),
    "Look": (c.adapters, c.compare, c.runs, c.params, c.predict, c.play, c.doctor),
    "Take along": (c.merge, c.extract, c.export),
    "More": (c.teach, sweep),
}
# where the settings of a command stand in a config; both trainings have a batch size, but no command has both
TABLES = {
    "run": ("", "data", "model", "pretrain", "finetune"),
    "pretrain": ("", "data", "model", "pretrain"),
    "finetune": ("", "finetune"),
    "teach": ("", "teach"),
}
DEFAULTS = [overlay([read_config("default")], dataset) for dataset in ("mnist", "mnist-5k")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    handle_signals()
    os.environ.pop("MPLBACKEND", None)  # Jupyter sets its own for every !command; our plots open no window
    os.environ["MATPLOTLIBRC"] = os.devnull  # nor do they look as others should; a damaged one would end matplotlib
    os.environ["PYTHONSAFEPATH"] = "1"  # no process of ours imports a types.py that lies in the working folder
    try:
        codecs.register_error("plain", _plain)
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by the caller
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            getattr(sys, name).reconfigure(errors="plain")
        _join_options()
        # nothing counts as --help, which is no mistake
        code = typer.main.get_command(app).main(arguments or ["--help"], "lora-mnist", standalone_mode=False)
        sys.stdout.flush()
        if errors.received:  # and somebody caught what it raised
            raise KeyboardInterrupt
        return code or 0
    except SystemExit as ended:  # Typer's completion, with its answer, and its help where nobody reads on
        silence_stdout()
        return int(ended.code or 0) if "_LORA_MNIST_COMPLETE" in os.environ else 0
    except BaseException as error:
        return report_error(error, "--json" in arguments)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that the terminal's encoding, as cp1252, does not have."""
    assert isinstance(error, UnicodeEncodeError)
    ascii_for = {"→": "->", "·": ".", "×": "x", "−": "-", "±": "+-", "…": "...", "–": "-", "─": "-", "│": "|"}
    return "".join(ascii_for.get(one, "?") for one in error.object[error.start : error.end]), error.end


def _join_options() -> None:
    """Let `--run=DIR` be two words, as Typer takes them; bash breaks a line before and after = and counts that too."""
    if os.environ.get("_LORA_MNIST_COMPLETE") != "complete_bash":
        return
    line, place = os.environ.get("COMP_WORDS", ""), int(os.environ.get("COMP_CWORD", 0))
    words = line.split("\n" if "\n" in line else " ")
    signs = [i for i, word in enumerate(words) if word == "=" and words[i - 1].startswith("--")]
    os.environ["COMP_WORDS"] = "\n".join(word for i, word in enumerate(words) if i not in signs)
    os.environ["COMP_CWORD"] = str(place - sum(i < place for i in signs))


def flattened(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command whose parameters are groups of options the signature that Typer reads: the options themselves.

    What comes out is called with options, by keyword; the command gets the groups built of them.
    """
    parameters = inspect.signature(function).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in parameters if is_dataclass(one.annotation)}
    declared = [(one.name, one.annotation, one.default) for one in parameters if one.name not in groups]
    declared += [(one.name, one.type, one) for group in groups.values() for one in fields(group)]
    options = []
    for name, kind, one in declared:
        read = one.metadata["typer"](name)
        if one.default is None and read.show_default is True:
            read.show_default = default_in_config(function.__name__, name) or True
        if read.parser is None and str(read.metavar).endswith(("DIR", "FILE", "FOLDER", "IMAGE", "RUN")):
            read.parser = folder if "Path" in str(kind) else expand_home
        keyword, annotation = inspect.Parameter.KEYWORD_ONLY, Annotated[kind, read]
        options.append(inspect.Parameter(name, keyword, default=one.default, annotation=annotation))
    # Typer shows the panels in the order in which it meets them
    options.sort(key=lambda option: PANELS.index(option.annotation.__metadata__[0].rich_help_panel))

    @functools.wraps(function)
    def command(**values: Any) -> int | None:
        built = {
            name: group(**{one.name: values.pop(one.name) for one in fields(group) if one.name in values})
            for name, group in groups.items()
        }
        return function(**built, **values)

    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command


def default_in_config(command: str, setting: str) -> str | None:
    """The value that a setting has unless it is given, and where mnist-5k has another, that one too."""
    values = []
    for config in DEFAULTS:
        found = ChainMap(*(config.get(table, {}) if table else config for table in TABLES.get(command, ())))
        if setting in found:
            whole = found.get(f"full_{setting}")  # the other value of the one option --learning-rate
            values.append(_written(found[setting]) + ("" if whole is None else f"; {_written(whole)} with --full"))
    if len(set(values)) < 2:
        return values[0] if values else None
    return f"{values[0]}; {values[1]} on mnist-5k"


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))  # with spaces, where the help can break the line
    return f"{value:g}" if isinstance(value, float) else str(value)


app = typer.Typer(
    name="lora-mnist",
    help="""Repair one digit of a trained MNIST network with LoRA, and prove that nothing else was touched.

    Example: lora-mnist run

    `lora-mnist COMMAND --help` explains a command and its options.
    """,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


for _panel, _functions in COMMANDS.items():
    for _function in _functions:
        # `python -OO` drops docstrings, but not their source
        _help = _function.__doc__ or ast.get_docstring(ast.parse(inspect.getsource(_function)).body[0])  # type: ignore
        _name = _function.__name__.removesuffix("_base")  # `import` is no name that Python allows
        app.command(_name, help=_help, rich_help_panel=_panel)(returns_exit_code(flattened(_function)))
