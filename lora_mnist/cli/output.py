"""How a command says what it found: words on standard output, or JSON, or no more than a path."""

import json
import re
import sys
import webbrowser
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import typer

from lora_mnist.cli import options as o
from lora_mnist.cli.exits import silence_stdout

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from lora_mnist.settings.strict import Document

CONTROL = r"[^\n -~\xa0-\U0010ffff]"  # characters that move a cursor
NO_COLOUR = r"(?!\x1b\[[0-9;]*m)"  # what follows is no change of colour
NARROWEST = 40  # columns; a narrower terminal breaks the lines itself
D = TypeVar("D", bound="Document")


def open_page(page: "Path") -> None:
    """Show a file in the browser, or say that there is none."""
    open_address(page.resolve().as_uri())


def open_address(address: str) -> None:
    """Show what is at an address in the browser, or say that there is none."""
    if not webbrowser.open(address):
        typer.echo("Note: no browser could be opened.", err=True)


def show(
    document: D,
    views: "Sequence[Callable[[D], RenderableType]]",
    output: o.Output,
    provenance: "Path | str | None" = None,
) -> None:
    """Print a result as it was asked for: as JSON, or no more than where what was `made` lies, or its `views`."""
    if output.json:
        print_json(document.model_dump(mode="json"))
    elif not output.quiet:
        print_all(*(view(document) for view in views))
    elif provenance:
        write(f"{provenance}\n")


def print_all(*renderables: "RenderableType") -> None:
    """Print tables and lines, one below the other."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)  # brackets in the name of a folder mean themselves
    console.width = max(console.width, NARROWEST)
    with console.capture() as text:  # written by us, because rich ends the process when the pipe is closed
        for renderable in renderables:
            console.print(renderable, crop=False)  # a path is longer than the line, rather than cut
    write(_harmless(text.get(), has_colours=console.color_system is not None))


def _harmless(text: str, has_colours: bool) -> str:
    """`text` in which what would move a cursor, as from a folder's name, is spelled out."""
    pattern = NO_COLOUR + CONTROL if has_colours else CONTROL
    return re.sub(pattern, lambda found: found[0].encode("unicode_escape").decode(), text)


def print_json(document: object) -> None:
    """Print what `json` can hold, one value a line."""
    write(json.dumps(document, indent=1) + "\n")


def write(text: str) -> None:
    """Write to standard output; a pipe that was closed is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()  # shown before the next stage begins
    except BrokenPipeError:
        silence_stdout()  # nobody reads on, but the work is still to be finished
