"""How a command says what it found: words and tables on standard output, or JSON, or no more than a path."""

import json
import re
import sys
import textwrap
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import typer
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lora_mnist.cli.errors import silence_stdout
from lora_mnist.cli.options import Output

LABEL = 10  # columns of what stands before the lines of an answer
NARROWEST = 40  # columns; a narrower terminal breaks the lines itself
CONTROL = r"[^\n -~\xa0-\U0010ffff]"  # characters that move a cursor
NO_COLOUR = r"(?!\x1b\[[0-9;]*m)"  # what follows is no change of colour


class Line:
    """Text that wraps at words, further lines as far in as the first; a path is rather longer than the line than cut.

    Args:
        label: what stands before it.
        style, label_style: in rich's words.
    """

    def __init__(self, text: str, label: str = "", style: str = "", label_style: str = "dim"):
        self.text, self.label, self.style, self.label_style = text, label, style, label_style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        wrapper = textwrap.TextWrapper(options.max_width, self.label, " " * len(self.label))
        wrapper.break_long_words = wrapper.break_on_hyphens = False
        for i, line in enumerate(wrapper.wrap(self.text)):
            until = len(self.label) if i == 0 else 0
            parts = ((line[:until], self.label_style), (line[until:], self.style))
            yield Text.assemble(*parts, no_wrap=True, overflow="ignore")


def labelled(label: str, text: str) -> Line:
    """A line of an answer: what it is about, and what there is to say."""
    return Line(text, f"{label:<{LABEL}}")


def to_copy(label: str, command: str) -> Text:
    """A shell command, in one line however long, so that it can be copied from any terminal."""
    return Text.assemble((f"{label:<{LABEL}}", "dim"), command, no_wrap=True, overflow="ignore")


class _Uncut(Table):
    """A table that is rather wider than the terminal, which then breaks its lines, than without a part of a figure."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = Measurement.get(console, options.update(width=10_000), self).maximum
        return super().__rich_console__(console, options.update(width=max(options.max_width, whole)))


def table(*headings: str, words: Sequence[str] = ()) -> Table:
    """An empty table. The first column and those named in `words` stand on the left, figures on the right."""
    made = _Uncut(box=box.SIMPLE_HEAD, padding=0)
    for i, heading in enumerate(headings):
        left = i == 0 or heading in words
        made.add_column(heading, justify="left" if left else "right", no_wrap=True)
    return made


def plain_table(heading: str, *columns: str, apart: int = 2) -> Table:
    """An empty table without lines: words on the left, below the heading, and columns of figures."""
    made = Table(heading, box=None, pad_edge=False, padding=(0, apart, 0, 0))
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made


def print_result(
    document: object, output: Output, *parts: RenderableType | Literal[False], file: Path | str | None = None
) -> None:
    """Print a result as it was asked for: as JSON, or no more than the `file` where it lies, or in `parts`."""
    if output.json:
        print_json(document)
    elif not output.quiet:
        print_all(*(part for part in parts if part is not False))
    elif file:
        write(f"{file}\n")


def print_all(*renderables: RenderableType) -> None:
    """Print tables and lines, one below the other."""
    console = Console(highlight=False, markup=False, emoji=False)  # brackets in the name of a folder mean themselves
    console.width = max(console.width, NARROWEST)
    with console.capture() as text:  # written by us, because rich ends the process when the pipe is closed
        # a path is longer than the line, rather than cut; in a group, or rich joins texts and forgets their no_wrap
        console.print(Group(*renderables), crop=False)
    # what would move a cursor, as from a folder's name, is spelled out
    pattern = NO_COLOUR + CONTROL if console.color_system is not None else CONTROL
    write(re.sub(pattern, lambda found: found[0].encode("unicode_escape").decode(), text.get()))


def print_json(document: object) -> None:
    """Print a `Document`, or what `json` can hold and documents in it, one value a line."""
    write(json.dumps(document, indent=1, default=lambda one: one.model_dump(mode="json")) + "\n")


def write(text: str) -> None:
    """Write to standard output; a pipe that was closed is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()  # shown before the next stage begins
    except BrokenPipeError:
        silence_stdout()  # nobody reads on, but the work is still to be finished


def open_in_browser(address: str) -> None:
    """Show what is at an address, or say that there is no browser."""
    if not webbrowser.open(address):
        typer.echo("Note: no browser could be opened.", err=True)
