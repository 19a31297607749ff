"""The page that --help shows: what a command does, an example, and its options in groups, each with its default."""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import typer

from lora_mnist.settings.layers import Layer, merge, read_config

COLUMN = 24  # of the names; longer ones have a line of their own
UNBROKEN = "\xa0"  # a space at which no line is broken


def write_options(command: str | None, options: Iterable[Any], formatter: Any) -> None:
    """A section for each panel, in the order in which the options come."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for option in options:
        if not option.hidden:
            row = (f"{_names(option):<{COLUMN}}", _explained(command, option))
            panels.setdefault(option.rich_help_panel or "Options", []).append(row)
    for panel, rows in panels.items():
        _write_section(panel, rows, formatter)


def write_commands(commands: Iterable[Any], formatter: Any) -> None:
    """Each with the first paragraph of its own help."""
    rows = [(command.name, " ".join(command.help.split("\n\n")[0].split())) for command in commands]
    _write_section("Commands", rows, formatter)


def page(text: str) -> str:
    """The finished page, whose lines are broken."""
    return text.replace(UNBROKEN, " ")


def default_in_config(command: str | None, setting: str) -> str | None:
    """The value that a setting has unless it is given, and where the embedded digits have another, that one too."""
    values = [_value(command, setting, dataset) for dataset in ("mnist", "digits")]
    if values[0] is None or values[0] == values[1]:
        return values[0]
    return f"{values[0]}; {values[1]} on digits"


def _write_section(title: str, rows: Sequence[tuple[str, str]], formatter: Any) -> None:
    with formatter.section(title if os.environ.get("NO_COLOR") else typer.style(title, bold=True)):
        formatter.write_dl(rows, col_max=COLUMN)


def _names(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=lambda name: not name.startswith("--")))  # Typer has --help in any order
    if option.param_type_name == "argument":
        return f"{option.metavar}..." if option.nargs < 0 else str(option.metavar)
    if option.secondary_opts:
        return f"{names} / {', '.join(option.secondary_opts)}"
    return names if option.is_flag else f"{names} {option.metavar}"


def _explained(command: str | None, option: Any) -> str:
    default = _default(command, option)
    more = " May be repeated." if getattr(option, "multiple", False) else ""
    shown = "" if default is None else f" {f'[default: {default}]'.replace(' ', UNBROKEN)}"
    return f"{option.help}{more}{shown}"


def _default(command: str | None, option: Any) -> str | None:
    if isinstance(option.show_default, str):
        return str(option.show_default)
    if option.default is None:
        return default_in_config(command, option.name)
    if isinstance(option.default, bool):
        return None
    return f"{option.envvar}, else {option.default}" if option.envvar else str(option.default)


def _value(command: str | None, setting: str, dataset: str) -> str | None:
    """From the first table that has it; `full_learning_rate` is the other value of the one option --learning-rate."""
    config = _defaults(dataset)
    for table in _tables_of(command):
        found = config.get(table, {}) if table else config
        if setting in found:
            whole = found.get(f"full_{setting}")
            return _shown(found[setting]) + ("" if whole is None else f"; {_shown(whole)} with --full")
    return None


def _tables_of(command: str | None) -> tuple[str, ...]:
    """Where the settings of a command stand; both trainings have a batch size, but no command has both."""
    return {
        "run": ("", "data", "model", "pretrain", "finetune"),
        "pretrain": ("", "data", "model", "pretrain"),
        "finetune": ("", "finetune"),
        "teach": ("", "teach"),
    }.get(command or "", ())


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@cache
def _defaults(dataset: str) -> Layer:
    return merge([read_config("default")], dataset)
