"""What --help shows: a sentence and an example for every command, a sentence and the default of every option."""

import re
import shlex
import subprocess
import sys

import pytest
import typer

from lora_mnist.cli import main as module
from lora_mnist.cli.main import TABLES, app, default_in_config
from lora_mnist.cli.options import PANELS
from lora_mnist.settings.config import load_config, resolve

GROUP = typer.main.get_command(app)
COMMANDS = GROUP.commands
CONFIGS = {dataset: resolve([load_config("default")], dataset) for dataset in ("mnist", "digits")}


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


def options_of(name: str) -> list:
    command = COMMANDS[name]
    return [option for option in command.get_params(typer.Context(command)) if option.name != "help"]


ALL = [(name, option) for name in COMMANDS for option in options_of(name)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_a_panel_and_the_panels_are_in_order(name):
    panels = [option.rich_help_panel for option in options_of(name)]
    assert panels == sorted(panels, key=PANELS.index)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_goes_by_the_name_of_its_parameter_first(name):
    for option in options_of(name):
        if option.param_type_name == "option":
            assert option.opts[0] == "--" + option.name.replace("_", "-")


@pytest.mark.parametrize(("name", "option"), ALL, ids=lambda one: getattr(one, "name", one))
def test_every_option_is_explained_by_a_sentence_and_takes_a_value_with_a_name(name, option):
    assert re.match(r"[A-Z].* .* .*\.$", option.help, re.DOTALL), option.help
    assert option.is_flag if option.metavar is None else option.metavar
    assert ("May be repeated." in option.help) == getattr(option, "multiple", False)


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_every_page_fits_80_columns_without_colours(cli, name):
    code, out, err = cli(*([] if name is None else [name]), "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out


def test_every_option_stands_in_the_help_of_its_command(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # wide enough that no name is cut
    for name in COMMANDS:
        page = cli(name, "--help")[1]
        for option in options_of(name):
            if option.param_type_name == "option":
                assert all(spelling in page for spelling in (*option.opts, *option.secondary_opts))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_understands(name):
    (line,) = re.findall(r"^Example: lora-mnist (.*)$", COMMANDS[name].help, re.MULTILINE)
    command, *arguments = shlex.split(line)
    assert command == name
    COMMANDS[name].make_context(name, arguments)  # raises for an option that is not there


def test_commands_stand_in_panels_and_a_line_without_a_command_shows_them(cli):
    assert cli() == cli("--help") == cli("-h")
    code, out, err = cli()
    assert (code, err) == (0, "")
    assert re.findall(r"^╭─ ([A-Z]\w+(?: \w+)?) ─", out, re.MULTILINE)[1:] == [
        *("Main job", "Look", "Take along", "More")
    ]
    assert all(f"│ {name} " in out for name in COMMANDS)


# Defaults -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_a_default_is_the_one_in_the_config(name):
    shown = {option.name: option.show_default for option in options_of(name) if option.default is None}
    compared = 0
    for section in filter(None, TABLES[name]):
        for setting, value in getattr(CONFIGS["mnist"], section):
            if shown.get(setting) is None or setting == "name":
                continue
            on_digits = getattr(getattr(CONFIGS["digits"], section), setting)
            written = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert shown[setting].startswith(
                {"True": "yes", "False": "no", "None": "none"}.get(written, written.removesuffix(".0"))
            )
            assert (" on digits" in shown[setting]) == (on_digits != value)
            compared += 1
    assert compared >= 4
    if name == "finetune":
        assert shown["learning_rate"] == "0.004; 0.001 with --full"


def test_a_default_that_is_changed_there_is_changed_here(monkeypatch):
    config = {"seed": 3, "finetune": {"rank": 5, "steps": 7}, "digits": {"finetune": {"steps": 8}}}
    monkeypatch.setattr(module, "read_config", lambda name: config)
    module._default_config.cache_clear()
    try:
        assert default_in_config("finetune", "rank") == "5"
        assert default_in_config("run", "steps") == "7; 8 on digits"
        assert default_in_config("pretrain", "seed") == "3"
        assert default_in_config("pretrain", "rank") is None
        assert default_in_config("evaluate", "rank") is None
    finally:
        module._default_config.cache_clear()


def test_help_needs_no_torch():
    for line in ("", "finetune --help"):
        program = (
            f"import sys\nfrom lora_mnist.cli.main import main\ncode = main({line.split()!r})\n"
            "sys.exit(code or {'torch', 'numpy', 'matplotlib'} & set(sys.modules) or 0)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


# Other spellings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line", "parameter", "value"),
    [
        ("finetune", "--lr 0.5", "learning_rate", 0.5),
        ("pretrain", "--lr 0.5", "learning_rate", 0.5),
        ("pretrain", "--batch 3", "batch_size", 3),
        ("run", "--epochs 3", "epochs", 3),
        ("finetune", "--target-modules linear1 --targets linear2", "targets", ["linear1", "linear2"]),
        ("finetune", "--use-rslora", "rslora", True),
        ("finetune", "--no-rslora", "rslora", False),
    ],
)
def test_what_other_tools_call_it_is_understood(name, line, parameter, value):
    assert COMMANDS[name].make_context(name, line.split()).params[parameter] == value


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("finetune --rnak 3", "Did you mean --rank?"),
        ("finetune --lerning-rate 3", "Did you mean --learning-rate?"),
        ("finetune --epochs 3", "It belongs to run and pretrain."),
        ("merge --lr 3", "It belongs to pretrain and finetune."),
        ("finetue", "Did you mean 'finetune'?"),
        ("finetune --qqq", "No such option: --qqq. See `lora-mnist finetune --help`."),
        ("finetune --rank x", "unable to parse string as an integer. See `lora-mnist finetune --help`."),
    ],
)
def test_a_wrong_word_suggests_the_near_one(cli, line, said):
    code, out, err = cli(*line.split())
    assert (code, out) == (2, "")
    assert said in err
