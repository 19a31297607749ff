"""The plots of a report: which there are, their drawings and their text alternatives.

Only matplotlib's objects are used, nothing global, and the same numbers give the same bytes.
"""

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from lora_mnist.errors import AlteredError
from lora_mnist.evaluation.results import Counts, Matrix, SplitResult, StrengthPoint
from lora_mnist.evaluation.significance import LEVEL
from lora_mnist.report.tables import AdapterResults, confusion_changes, digit_rows, strength_rows
from lora_mnist.runs.artifact import HISTORY
from lora_mnist.runs.atomic import RESTORE
from lora_mnist.runs.listing import AdapterLine
from lora_mnist.runs.run import Run

DIGITS = range(10)
WIDTH = 5.6  # inches: text is then 12 to 16 pixels high where the page gives a plot 640, and 7 to 9 on a phone
BLUE, ORANGE, GREY, INK = "#0072b2", "#b34a00", "#6b6b6b", "#1a1a1a"  # differ in lightness, so for the colour-blind too
SERIES = (BLUE, ORANGE, "#00664b", "#7a3fa0", "#8a6d00", "#b0306a", "#3d5a80", "#5c4033")  # of several adapters
MARKERS = "os^DvPX*"
WHOLE: dict[str, Any] = {"integer": True, "nbins": 10, "steps": [1, 2, 5, 10]}  # ticks of an axis that counts
APART = 22  # pixels at 100 dpi between two strengths that are written beside a curve

# draw and save as matplotlib does by default, whatever the user's matplotlibrc or theme says
default_style = partial(matplotlib.style.context, "default")


@dataclass(frozen=True)
class PointLabel:
    """What a point of a plot says when the pointer is on it; `strength` is that of the adapter there, if any."""

    x: float
    y: float
    words: str
    strength: float | None = None


@dataclass(frozen=True)
class Plot:
    """A figure with what belongs to it."""

    name: str
    figure: Figure = field(repr=False)
    alt: str  # its text alternative
    table: str  # the CSV file with its numbers
    marks: tuple[PointLabel, ...] = ()  # in the coordinates of its first axes

    @property
    def svg(self) -> bytes:
        """As a file: its text is drawn, so that it looks the same everywhere."""
        return self._saved("svg", metadata={"Date": None, "Creator": None})

    @property
    def svg_with_text(self) -> bytes:
        """For the page: its text is text in the page's font, and there is no ground behind it."""
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            return self._saved("svg", metadata={"Date": None, "Creator": None}, transparent=True)

    @property
    def png(self) -> bytes:
        return self._saved("png", metadata={"Software": None}, dpi=120)

    def _saved(self, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name}):  # else its ids are random
            self.figure.savefig(file, format=kind, **options)
        return file.getvalue()


def plots_of(
    run: Run, adapters: Sequence[AdapterResults], lines: Sequence[AdapterLine], normalised: bool
) -> Iterator[Plot]:
    """All plots of a run.

    Args:
        lines: of all adapters and checkpoints.
        normalised: print shares instead of counts in confusion matrices.

    Raises AlteredError if the base has no losses.
    """
    base = run.base.evaluation.splits["test"]
    alt = f"Confusion matrix of the base: {base.errors} of {base.count} test images are wrong."
    figure = confusion(base.confusion, "Base: test images", normalised)
    yield Plot("base-confusion", figure, alt, "base-confusion.csv")
    if not adapters:
        yield errors_per_digit(base)
    if losses := run.base.losses():
        yield loss_curve("base", losses, "Loss of every pretraining step.", run.base.val_curve())
    elif not run.record.source:
        raise AlteredError(f"{run.base.folder / HISTORY} holds no losses.", RESTORE)
    if len(lines) > len(adapters[:1]):  # several, or only a checkpoint
        yield side_by_side(lines)
    for one in adapters:
        yield from _confusions(one, normalised)
        yield change_per_digit(one)
        yield trade_off(one)
        yield strength_curve(one)
        if len(pictures := one.images.pictures["directions"]):
            figure = directions(pictures, next(iter(one.layers.values())).singular_values)
            alt = "Weights of each pixel in what the first layer's update looks for, the strongest direction first."
            yield Plot(f"{one.name}-directions", figure, alt, f"{one.name}-layers.csv")
        saved = run.adapter(one.name)
        if losses := saved.losses():  # an extracted adapter was not trained
            yield loss_curve(one.name, losses, "Loss of every fine-tuning step.", saved.val_curve())


def _confusions(one: AdapterResults, normalised: bool) -> Iterator[Plot]:
    name, before, after = one.name, one.before.confusion, one.after.confusion
    table = f"{name}-confusion.csv"
    darkest = int((np.array(before) * ~np.eye(10, dtype=bool)).max())  # one scale for both, so that damage shows
    if on_top_of := one.stored.finetune.on_top_of:
        alt = f"Confusion matrix before, with {', '.join(on_top_of)}: {one.before.errors} errors."
        figure = confusion(before, "Before: test images", normalised)
        yield Plot(f"{name}-before", figure, alt, table)
    figure = confusion(after, f"With {name}: test images", normalised, darkest)
    yield Plot(f"{name}-after", figure, f"Confusion matrix with {name}: {one.after.errors} errors.", table)
    rows = confusion_changes(one.comparison)
    changes = ", ".join(f"{row['true']} taken for {row['predicted']} {row['change']:+,}" for row in rows)
    alt = f"Change of the confusion matrix. More than chance: {changes.replace('-', '−') or 'nothing'}."
    figure = confusion(after, "Change: after − before", normalised, before=before)
    yield Plot(f"{name}-change", figure, alt, table)


def confusion(
    matrix: Matrix, title: str, normalised: bool = False, darkest: int | None = None, before: Matrix | None = None
) -> Figure:
    """Confusion counts (10, 10), rows true digit, or their change. Colour shows errors only, so that the diagonal does
    not drown them.

    Args:
        normalised: print every count as a share of its row, in per cent.
        darkest: count with the darkest colour, for larger ones too; None takes the largest.
        before: draw the change from it: errors that came are orange, errors that went are purple, white is none.
    """
    base = np.asarray(matrix if before is None else before)
    counts, diagonal = np.asarray(matrix) - (0 if before is None else base), np.eye(10, dtype=bool)
    largest = np.abs(counts * ~diagonal).max()
    reach = max(1, largest if darkest is None else darkest)
    scale, colours, readable, sign = Normalize(0, reach, clip=True), "Blues", 0.55, ""  # readable: dark text up to that
    label = "wrong images"
    if before is not None:
        scale, colours, readable, sign = Normalize(-reach, reach), "PuOr_r", 0.6, "+"
        label = "more (orange) or fewer (purple) wrong images"

    figure = Figure(figsize=(WIDTH, 4.5))
    axes = figure.add_axes((0.085, 0.1, 0.74, 0.83))
    axes.set(xlabel="predicted digit", ylabel="true digit", xticks=DIGITS, yticks=DIGITS)
    axes.set_title(title, fontsize=10, y=1.0, pad=6)  # a fixed place: finding one means measuring every label
    borders = np.arange(0.5, 9)
    axes.vlines(borders, -0.5, 9.5, color="#e4e4e4", linewidth=0.6)
    axes.hlines(borders, -0.5, 9.5, color="#e4e4e4", linewidth=0.6)
    axes.tick_params(length=0)
    image = axes.imshow(np.ma.masked_array(counts, diagonal), cmap=colours, norm=scale)
    images = np.maximum(1, base.sum(1))  # (10,) of each true digit
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = "white" if abs(count) / reach > readable else INK
            colour = GREY if row == column else dark
            printed = f"{100 * count / images[row]:{sign}.1f}" if normalised else f"{count:{sign}d}"
            axes.text(column, row, printed.replace("-", "−"), ha="center", va="center", fontsize=8, color=colour)
    place = (0.85, 0.2, 0.03, 0.62)  # a fixed place takes half the time of a fitted layout
    extend = "max" if largest > reach else "neither"
    bar = figure.colorbar(image, cax=figure.add_axes(place), extend=extend)
    bar.ax.tick_params(labelsize=8)  # small enough for a sign and three digits beside the label
    bar.set_label(label, fontsize=8, labelpad=2)
    return figure


def errors_per_digit(base: SplitResult) -> Plot:
    """Wrong images of every digit."""
    figure, axes = new_axes("digit", "wrong images (test)")
    bars = axes.bar(DIGITS, base.wrong, 0.8, color=GREY)
    axes.bar_label(bars, fontsize=8, color=INK)
    axes.set_xticks(DIGITS, list(map(str, DIGITS)))
    axes.margins(y=0.12)
    axes.locator_params("y", **WHOLE)
    pairs = enumerate(zip(base.wrong, base.images, strict=True))
    marks = tuple(PointLabel(digit, wrong, f"{digit}: {wrong} of {images} wrong") for digit, (wrong, images) in pairs)
    alt = f"Wrong test images per digit: {list(base.wrong)}."
    return Plot("base-errors", figure, alt, "base-digits.csv", marks)


def change_per_digit(one: AdapterResults) -> Plot:
    """By how many points the error rate of every digit rose or fell, with its interval; the target is on top.

    A change that is more than chance is blue where it fell and orange where it rose, and the dot is filled.
    """
    name, target, rows = one.name, one.digit, digit_rows(one)
    figure, axes = new_axes("change of the error rate on test, in points (left: fewer wrong)")
    marks, chance = [], {row["digit"]: row["p"] > LEVEL for row in rows}
    from_below = sorted(rows, key=lambda row: (row["digit"] == target, -row["digit"]))
    for height, row in enumerate(from_below):
        is_chance = chance[row["digit"]]
        colour = GREY if is_chance else ORANGE if row["net"] > 0 else BLUE
        points = row["net"] * (100 / max(1, row["images"]))
        axes.plot([100 * row["low"], 100 * row["high"]], [height] * 2, color=colour, linewidth=1.6)
        axes.plot(points, height, "o", color=colour, markerfacecolor="white" if is_chance else colour)
        marks.append(PointLabel(points, height, f"{row['digit']}: {row['fixed']} fixed, {row['broken']} broken"))
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axhline(8.5, color=GREY, linewidth=0.6, linestyle=":")
    axes.set_yticks(DIGITS, [f"{row['digit']}{' (target)' if row['digit'] == target else ''}" for row in from_below])
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(DIGITS, [f"{row['before']} → {row['after']}" for row in from_below], fontsize=8)
    counts.tick_params(length=0)
    counts.spines["right"].set_visible(False)
    left, bottom, width, height = axes.get_position().bounds
    axes.set_position((left + 0.03, bottom, width - 0.13, height))  # room for the counts
    changes = (
        f"{row['digit']}: {row['before']} to {row['after']}{'' if chance[row['digit']] else ' (more than chance)'}"
        for row in rows
    )
    alt = f"Change of the error rate of every digit, with intervals. Wrong test images: {', '.join(changes)}."
    return Plot(f"{name}-errors", figure, alt, f"{name}-digits.csv", tuple(marks))


def trade_off(one: AdapterResults) -> Plot:
    """Missed images of the digit against all errors: what each way of missing fewer of them costs."""
    name, digit, recommended = one.name, one.digit, one.curve.recommended
    points = [("before", one.comparison.before), (name, one.comparison.after)]
    points += [(label, counts) for label, _, counts in one.alternatives]
    if recommended not in (0, 1):  # those are before and after
        points.append((f"recommended strength {recommended:g}", one.at_recommended))
    shifts, strengths = one.stored.analysis.threshold.curve, one.curve.splits["test"]  # two ways that start at the base
    # a threshold that ruins everything further on does not squeeze the rest: its curve ends where it leaves the axes
    everything = [counts.errors for counts in (*shifts, *strengths, *(counts for _, counts in points))]
    lowest, highest = min(everything), max(counts.errors for _, counts in points)
    top = max(errors for errors in everything if errors <= 2 * highest - lowest)
    margin = 0.2 * (top - lowest) + 4
    figure, axes = new_axes(f"missed {digit}s (test)", "all errors (test)", 2 + len(points))
    axes.set_ylim(max(0, lowest - margin), top + margin)
    for label, curve, colour, style in (
        (f"a number added to the logit of {digit}", shifts, ORANGE, "--"),
        (f"{name} at strengths 0 to 1.5", strengths, BLUE, "-"),
    ):
        until = len(list(itertools.takewhile(lambda counts: counts.errors <= top, curve))) + 1
        x, y = [counts.missed for counts in curve[:until]], [counts.errors for counts in curve[:until]]
        axes.plot(x, y, style, color=colour, linewidth=1.8, marker=".", markersize=5, label=label)
    for i, ((label, counts), marker) in enumerate(zip(points, itertools.cycle(MARKERS), strict=False)):
        colour = INK if i else GREY
        axes.plot(counts.missed, counts.errors, marker, color=colour, markersize=8, linestyle="none", label=label)
    axes.locator_params(**WHOLE)
    _write_strengths(axes, strengths)
    legend_above(axes)

    def mark(label: str, counts: Counts, strength: float | None = None) -> PointLabel:
        return PointLabel(counts.missed, counts.errors, f"{label}: {_in_words(counts)}", strength)

    marks = [mark(f"{counts.shift:+.2f} on the logit of {digit}".replace("-", "−"), counts) for counts in shifts]
    marks += [mark(*point) for point in points]
    marks += [mark(f"strength {counts.strength:g}", counts, counts.strength) for counts in strengths]
    words = "; ".join(f"{label}: {counts.missed} missed, {counts.errors} errors" for label, counts in points)
    alt = f"Missed {digit}s against all errors. {words}."
    return Plot(f"{name}-trade", figure, alt, f"{name}-trade.csv", tuple(marks))


def _write_strengths(axes: Axes, strengths: Sequence[StrengthPoint]) -> None:
    """Each strength at its point of the curve, but for those too near to one that is written already."""
    axes.get_xlim(), axes.get_ylim()  # matplotlib settles them when it is asked
    taken: list[np.ndarray] = []
    for point in sorted(strengths, key=lambda point: (point.strength not in (0, 1), point.strength)):
        at = point.missed, point.errors
        place = axes.transData.transform(at)
        if axes.bbox.contains(*place) and all(np.hypot(*(place - other)) > APART for other in taken):
            taken.append(place)
            # to the lower right, where no curve goes
            axes.annotate(f"{point.strength:g}", at, (6, -13), textcoords="offset points", fontsize=8, color=BLUE)


def strength_curve(one: AdapterResults) -> Plot:
    """Accuracy and recalls by strength, in per cent; the recommended strength is marked."""
    name, digit, curve, rows = one.name, one.digit, one.curve, strength_rows(one)
    figure, axes = new_axes("strength of the adapter (0: the base, 1: as kept)", f"% of {curve.measured_on}", 4)
    lines = (
        ("accuracy", "accuracy, all digits", INK, "-"),
        ("recall", f"recall of {digit}", BLUE, "-"),
        ("recall_of_others", "recall of the others", ORANGE, "--"),
    )
    for key, label, colour, style in lines:
        x, y = [row["strength"] for row in rows], [100 * row[key] for row in rows]
        axes.plot(x, y, style, color=colour, marker=".", linewidth=1.8, label=label)
    label = f"recommended: {curve.recommended:g}"
    axes.axvline(curve.recommended, color=GREY, linestyle=":", linewidth=1.5, label=label)
    axes.margins(y=0.1)  # for the ring that the slider draws around a point
    legend_above(axes)
    marks = []
    for row in rows:
        for key, label, *_ in lines:
            percent = 100 * row[key]
            words = f"strength {row['strength']:g}: {percent:.2f} % {label}"
            marks.append(PointLabel(row["strength"], percent, words, row["strength"]))
    alt = f"Accuracy, recall of {digit} and of the others by strength; recommended is {curve.recommended:g}."
    return Plot(f"{name}-strength_curve", figure, alt, f"{name}-strength_curve.csv", tuple(marks))


def side_by_side(lines: Sequence[AdapterLine]) -> Plot:
    """From before to after, for every adapter: wrong images of its digit against wrong images of all others."""
    ours, others = "missed images of the repaired digit (test)", "wrong images of the other digits (test)"
    figure, axes = new_axes(ours, others, len(lines))
    marks, words = [], []
    for line, marker, colour in zip(lines, itertools.cycle(MARKERS), itertools.cycle(SERIES), strict=False):
        label = f"{line.name} (all weights)" if line.method == "full" else line.name  # an adapter may have that name
        x, y = [], []
        for when, counts in (("before", line.before), ("after", line.after)):
            x.append(counts.missed)
            y.append(counts.errors - counts.missed)
            marks.append(PointLabel(x[-1], y[-1], f"{label}, {when}: {_in_words(counts)}"))
        axes.plot(x, y, "-", color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(x[1], y[1], marker, color=colour, markersize=8, label=label, linestyle="none")
        axes.plot(x[0], y[0], "o", color=GREY, markersize=5, markerfacecolor="white")
        words.append(f"{label}: {x[0]} to {x[1]} of its digit, {y[0]} to {y[1]} of the others")
    axes.locator_params(**WHOLE)
    legend_above(axes)
    alt = f"Wrong test images. {'; '.join(words)}."
    return Plot("side-by-side", figure, alt, "adapters.csv", tuple(marks))


def _in_words(counts: Counts) -> str:
    return f"{counts.missed} missed, {counts.false_alarms} false alarms, {counts.errors} errors in all"


def loss_curve(name: str, losses: Sequence[float], alt: str, val: Sequence[tuple[int, float, float]] = ()) -> Plot:
    """The loss of every step, faint, and its running mean over about a fiftieth of all steps.

    Args:
        val: step, loss and accuracy where they were measured on `val`; accuracy has an axis of its own, on the right.
    """
    figure, axes = new_axes("step", "cross-entropy", 4 if val else 2)
    window = max(1, len(losses) // 50)
    mean = np.convolve(losses, np.ones(window) / window, mode="valid")
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=GREY, alpha=0.35, linewidth=0.8, label="each step")
    axes.plot(steps[window - 1 :], mean, color=BLUE, linewidth=1.8, label=f"mean of the last {window}")
    marked = range(0, len(mean), max(1, len(mean) // 50))
    marks = [PointLabel(i + window, mean[i], f"step {i + window}: {mean[i]:.3g}") for i in marked]
    if val:
        at, val_losses, accuracies = zip(*val, strict=True)
        percent = [100 * one for one in accuracies]
        axes.plot(at, val_losses, color=ORANGE, marker=".", linewidth=1.8, label="on val")
        right = axes.twinx()
        right.set_ylabel("accuracy on val, %")
        right.spines["top"].set_visible(False)
        right.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        look: dict[str, Any] = {"color": SERIES[2], "marker": ".", "linewidth": 1.8}
        right.plot(at, percent, "--", **look)
        axes.plot([], [], "--", **look, label="accuracy on val (right)")  # for the legend alone
        left, bottom, width, height = axes.get_position().bounds
        for one in (axes, right):
            one.set_position((left, bottom, width - 0.115, height))  # room for the second axis
        alt = f"{alt} On val at the end: loss {val_losses[-1]:.3g}, accuracy {percent[-1]:.2f} %."
        marks += [
            PointLabel(step, loss, f"step {step}, on val: {loss:.3g}, {100 * accuracy:.2f} % right")
            for step, loss, accuracy in val
        ]
    axes.locator_params("x", **WHOLE)
    if min(losses) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")  # powers of ten would be set by mathtext, which is slow
        axes.yaxis.set_minor_formatter("")
    legend_above(axes)
    return Plot(f"{name}-loss", figure, alt, f"{name}-loss.csv", tuple(marks))


def directions(pictures: np.ndarray, singular_values: Sequence[float]) -> Figure:
    """What the first layer's update looks for: (n, 28, 28), with the singular value of each above it.

    Orange above 0, purple below, and the paper shows through where there is nothing.
    """
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(WIDTH, WIDTH * rows / columns * 0.98 + 0.2) if columns > 1 else (2.6, 2.8))
    reach = np.abs(pictures).max() or 1.0
    for i, (picture, value) in enumerate(zip(pictures / reach, singular_values, strict=False)):
        axes = figure.add_subplot(rows, columns, i + 1)
        colours = np.where(picture[..., None] > 0, (0.80, 0.38, 0.0), (0.46, 0.33, 0.72))
        axes.imshow(np.concatenate([colours, np.abs(picture)[..., None]], axis=-1))  # (28, 28, 4): RGBA
        axes.set_title(f"σ = {value:.3g}", fontsize=8, pad=3)
        axes.set_axis_off()
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.93, 0.05, 0.15)
    return figure


def new_axes(xlabel: str, ylabel: str = "", labels: int = 0) -> tuple[Figure, Axes]:
    """Named axes with room for a legend of so many labels above them, where it cannot hide anything."""
    legend = 0.18 * -(-labels // 2)  # inches
    height = 3.4 + legend
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.135, 0.53 / height, 0.845, 2.75 / height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def legend_above(axes: Axes) -> None:
    """A legend in the room that `new_axes` left for it."""
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=2, labelspacing=0.2)
