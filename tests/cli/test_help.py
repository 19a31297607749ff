"""What --help shows: a sentence and an example for every command, a sentence and the default of every option."""

import re
import shlex

import pytest
import typer

from lora_mnist.cli.main import TABLES, app
from lora_mnist.cli.options import PANELS
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.settings.layers import ALIASES, overlay

COMMANDS = typer.main.get_command(app).commands
CONFIGS = {dataset: resolve([load_config("default")], dataset) for dataset in ("mnist", "mnist-5k")}


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


def options_of(name: str) -> list:
    command = COMMANDS[name]
    return [option for option in command.get_params(typer.Context(command)) if option.name != "help"]


ALL = [(name, option) for name in COMMANDS for option in options_of(name)]


# Pages ----------------------------------------------------------------------------------------------------------------


def test_a_line_without_a_command_shows_the_commands_in_their_panels(cli, succeeds):
    assert cli() == cli("--help") == cli("-h")
    out = succeeds(err="")
    panels = re.findall(r"^╭─ ([A-Z]\w+(?: \w+)?) ─", out, re.MULTILINE)
    assert panels[1:] == ["Main job", "Look", "Take along", "More"]
    assert all(f"│ {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_every_page_fits_80_columns_without_colours(succeeds, name):
    out = succeeds(*([] if name is None else [name]), "--help", err="")
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_understands(name):
    (line,) = re.findall(r"^Example: lora-mnist (.*)$", COMMANDS[name].help, re.MULTILINE)
    command, *arguments = shlex.split(line)
    assert command == name
    COMMANDS[name].make_context(name, arguments)  # raises for an option that is not there


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "option"), ALL, ids=lambda one: getattr(one, "name", one))
def test_every_option_is_explained_by_a_sentence_and_takes_a_value_with_a_name(name, option):
    assert re.match(r"[A-Z].* .* .*\.$", option.help, re.DOTALL), option.help
    assert option.is_flag if option.metavar is None else option.metavar
    assert ("May be repeated." in option.help) == getattr(option, "multiple", False)
    if option.param_type_name == "option":
        assert option.opts[0] == "--" + option.name.replace("_", "-")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_in_the_help_of_its_command_in_a_panel(cli, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")  # wide enough that no name is cut
    page = cli(name, "--help")[1]
    for option in options_of(name):
        if option.param_type_name == "option":
            assert all(spelling in page for spelling in (*option.opts, *option.secondary_opts))
    panels = [option.rich_help_panel for option in options_of(name)]
    assert panels == sorted(panels, key=PANELS.index)


@pytest.mark.parametrize("name", TABLES)
def test_a_default_is_the_one_in_the_config(name):
    shown = {option.name: option.show_default for option in options_of(name) if option.default is None}
    compared = 0
    for section in filter(None, TABLES[name]):
        for setting, value in getattr(CONFIGS["mnist"], section):
            if shown.get(setting) is None or setting == "name":
                continue
            on_digits = getattr(getattr(CONFIGS["mnist-5k"], section), setting)
            written = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            written = {"True": "yes", "False": "no", "None": "none"}.get(written, written.removesuffix(".0"))
            assert shown[setting].startswith(written)
            assert (" on mnist-5k" in shown[setting]) == (on_digits != value)
            compared += 1
    assert compared >= 4
    if name == "finetune":
        assert shown["learning_rate"] == "0.004; 0.001 with --full"


@pytest.mark.parametrize("name", TABLES)
def test_every_spelling_of_an_option_is_a_key_of_a_config_too(name):
    compared = 0
    for section in filter(None, TABLES[name]):
        for option in (one for one in options_of(name) if hasattr(getattr(CONFIGS["mnist"], section), one.name)):
            for key in (spelling.removeprefix("--") for spelling in option.opts):
                assert overlay([{section: {key: 1}}], "mnist") == {section: {option.name: 1}}
                compared += 1
    assert compared >= 4


def test_the_names_that_other_tools_give_an_option_are_understood():
    spelled = {spelling: one.name for one in options_of("finetune") for spelling in (*one.opts, *one.secondary_opts)}
    for name, setting in ALIASES.items():
        assert spelled["--" + name.replace("_", "-")] == setting
    line = ["--use-rslora", "--no-rslora", "--lr", "0.5", "--target-modules", "linear1", "--targets", "linear2"]
    params = COMMANDS["finetune"].make_context("finetune", line).params
    assert (params["rslora"], params["learning_rate"], params["targets"]) == (False, 0.5, ["linear1", "linear2"])
