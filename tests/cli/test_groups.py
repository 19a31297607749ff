"""Commands of groups of options: what Typer sees of them."""

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from lora_mnist.cli.groups import flattened

Other = Annotated[int, typer.Option("--other", rich_help_panel="Run")]


@dataclass(frozen=True)
class Pair:
    left: Annotated[int, typer.Option("--left", rich_help_panel="Output")] = 1
    right: Annotated[int, typer.Option("--right", rich_help_panel="Run")] = 2


@dataclass(frozen=True)
class Again:
    left: Annotated[int, typer.Option("--left", rich_help_panel="Run")] = 1


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
