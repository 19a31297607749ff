"""Tables for a terminal of any width: they wrap at words, and nothing in them is cut or folded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement, measure_renderables
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from lora_mnist.cli.text import Paragraph, unbroken

UNLIMITED = 10_000  # columns, to measure in


class Grid(Table):
    """A table as narrow as the terminal, but never narrower than the longest word of each column.

    What does not fit then is longer than the line, so that the terminal breaks it and no number or name is lost.
    """

    def __init__(self, *headings: str, title: str = "", **options: Any):
        super().__init__(*headings, **options)
        self.above = title

    def add_column(self, header: RenderableType = "", *more: Any, **options: Any) -> None:
        """As of rich, but what it holds wraps as a `Paragraph` does."""
        super().add_column(_wrapped(header), *more, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """As of rich, but what it holds wraps as a `Paragraph` does."""
        super().add_row(*map(_wrapped, cells), **options)

    def least(self, console: Console, options: ConsoleOptions) -> int:
        """The columns it needs at least."""
        return Measurement.get(console, options.update(width=UNLIMITED), self).minimum

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType | Segment]:
        if self.above:
            yield Paragraph(self.above, style="italic")
        least = self.least(console, options)
        self._share(console, options, options.max_width - least)
        yield from super().__rich_console__(console, options.update(width=max(least, options.max_width)))

    def widths(self, console: Console, options: ConsoleOptions) -> list[int]:
        """The columns that the longest word of each of its columns takes."""
        return [column.min_width or size.minimum for column, size in self._sizes(console, options)]

    def _sizes(self, console: Console, options: ConsoleOptions) -> list[tuple[Column, Measurement]]:
        limit = options.update(width=UNLIMITED)
        parts = [[column.header, *column.cells] for column in self.columns]
        return [
            (column, measure_renderables(console, limit, of)) for column, of in zip(self.columns, parts, strict=True)
        ]

    def _share(self, console: Console, options: ConsoleOptions, spare: int) -> None:
        """Give each column what its longest word takes, and as much of what is left as it needs: figures first."""
        sizes = reversed(self._sizes(console, options))
        for column, size in sorted(sizes, key=lambda one: one[0].justify == "left"):
            least = max(column.min_width or 0, size.minimum)
            more = min(size.maximum - least, spare)
            column.width = least + max(0, more)
            spare -= max(0, more)


def _wrapped(cell: RenderableType | None) -> RenderableType:
    return Paragraph(cell) if isinstance(cell, str) and cell else cell or ""


class Rows:
    """A line for each thing, its name first; where one line is wider than the terminal, a paragraph for each.

    Args:
        headings: the first is that of the names.
        groups: title → rows; all groups have columns of the same width.
    """

    def __init__(self, headings: Sequence[str], groups: Mapping[str, Sequence[Sequence[str | Text]]]):
        self.headings, self.groups = headings, groups

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        together = self._table("", [row for rows in self.groups.values() for row in rows])
        widths = together.widths(console, options)
        wide = together.least(console, options) > options.max_width
        for i, (title, rows) in enumerate(self.groups.items()):
            if i:
                yield ""
            if wide:
                yield Paragraph(title, style="italic")
                yield from self._paragraphs(rows)
            else:
                yield self._table(title, rows, widths)

    def _table(self, title: str, rows: Sequence[Sequence[str | Text]], widths: Sequence[int] = ()) -> Grid:
        table = Grid(title=title, box=box.SIMPLE_HEAD, padding=0)
        for i, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if i else "left", min_width=widths[i] if widths else None)
        for name, *cells in rows:
            table.add_row(unbroken(str(name)), *cells)
        return table

    def _paragraphs(self, rows: Sequence[Sequence[str | Text]]) -> Iterator[RenderableType]:
        for name, *cells in rows:
            facts = zip(self.headings[1:], cells, strict=True)
            yield Paragraph(unbroken(str(name)))
            yield Paragraph(", ".join(unbroken(f"{of} {cell}") for of, cell in facts if str(cell)), label="  ")
