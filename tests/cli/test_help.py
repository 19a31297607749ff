"""What --help shows: a sentence and an example for every command, a sentence and the default of every option."""

import re
import shlex
import subprocess
import sys

import pytest
import typer

from lora_mnist.cli.help import default_in_config
from lora_mnist.cli.main import app
from lora_mnist.cli.panels import PANELS
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
    return command.get_params(typer.Context(command))


ALL = [(name, option) for name in COMMANDS for option in options_of(name)]


def entry(page: str, option: str) -> str:
    """What a page says of an option, on one line."""
    found = re.search(rf"^  {re.escape(option)}\b.*?(?=^  -|^\S|\Z)", page, re.MULTILINE | re.DOTALL)
    return " ".join(found[0].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_a_panel_and_the_panels_are_in_order(name):
    panels = [option.rich_help_panel for option in options_of(name)]
    assert panels == sorted(panels, key=PANELS.index)
    assert options_of(name)[-1].opts == ["--help"]


def test_finetune_reads_as_six_lists(cli):
    headings = re.findall(r"^(\w+):$", cli("finetune", "--help")[1], re.MULTILINE)
    assert headings == ["Run", "Repair", "LoRA", "Training", "Data", "Output"]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_goes_by_the_name_of_its_parameter_first(name):
    for option in options_of(name):
        if option.param_type_name == "option":
            assert option.opts[0] == "--" + option.name.replace("_", "-")


@pytest.mark.parametrize(("name", "option"), ALL, ids=lambda one: getattr(one, "name", one))
def test_every_option_is_explained_by_a_sentence_and_takes_a_value_with_a_name(name, option):
    assert re.match(r"[A-Z].* .* .*\.$", option.help, re.DOTALL), option.help
    assert not re.match(r"Of |On ", option.help)
    assert option.is_flag if option.metavar is None else option.metavar


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_every_page_fits_80_columns_and_has_no_escapes(cli, name):
    code, out, err = cli(*([] if name is None else [name]), "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert "\xa0" not in out
    assert "…" not in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_understands(name):
    (line,) = re.findall(r"^Example: lora-mnist (.*)$", COMMANDS[name].help, re.MULTILINE)
    command, *arguments = shlex.split(line)
    assert command == name
    COMMANDS[name].make_context(name, arguments)  # raises for an option that is not there


def test_help_has_a_short_spelling(cli):
    assert cli("-h") == cli("--help")
    assert cli("merge", "-h") == cli("merge", "--help")
    assert "\n  --help, -h " in cli("merge", "-h")[1]


def test_headings_are_bold_on_a_terminal(monkeypatch):
    bold = typer.style("Run", bold=True)
    assert f"{bold}:" not in COMMANDS["adapters"].get_help(typer.Context(COMMANDS["adapters"]))
    monkeypatch.delenv("NO_COLOR")
    assert f"{bold}:" in COMMANDS["adapters"].get_help(typer.Context(COMMANDS["adapters"]))


# Defaults -------------------------------------------------------------------------------------------------------------


def settings_of(name: str) -> list:
    """(option, section) of every option of a command that is a setting."""
    sections = {"pretrain": ("data", "model", "pretrain"), "finetune": ("finetune",)}
    sections["run"] = (*sections["pretrain"], "finetune")
    found = []
    for option in options_of(name):
        there = [part for part in sections[name] if option.name in dict(getattr(CONFIGS["mnist"], part))]
        found += [(option.name, part) for part in there if option.name != "name"]
    return found


def written(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).removesuffix(".0")


@pytest.mark.parametrize(
    ("name", "option", "section"),
    [(name, *one) for name in ("run", "pretrain", "finetune") for one in settings_of(name)],
)
def test_a_default_is_the_one_in_the_config(cli, name, option, section):
    of = {dataset: getattr(getattr(config, section), option) for dataset, config in CONFIGS.items()}
    shown = "none" if of["mnist"] is None else written(of["mnist"])
    if section == "finetune" and option == "learning_rate":
        shown += f"; {written(CONFIGS['mnist'].finetune.full_learning_rate)} with --full"
    if of["digits"] != of["mnist"]:
        shown += f"; {written(of['digits'])} on digits"
    assert f"[default: {shown}]" in entry(cli(name, "--help")[1], "--" + option.replace("_", "-"))


def test_a_default_that_is_changed_there_is_changed_here(monkeypatch):
    from lora_mnist.cli import help

    config = {"seed": 3, "finetune": {"rank": 5, "steps": 7}, "digits": {"finetune": {"steps": 8}}}
    monkeypatch.setattr(help, "read_config", lambda name: config)
    help._defaults.cache_clear()
    try:
        assert default_in_config("finetune", "rank") == "5"
        assert default_in_config("run", "steps") == "7; 8 on digits"
        assert default_in_config("pretrain", "seed") == "3"
        assert default_in_config("pretrain", "rank") is None
        assert default_in_config("evaluate", "rank") is None
    finally:
        help._defaults.cache_clear()


@pytest.mark.parametrize(
    ("name", "option", "shown"),
    [
        ("run", "--run", "runs/default"),
        ("run", "--threads", "torch's choice"),
        ("run", "--name", "made of digit and rank"),
        ("run", "--rounds", "1"),
        ("evaluate", "--data", "LORA_MNIST_DATA, else data"),
        ("evaluate", "--device", "auto"),
        ("evaluate", "--strength", "1"),
        ("extract", "--rank", "8"),
    ],
)
def test_other_defaults(cli, name, option, shown):
    assert f"[default: {shown}]" in entry(cli(name, "--help")[1], option)


# Without a word -------------------------------------------------------------------------------------------------------


def test_a_line_without_a_command_is_no_mistake(cli):
    assert cli() == cli("--help")
    code, out, err = cli()
    assert (code, err) == (0, "")
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("line", ["", "finetune --help"])
def test_help_needs_neither_torch_nor_pydantic(line):
    program = (
        f"import sys\nfrom lora_mnist.cli.main import main\ncode = main({line.split()!r})\n"
        "sys.exit(code or {'torch', 'numpy', 'pydantic'} & set(sys.modules) or 0)"
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
        ("pretrain", "--epochs 3", "epochs", 3),
        ("run", "--epochs 3", "epochs", 3),
        ("finetune", "--target-modules linear1 --targets linear2", "targets", ["linear1", "linear2"]),
        ("finetune", "--use-rslora", "rslora", True),
        ("finetune", "--no-rslora", "rslora", False),
    ],
)
def test_what_other_tools_call_it_is_understood_and_shown(cli, name, line, parameter, value):
    context = COMMANDS[name].make_context(name, line.split())
    assert context.params[parameter] == value
    assert line.split()[0] in cli(name, "--help")[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("finetune --rnak 3", "Did you mean --rank?"),
        ("finetune --lerning-rate 3", "Did you mean --learning-rate?"),
        ("finetune --target-module x", "Did you mean --target-modules?"),
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


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_no_word_is_broken_however_narrow_the_terminal(cli, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", "200")
    wide = set(cli("finetune", "--help")[1].split())
    monkeypatch.setenv("COLUMNS", str(columns))
    assert set(cli("finetune", "--help")[1].split()) == wide
