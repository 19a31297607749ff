"""Commands whose parameters are groups of options: what Typer sees of them."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import typer.core

from lora_mnist.cli.help import page, write_commands, write_options
from lora_mnist.cli.panels import PANELS


def flattened(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command the signature that Typer reads: for each group its options, in the order of the panels.

    What comes out is called with options, by keyword; the command gets the groups built of them.

    Raises:
        TypeError: two of its options have the same name.
    """
    parameters = inspect.signature(function).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in parameters if is_dataclass(one.annotation)}
    options = sorted((option for one in parameters for option in _options_of(one)), key=_panel)
    if repeated := [name for name, count in Counter(option.name for option in options).items() if count > 1]:
        raise TypeError(f"{function.__name__} has more than one option {repeated[0]!r}.")

    @functools.wraps(function)
    def command(**values: Any) -> int | None:
        built = {
            name: group(**{f.name: values.pop(f.name) for f in fields(group) if f.name in values})
            for name, group in groups.items()
        }
        return function(**built, **values)

    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command


def _options_of(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    if not is_dataclass(parameter.annotation):
        return [parameter]
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(f.name, kind, default=f.default, annotation=f.type) for f in fields(parameter.annotation)]


def _panel(option: inspect.Parameter) -> int:
    return PANELS.index(option.annotation.__metadata__[0].rich_help_panel)


class Command(typer.core.TyperCommand):
    """With help pages of our own, and with `--help`, an option of Typer's, in the last panel."""

    def get_help_option(self, ctx: Any) -> Any:
        """Typer's, moved."""
        option: Any = super().get_help_option(ctx)
        option.rich_help_panel = PANELS[-1]
        return option

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """In panels, with defaults."""
        write_options(self.name, self.get_params(ctx), formatter)

    def get_help(self, ctx: Any) -> str:
        """The page."""
        return page(super().get_help(ctx))


class Commands(typer.core.TyperGroup):
    """With help pages of our own, one of them for a line without a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Nothing counts as `--help`, which is no mistake."""
        return super().parse_args(ctx, args if args or ctx.resilient_parsing else ["--help"])

    def get_params(self, ctx: Any) -> list[Any]:
        """With flags that are False when left out: some of Typer's are None, for which it loads pydantic."""
        options: list[Any] = super().get_params(ctx)
        for option in options:
            if option.is_flag and option.default is None:
                option.default = False
        return options

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """After the commands."""
        write_commands(self.commands.values(), formatter)
        write_options(None, self.get_params(ctx), formatter)

    def get_help(self, ctx: Any) -> str:
        """The page."""
        return page(super().get_help(ctx))
