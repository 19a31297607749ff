"""Options in groups: what Typer sees of them, and which settings they become."""

import inspect
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer

from lora_mnist.cli import options as o
from lora_mnist.cli.commands import app
from lora_mnist.cli.groups import flattened
from lora_mnist.errors import UsageError
from lora_mnist.settings.request import Applied, Request

COMMANDS = typer.main.get_command(app).commands
Other = Annotated[int, typer.Option("--other", rich_help_panel="Run")]


@dataclass(frozen=True)
class Pair:
    left: Annotated[int, typer.Option("--left", rich_help_panel="Output")] = 1
    right: Annotated[int, typer.Option("--right", rich_help_panel="Run")] = 2


@dataclass(frozen=True)
class Again:
    left: Annotated[int, typer.Option("--left", rich_help_panel="Run")] = 1


def options_of(name: str) -> list:
    command = COMMANDS[name]
    return command.get_params(typer.Context(command))


# In --help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_a_panel_and_the_panels_are_in_order(name):
    panels = [option.rich_help_panel for option in options_of(name)]
    assert panels == sorted(panels, key=o.PANELS.index)
    assert options_of(name)[-1].opts == ["--help"]


def test_finetune_reads_as_five_lists(cli):
    out = cli("finetune", "--help")[1]
    headings = [line.split()[1] for line in out.splitlines() if line.startswith("╭─")]
    assert headings == ["Run", "Adapter", "Training", "Data", "Output"]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_goes_by_the_name_of_its_parameter(name):
    for option in options_of(name):
        assert option.opts == ["--" + option.name.replace("_", "-")]


def test_the_help_of_a_command_needs_neither_torch_nor_pydantic():
    program = (
        "import sys\nfrom lora_mnist.cli.commands import main\nmain(['finetune', '--help'])\n"
        "sys.exit({'torch', 'numpy', 'pydantic'} & set(sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Groups → signature ---------------------------------------------------------------------------------------------------


@pytest.fixture
def calls() -> list:
    return []


@pytest.fixture
def command(calls):
    def command(*, pair: Pair, other: Other = 3) -> None:
        calls.append((pair, other))

    return flattened(command)


def test_typer_sees_the_options_of_a_group_in_the_order_of_the_panels(command):
    seen = inspect.signature(command).parameters
    assert [(name, one.default) for name, one in seen.items()] == [("right", 2), ("other", 3), ("left", 1)]
    assert command.__annotations__ == {name: one.annotation for name, one in seen.items()}


def test_a_group_has_its_defaults(command, calls):
    command()
    assert calls == [(Pair(left=1, right=2), 3)]


def test_a_group_takes_what_is_given(command, calls):
    command(right=7, other=8)
    assert calls == [(Pair(left=1, right=7), 8)]


def test_typer_runs_a_command_of_groups(command, calls):
    small = typer.Typer()
    small.command()(command)
    typer.main.get_command(small).main(["--left", "4"], standalone_mode=False)
    assert calls == [(Pair(left=4, right=2), 3)]


def test_a_group_may_have_the_name_of_one_of_its_options(calls):
    def command(*, left: Pair) -> None:
        calls.append(left)

    flattened(command)(left=5)
    assert calls == [Pair(left=5)]


def test_two_options_of_one_name_are_an_error():
    def command(*, pair: Pair, again: Again) -> None: ...

    with pytest.raises(TypeError, match="command has more than one option 'left'"):
        flattened(command)


# Options → settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        (o.DataChoice().settings(), "data"),
        (o.Network().settings(), "model"),
        (o.Loop().settings("pretrain"), "pretrain"),
        (o.Repair().settings(), "finetune"),
        (o.AdapterShape().settings(), "finetune"),
        (o.Augmentation().settings(), "finetune"),
    ],
)
def test_what_was_left_out_is_no_setting(settings, table):
    assert settings == {table: {}}
    assert o.Making().settings() == {}


def test_what_was_given_is_a_table_as_in_a_config():
    assert o.Making(config="smoke", seed=0, force=True).settings() == {"seed": 0}
    assert o.DataChoice(dataset="digits").settings() == {"data": {"dataset": "digits"}}
    assert o.Network(hidden="20,10").settings() == {"model": {"hidden": [20, 10]}}
    assert o.Repair(digit="9", alpha=0.0).settings() == {"finetune": {"digit": 9, "alpha": 0.0}}
    assert o.Repair(digit="weakest").settings() == {"finetune": {"digit": "weakest"}}
    assert o.Augmentation(zoom=0.1).settings() == {"finetune": {"zoom": 0.1}}
    shape = o.AdapterShape(rank_pattern=["linear3=2"], alpha_pattern=["a=b=0.5"], rslora=False)
    assert shape.settings() == {
        "finetune": {"rank_pattern": {"linear3": 2}, "alpha_pattern": {"a=b": 0.5}, "rslora": False}
    }


def test_a_loop_is_a_table_of_its_stage_and_may_call_its_rate_otherwise():
    loop = o.Loop(batch_size=8, learning_rate=0.1)
    assert loop.settings("pretrain") == {"pretrain": {"batch_size": 8, "learning_rate": 0.1}}
    whole = loop.settings("finetune", rate="full_learning_rate")
    assert whole == {"finetune": {"batch_size": 8, "full_learning_rate": 0.1}}


def test_a_request_joins_the_tables_of_its_groups():
    request = o.request_of(
        o.Place(Path("here")),
        o.Machine(data=Path("there"), device="cpu", threads=2),
        o.Output(quiet=True),
        o.Making(config="smoke", seed=4, force=True),
        o.Repair(steps=5).settings(),
        o.given("model", hidden=[3]),
        o.Augmentation(shift=1).settings(),
    )
    assert request == Request(
        run=Path("here"),
        data=Path("there"),
        config="smoke",
        options={"seed": 4, "finetune": {"steps": 5, "shift": 1}, "model": {"hidden": [3]}},
        device="cpu",
        threads=2,
        force=True,
        quiet=True,
    )


@pytest.mark.parametrize(
    ("repair", "shape", "twin", "flag"),
    [
        (o.Repair(rank=1), o.AdapterShape(), False, "--rank"),
        (o.Repair(guard="none"), o.AdapterShape(), False, "--guard"),
        (o.Repair(), o.AdapterShape(rslora=False), False, None),
        (o.Repair(), o.AdapterShape(alpha_pattern=["a=1"]), False, "--alpha-pattern"),
        (o.Repair(), o.AdapterShape(), True, "--twin"),
        (o.Repair(digit="9", steps=3, focus=0.1, name="x"), o.AdapterShape(targets=[]), False, None),
    ],
)
def test_full_refuses_what_only_an_adapter_has(repair, shape, twin, flag):
    if flag is None:
        o.refuse_with_full(repair, shape, twin, None)
    else:
        with pytest.raises(UsageError, match=f"^{flag} means nothing"):
            o.refuse_with_full(repair, shape, twin, None)


def test_one_strength_is_for_all_adapters():
    assert o.Adapters(["a", "b", "a"], [0.5]).applied() == [Applied("a", 0.5), Applied("b", 0.5)]
    assert o.Adapters(["a", "b"]).applied() == [Applied("a"), Applied("b")]
    assert o.Adapters(["a", "b"], [0.5, 2.0]).applied() == [Applied("a", 0.5), Applied("b", 2.0)]
    assert o.Adapters().applied() == []


@pytest.mark.parametrize("adapters", [o.Adapters(strength=[1.0]), o.Adapters(["a"], [1.0, 2.0])])
def test_strengths_without_an_adapter_each_are_refused(adapters):
    with pytest.raises(UsageError):
        adapters.applied()
