"""The application that every command is registered with."""

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from lora_mnist import __version__
from lora_mnist.cli import options as o
from lora_mnist.cli.exits import returns_exit_code
from lora_mnist.cli.groups import Command, Commands, flattened

app = typer.Typer(
    name="lora-mnist",
    cls=Commands,
    help="""Repair one digit of a trained MNIST network with LoRA, and prove that nothing else was touched.

    Example: lora-mnist run

    `lora-mnist COMMAND --help` explains a command and its options.
    """,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode=None,  # help pages are our own, and brackets mean themselves
    pretty_exceptions_enable=False,
)


def command(function: Callable[..., int | None]) -> Callable[..., int]:
    """Register `function`, whose parameters are groups and options, as a command that returns its exit code."""
    return app.command(cls=Command)(returns_exit_code(flattened(function)))


def alone_in_its_run(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command be the only one that writes to its run, not only each of its stages."""

    @wraps(function)
    def alone(*, place: o.Place, **options: Any) -> None:
        from lora_mnist.runs.run import Run

        with Run(place.run).writing():
            function(place=place, **options)

    return alone


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
