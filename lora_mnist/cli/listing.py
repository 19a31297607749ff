"""The adapters of a run → a line each, or a paragraph each on a narrow terminal."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lora_mnist.cli.tables import DATASETS, mark
from lora_mnist.cli.text import Paragraph
from lora_mnist.runs.listing import AdapterLine, Listing

HEADINGS = ("digit", "rank", "numbers", "missed", "claimed", "errors", "proof", "size")


def adapters(listing: Listing) -> RenderableType:
    """One line for every adapter, and for every checkpoint with all weights trained."""
    if not listing.adapters:
        return Text(f"{listing.run} has no adapters yet.")
    title = f"{DATASETS[listing.dataset]}: adapters, with test figures"
    below = [line for line in listing.adapters if line.on_top_of]
    notes = [f"{line.name} is for use on top of {', '.join(line.on_top_of)}." for line in below]
    notes += [f"{line.name} was taught {line.drawings:,} drawings." for line in listing.adapters if line.drawings]
    return Group(_Lines(title, [_cells(line) for line in listing.adapters]), *map(Paragraph, notes))


class _Lines:
    """A row for each adapter; where that is wider than the terminal, a paragraph each, so that no name is cut."""

    def __init__(self, title: str, rows: Sequence[Sequence[str | Text]]):
        self.title, self.rows = title, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        table = Table("adapter", box=box.SIMPLE_HEAD, title=self.title, padding=0)
        table.columns[0].no_wrap = True
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        if Measurement.get(console, options.update(width=10_000), table).minimum <= options.max_width:
            yield table
            return
        yield Paragraph(self.title)
        for name, *cells in self.rows:
            facts = ", ".join(f"{heading} {cell}" for heading, cell in zip(HEADINGS, cells, strict=True))
            yield Paragraph(str(name))
            yield Paragraph(facts, label="  ")


def _cells(line: AdapterLine) -> list[str | Text]:
    return [
        line.name,
        str(line.digit),
        "-" if line.rank is None else str(line.rank),
        _number(line.parameters),
        *(f"{before}→{after}" for before, after in zip(line.before.numbers, line.after.numbers, strict=True)),
        "-" if line.proof is None else mark(line.proof),
        _size(line.bytes),
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _number(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count:,}"
