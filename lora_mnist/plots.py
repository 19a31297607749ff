"""Numbers → matplotlib figures. Nothing here reads a run or touches a global of matplotlib's."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

DIGITS = range(10)
BLUE, GREY, INK = "#0072b2", "#6b6b6b", "#1a1a1a"  # differ in lightness, so for the colour-blind too
BAR = (0.85, 0.2, 0.03, 0.62)  # where a colour bar stands; fixed places take half the time of a fitted layout


def confusion(matrix: Sequence[Sequence[int]], title: str, largest: int | None = None) -> Figure:
    """Confusion counts (10, 10), rows true digit. Colour shows errors only, so that the diagonal does not drown them.

    Args:
        largest: count with the darkest colour; give two figures the same to make them comparable.
    """
    counts = np.asarray(matrix)
    errors = counts * ~np.eye(10, dtype=bool)
    scale = Normalize(0, max(1, largest or errors.max()))
    figure, axes = _grid(title)
    picture = axes.imshow(np.ma.masked_array(errors, np.eye(10, dtype=bool)), cmap="Blues", norm=scale)
    _print_counts(axes, counts, lambda value, on_diagonal: GREY if on_diagonal else _legible(scale(value) > 0.55))
    figure.colorbar(picture, cax=figure.add_axes(BAR), label="wrong images")
    return figure


def confusion_change(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], title: str) -> Figure:
    """after − before (10, 10). Errors that came are orange, errors that went are purple, around white at zero."""
    change = np.asarray(after) - np.asarray(before)
    off_diagonal = change * ~np.eye(10, dtype=bool)
    reach = max(1, np.abs(off_diagonal).max())
    scale = Normalize(-reach, reach)
    figure, axes = _grid(title)
    picture = axes.imshow(np.ma.masked_array(off_diagonal, np.eye(10, dtype=bool)), cmap="PuOr_r", norm=scale)
    _print_counts(
        axes,
        change,
        lambda value, on_diagonal: GREY if on_diagonal else _legible(abs(value) / reach > 0.6),
        signed=True,
    )
    figure.colorbar(picture, cax=figure.add_axes(BAR), label="more (orange) or fewer (purple) wrong images")
    return figure


def errors_per_digit(before: Sequence[int], after: Sequence[int] | None, target: int | None, title: str) -> Figure:
    """Wrong images of every digit, before and, if given, after; the target digit is marked."""
    figure = Figure(figsize=(7, 3.6))
    axes = figure.add_axes((0.11, 0.2, 0.87, 0.71))
    series = [("before", before, GREY)] + ([("after", after, BLUE)] if after is not None else [])
    width = 0.8 / len(series)
    for i, (label, counts, colour) in enumerate(series):
        places = np.arange(10) + (i - (len(series) - 1) / 2) * width
        bars = axes.bar(places, counts, width, label=label, color=colour)
        axes.bar_label(bars, fontsize=8, color=INK)
    labels = [f"{digit}\n(target)" if digit == target else str(digit) for digit in DIGITS]
    axes.set_xticks(DIGITS, labels)
    axes.set(title=title, xlabel="digit", ylabel="wrong images")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    if after is not None:
        axes.legend(frameon=False)
    return figure


def loss_curve(losses: Sequence[float], title: str) -> Figure:
    """The loss of every step, faint, and its running mean over about a fiftieth of all steps."""
    figure = Figure(figsize=(7, 3))
    axes = figure.add_axes((0.11, 0.17, 0.87, 0.73))
    window = max(1, len(losses) // 50)
    steps = np.arange(1, len(losses) + 1)
    running = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(steps, losses, color=GREY, alpha=0.35, linewidth=0.8, label="each step")
    axes.plot(steps[window - 1 :], running, color=BLUE, linewidth=1.8, label=f"mean of the last {window}")
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.set(title=title, xlabel="step", ylabel="cross-entropy")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _grid(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 6))
    axes = figure.add_axes((0.06, 0.08, 0.75, 0.86))
    axes.set(title=title, xlabel="predicted digit", ylabel="true digit", xticks=DIGITS, yticks=DIGITS)
    axes.set_xticks(np.arange(-0.5, 10), minor=True)
    axes.set_yticks(np.arange(-0.5, 10), minor=True)
    axes.grid(which="minor", color="#e4e4e4", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    return figure, axes


def _print_counts(axes: Axes, counts: np.ndarray, colour, signed: bool = False) -> None:
    """Every count that is not zero, in a colour that can be read on its cell."""
    for (row, column), value in np.ndenumerate(counts):
        if value:
            text = f"{value:+d}".replace("-", "−") if signed else str(value)
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour(value, row == column))


def _legible(on_dark: bool) -> str:
    return "white" if on_dark else INK
