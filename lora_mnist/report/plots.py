"""Numbers → matplotlib figures. Nothing here reads a run or touches a global of matplotlib's."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator

from lora_mnist.evaluation.results import Counts
from lora_mnist.report.document import DialSection, DigitRow

DIGITS = range(10)
WIDTH = 5.6  # inches: text is then 12 to 16 pixels high where the page gives a plot 640, and 7 to 9 on a phone
BLUE, ORANGE, GREY, INK = "#0072b2", "#b34a00", "#6b6b6b", "#1a1a1a"  # differ in lightness, so for the colour-blind too
SERIES = (BLUE, ORANGE, "#00664b", "#7a3fa0", "#8a6d00", "#b0306a", "#3d5a80", "#5c4033")  # of several adapters
MARKERS = "os^DvPX*"
BAR = (0.85, 0.2, 0.03, 0.62)  # where a colour bar stands; fixed places take half the time of a fitted layout


def confusion(
    matrix: Sequence[Sequence[int]], title: str, darkest: int | None = None, normalised: bool = False
) -> Figure:
    """Confusion counts (10, 10), rows true digit. Colour shows errors only, so that the diagonal does not drown them.

    Args:
        darkest: count with the darkest colour, for larger ones too; None takes the largest.
        normalised: print every count as a share of its row, in per cent.
    """
    counts = np.asarray(matrix)
    errors = counts * ~np.eye(10, dtype=bool)
    scale = Normalize(0, max(1, errors.max() if darkest is None else darkest), clip=True)
    figure, axes = _grid(title)
    picture = axes.imshow(np.ma.masked_array(errors, np.eye(10, dtype=bool)), cmap="Blues", norm=scale)
    _print_counts(
        axes,
        counts,
        lambda value, on_diagonal: GREY if on_diagonal else _legible(scale(value) > 0.55),
        of=counts.sum(1) if normalised else None,
    )
    _bar(figure, picture, "wrong images", "max" if errors.max() > scale.vmax else "neither")
    return figure


def confusion_change(
    before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], title: str, normalised: bool = False
) -> Figure:
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
        of=np.asarray(before).sum(1) if normalised else None,
        signed=True,
    )
    _bar(figure, picture, "more (orange) or fewer (purple) wrong images")
    return figure


def trade(curves: Mapping[str, Sequence[Counts]], points: Sequence[tuple[str, Counts]], digit: int) -> Figure:
    """Missed images of the digit against all errors: what each way of missing fewer of them costs.

    Args:
        curves: by label, counts along a way that starts at the base.
        points: label and counts of single networks.
    """
    figure, axes = framed(2 + len(points))
    for (label, curve), (colour, style) in zip(curves.items(), ((ORANGE, "--"), (BLUE, "-")), strict=False):
        x, y = [one.missed for one in curve], [one.errors for one in curve]
        axes.plot(x, y, style, color=colour, linewidth=1.8, marker=".", markersize=5, label=label)
    for i, ((label, counts), marker) in enumerate(zip(points, itertools.cycle(MARKERS), strict=False)):
        colour = INK if i else GREY
        axes.plot(counts.missed, counts.errors, marker, color=colour, markersize=8, linestyle="none", label=label)
    # up to the worst point: a threshold that ruins everything further on does not squeeze the rest
    highest = max(counts.errors for _, counts in points)
    lowest = min(one.errors for one in (*itertools.chain(*curves.values()), *(counts for _, counts in points)))
    margin = 0.2 * (highest - lowest) + 4
    axes.set_ylim(max(0, lowest - margin), highest + margin)
    axes.set_xlim(left=0)
    axes.set(xlabel=f"missed {digit}s (test)", ylabel="all errors (test)")
    legend_above(axes)
    return figure


def strength_curve(measured: DialSection, digit: int) -> Figure:
    """Accuracy and recalls by strength, in per cent; the recommended strength is marked."""
    figure, axes = framed(4)
    points, recommended = measured.points, measured.recommended
    lines = (
        ("accuracy, all digits", [point.accuracy for point in points], INK, "-"),
        (f"recall of {digit}", [point.recall for point in points], BLUE, "-"),
        ("recall of the others", [point.recall_of_others for point in points], ORANGE, "--"),
    )
    for label, shares, colour, style in lines:
        x, y = [point.strength for point in points], [100 * share for share in shares]
        axes.plot(x, y, style, color=colour, marker=".", linewidth=1.8, label=label)
    axes.axvline(recommended, color=GREY, linestyle=":", linewidth=1.5, label=f"recommended: {recommended:g}")
    axes.set(xlabel="strength of the adapter (0: the base, 1: as kept)", ylabel=f"% of {measured.measured_on}")
    legend_above(axes)
    return figure


def directions(pictures: np.ndarray, singular_values: Sequence[float]) -> Figure:
    """What the first layer's update looks for: (n, 28, 28), with the singular value of each above it."""
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(WIDTH, WIDTH * rows / columns * 0.98 + 0.2) if columns > 1 else (2.6, 2.8))
    reach = np.abs(pictures).max() or 1.0
    for i, (picture, value) in enumerate(zip(pictures, singular_values, strict=False)):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(_diverging(picture / reach))
        axes.set_title(f"σ = {value:.3g}", fontsize=8, pad=3)
        axes.set_axis_off()
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.93, 0.05, 0.15)
    return figure


def _diverging(values: np.ndarray) -> np.ndarray:
    """-1 to 1 → RGBA: orange above 0, purple below, and the paper shows through where there is nothing."""
    colours = np.where(values[..., None] > 0, (0.80, 0.38, 0.0), (0.46, 0.33, 0.72))
    return np.concatenate([colours, np.abs(values)[..., None]], axis=-1)


def side_by_side(ways: Sequence[tuple[str, Counts, Counts]]) -> Figure:
    """From before to after, for every adapter: wrong images of its digit against wrong images of all others.

    Args:
        ways: label, before, after.
    """
    figure, axes = framed(len(ways))
    for (label, before, after), marker, colour in zip(ways, itertools.cycle(MARKERS), itertools.cycle(SERIES)):
        x, y = [before.missed, after.missed], [others(before), others(after)]
        axes.plot(x, y, "-", color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(x[1], y[1], marker, color=colour, markersize=8, label=label, linestyle="none")
        axes.plot(x[0], y[0], "o", color=GREY, markersize=5, markerfacecolor="white")
    axes.set_xlim(left=0)
    axes.set(xlabel="missed images of the repaired digit (test)", ylabel="wrong images of the other digits (test)")
    legend_above(axes)
    return figure


def others(counts: Counts) -> int:
    """Wrong images of all digits but the repaired one."""
    return counts.errors - counts.missed


def errors_per_digit(wrong: Sequence[int]) -> Figure:
    """Wrong images of every digit."""
    figure, axes = framed()
    bars = axes.bar(DIGITS, wrong, 0.8, color=GREY)
    axes.bar_label(bars, fontsize=8, color=INK)
    axes.set_xticks(DIGITS, list(map(str, DIGITS)))
    axes.set(xlabel="digit", ylabel="wrong images (test)")
    axes.margins(y=0.12)
    return figure


def change_per_digit(rows: Sequence[DigitRow], target: int) -> Figure:
    """By how many points the error rate of every digit rose or fell, with its interval; the target is on top.

    A change that is more than chance is blue where it fell and orange where it rose, and the dot is filled.
    """
    figure, axes = framed()
    ordered = from_below(rows, target)
    for height, row in enumerate(ordered):
        colour = GREY if row.is_chance else ORANGE if row.net > 0 else BLUE
        share = 100 / max(1, row.images)
        axes.plot([100 * row.low, 100 * row.high], [height] * 2, color=colour, linewidth=1.6)
        axes.plot(row.net * share, height, "o", color=colour, markerfacecolor="white" if row.is_chance else colour)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axhline(8.5, color=GREY, linewidth=0.6, linestyle=":")
    axes.set_yticks(range(10), [f"{row.digit}{' (target)' if row.digit == target else ''}" for row in ordered])
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(range(10), [f"{row.before} → {row.after}" for row in ordered], fontsize=8)
    counts.tick_params(length=0)
    counts.spines["right"].set_visible(False)
    axes.set(xlabel="change of the error rate on test, in points (left: fewer wrong)")
    axes.set_position(_with_room_for_counts(axes))
    return figure


def from_below(rows: Sequence[DigitRow], target: int) -> list[DigitRow]:
    """In the order in which they are drawn."""
    return sorted(rows, key=lambda row: (row.digit == target, -row.digit))


def _with_room_for_counts(axes: Axes) -> tuple[float, float, float, float]:
    left, bottom, width, height = axes.get_position().bounds
    return left + 0.03, bottom, width - 0.13, height


def loss_curve(losses: Sequence[float]) -> Figure:
    """The loss of every step, faint, and its running mean over about a fiftieth of all steps."""
    figure, axes = framed()
    window, running = running_mean(losses)
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=GREY, alpha=0.35, linewidth=0.8, label="each step")
    axes.plot(steps[window - 1 :], running, color=BLUE, linewidth=1.8, label=f"mean of the last {window}")
    if min(losses) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")  # powers of ten would be set by mathtext, which is slow
        axes.yaxis.set_minor_formatter("")
    axes.set(xlabel="step", ylabel="cross-entropy")
    axes.legend(frameon=False)
    return figure


def running_mean(losses: Sequence[float]) -> tuple[int, np.ndarray]:
    """Over how many steps, and the means from that step on."""
    window = max(1, len(losses) // 50)
    return window, np.convolve(losses, np.ones(window) / window, mode="valid")


def framed(labels: int = 0) -> tuple[Figure, Axes]:
    """Axes with room for a legend of so many labels above them, where it cannot hide anything."""
    legend = 0.18 * -(-labels // 2)  # inches
    height = 3.4 + legend
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.135, 0.53 / height, 0.845, 2.75 / height))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend_above(axes: Axes) -> None:
    """A legend in the room that `framed` left for it."""
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=2, labelspacing=0.2)


def _grid(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 4.5))
    axes = figure.add_axes((0.085, 0.1, 0.74, 0.83))
    axes.set(xlabel="predicted digit", ylabel="true digit", xticks=DIGITS, yticks=DIGITS)
    axes.set_title(title, fontsize=10, y=1.0, pad=6)  # a fixed place: finding one means measuring every label
    borders = np.arange(0.5, 9)
    axes.vlines(borders, -0.5, 9.5, color="#e4e4e4", linewidth=0.6)
    axes.hlines(borders, -0.5, 9.5, color="#e4e4e4", linewidth=0.6)
    axes.tick_params(length=0)
    return figure, axes


def _bar(figure: Figure, picture: AxesImage, label: str, extend: str = "neither") -> None:
    bar = figure.colorbar(picture, cax=figure.add_axes(BAR), extend=extend)
    bar.ax.tick_params(labelsize=8)  # small enough for a sign and three digits beside the label
    bar.set_label(label, fontsize=8, labelpad=2)


def _print_counts(
    axes: Axes, counts: np.ndarray, colour: Callable, of: np.ndarray | None = None, signed: bool = False
) -> None:
    """Every count that is not zero, or its per cent of `of` (10,), in a colour that can be read on its cell."""
    for (row, column), value in np.ndenumerate(counts):
        if value:
            shown = value if of is None else 100 * value / max(1, of[row])
            text = f"{shown:{'+' if signed else ''}{'d' if of is None else '.1f'}}".replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour(value, row == column))


def _legible(on_dark: bool) -> str:
    return "white" if on_dark else INK
