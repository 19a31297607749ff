"""The adapters of a run → a line each, or a paragraph each on a narrow terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from lora_mnist.cli.grid import Rows
from lora_mnist.cli.tables import DATASETS, mark
from lora_mnist.cli.text import Paragraph, labelled
from lora_mnist.runs.listing import AdapterLine, Listing

HEADINGS = ("adapter", "digit", "rank", "numbers", "missed", "false al.", "errors", "proof", "size")


def adapters(listing: Listing) -> RenderableType:
    """One line for every adapter, and for every checkpoint with all weights trained."""
    if not listing.adapters:
        return Group(Paragraph(f"{listing.run} has no adapters yet."), _digest(listing))
    title = f"{DATASETS[listing.dataset]}: adapters, with test figures"
    below = [line for line in listing.adapters if line.on_top_of]
    notes = [f"{line.name} is for use on top of {', '.join(line.on_top_of)}." for line in below]
    notes += [f"{line.name} was taught {line.drawings:,} drawings." for line in listing.adapters if line.drawings]
    rows = Rows(HEADINGS, {title: [_cells(line) for line in listing.adapters]})
    return Group(rows, *map(Paragraph, notes), _digest(listing))


def _digest(listing: Listing) -> Paragraph:
    return labelled("digest", listing.digest)


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
