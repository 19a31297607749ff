"""The cells of a confusion matrix as the page prints them: their text and their colour."""

from typing import Literal, NamedTuple

from lora_mnist.evaluation.results import Matrix
from lora_mnist.report.document import AdapterSection
from lora_mnist.report.words import signed

Which = Literal["before", "after", "change"]
LEVELS = 6  # shades of a colour in the page's style


class Cell(NamedTuple):
    """`style` is a class of the page's style: b, o or p (blue, orange, purple) and a level, or `right`."""

    text: str
    style: str


def cell_of(section: AdapterSection, which: Which, place: tuple[int, int], normalised: bool) -> Cell:
    """One cell of an adapter's matrices. Before and after share one scale, so that damage shows.

    Args:
        place: true digit, predicted digit.
        normalised: as a share of the true digit's images, in per cent.
    """
    row, column = place
    before, after = section.confusion.before, section.confusion.after
    if which != "change":
        return base_cell(before if which == "before" else after, place, normalised, _largest(before))
    value = after[row][column] - before[row][column]
    reach = max(1, *(abs(after[r][c] - before[r][c]) for r in range(10) for c in range(10) if r != c))
    text = _text(value, sum(before[row]), normalised, "+")
    style = "right" if row == column else f"{'o' if value > 0 else 'p'}{_level(abs(value), reach)}" if value else ""
    return Cell(text, style)


def base_cell(matrix: Matrix, place: tuple[int, int], normalised: bool, darkest: int | None = None) -> Cell:
    """One cell of a matrix; `darkest` is the count of the darkest colour, None takes the largest error."""
    row, column = place
    value = matrix[row][column]
    text = _text(value, sum(matrix[row]), normalised, "")
    level = _level(value, _largest(matrix) if darkest is None else darkest)
    return Cell(text, "right" if row == column else f"b{level}" if value else "")


def _text(value: int, images: int, normalised: bool, sign: str) -> str:
    if not value:
        return "·"
    if normalised:
        return f"{100 * value / max(1, images):{sign}.1f}".replace("-", "−")
    return signed(value) if sign else str(value)


def _level(value: int, darkest: int) -> int:
    return min(LEVELS, -(-LEVELS * value // max(1, darkest)))


def _largest(matrix: Matrix) -> int:
    return max(count for row, counts in enumerate(matrix) for column, count in enumerate(counts) if row != column)
