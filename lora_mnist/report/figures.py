"""The plots of a report, each with its text alternative: which there are, and of which numbers."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lora_mnist.errors import AlteredError
from lora_mnist.evaluation.results import Counts
from lora_mnist.report import plots
from lora_mnist.report.document import AdapterSection, BaseSection, Line, Report, label
from lora_mnist.report.words import signed
from lora_mnist.runs.artifact import HISTORY, Artifact
from lora_mnist.runs.atomic import RESTORE
from lora_mnist.runs.run import Run


@dataclass(frozen=True)
class Mark:
    """What a point of a plot says when the pointer is on it; `strength` is that of the adapter there, if any."""

    x: float
    y: float
    words: str
    strength: float | None = None


@dataclass(frozen=True)
class Plot:
    """A figure as the page and the folder need it; the same numbers give the same bytes.

    Attributes:
        table: the CSV file with its numbers.
        marks: in the coordinates of its first axes.
    """

    name: str
    figure: Figure = field(repr=False)
    alt: str
    table: str
    marks: tuple[Mark, ...] = ()

    @property
    def svg(self) -> bytes:
        """Looks the same everywhere: its text is drawn."""
        return self._saved("svg", metadata={"Date": None, "Creator": None})

    @property
    def svg_with_text(self) -> bytes:
        """Its text is text, without a font of its own, and its ground is left out."""
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            return self._saved("svg", metadata={"Date": None, "Creator": None}, transparent=True)

    @property
    def png(self) -> bytes:
        return self._saved("png", metadata={"Software": None}, dpi=120)

    def place(self, mark: Mark) -> tuple[float, float]:
        """Where a mark is in its axes: 0 to 1 from the left and from below, beyond that outside."""
        axes = self.figure.axes[0]
        axes.get_xlim(), axes.get_ylim()  # matplotlib settles them when it is asked
        x, y = axes.transAxes.inverted().transform(axes.transData.transform((mark.x, mark.y)))
        return float(x), float(y)

    def on_paper(self, x: float, y: float) -> tuple[float, float]:
        """A place in its axes as points from the left and from the top, as SVG counts."""
        left, bottom, width, height = self.figure.axes[0].get_position().bounds
        wide, high = (72 * inches for inches in self.figure.get_size_inches())
        return float(wide * (left + x * width)), float(high * (1 - bottom - y * height))

    def _saved(self, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(file, format=kind, **options)
        return file.getvalue()


def plots_of(run: Run, report: Report, normalised: bool) -> Iterator[Plot]:
    """All plots of a run; `report` is its `report_of`, and `normalised` prints shares instead of counts."""
    yield from _of_base(report.base, bool(report.adapters), normalised)
    if not (losses := run.base.losses()):
        raise AlteredError(f"{run.base.folder / HISTORY} holds no losses.", RESTORE)
    yield _loss("base", losses, "Loss of every pretraining step.")
    if len(report.side_by_side) > len(report.adapters[:1]):  # several, or only a checkpoint
        yield _side_by_side(report.side_by_side)
    for section in report.adapters:
        yield from _confusions(section, normalised)
        yield _errors(section)
        yield _trade(section)
        yield _strength_curve(section)
        yield from _of_training(run.adapter(section.name), section)


def _of_base(base: BaseSection, adapted: bool, normalised: bool) -> Iterator[Plot]:
    yield Plot(
        "base-confusion",
        plots.confusion(base.confusion, "Base: test images", normalised=normalised),
        f"Confusion matrix of the base: {base.errors.count} of {base.errors.of} test images are wrong.",
        "base-confusion.csv",
    )
    if not adapted:
        wrong = [digit.count for digit in base.digits]
        marks = tuple(Mark(one.digit, one.count, f"{one.digit}: {one.count} of {one.of} wrong") for one in base.digits)
        alt = f"Wrong test images per digit: {wrong}."
        yield Plot("base-errors", plots.errors_per_digit(wrong), alt, "base-digits.csv", marks)


def _side_by_side(lines: Sequence[Line]) -> Plot:
    ways = [(label(line), line.before, line.after) for line in lines]
    words = [
        f"{name}: {before.missed} to {after.missed} of its digit,"
        f" {plots.others(before)} to {plots.others(after)} of the others"
        for name, before, after in ways
    ]
    marks = tuple(
        Mark(counts.missed, plots.others(counts), f"{name}, {when}: {_counted(counts)}")
        for name, before, after in ways
        for when, counts in (("before", before), ("after", after))
    )
    alt = f"Wrong test images. {'; '.join(words)}."
    return Plot("side-by-side", plots.side_by_side(ways), alt, "adapters.csv", marks)


def _confusions(section: AdapterSection, normalised: bool) -> Iterator[Plot]:
    name, head = section.name, section.headline
    before, after = section.confusion.before, section.confusion.after
    darkest = int((np.array(before) * ~np.eye(10, dtype=bool)).max())  # one scale for both, so that damage shows
    if section.on_top_of:
        yield Plot(
            f"{name}-before",
            plots.confusion(before, "Before: test images", normalised=normalised),
            f"Confusion matrix before, with {', '.join(section.on_top_of)}: {head.before.errors} errors.",
            f"{name}-confusion.csv",
        )
    yield Plot(
        f"{name}-after",
        plots.confusion(after, f"With {name}: test images", darkest, normalised),
        f"Confusion matrix with {name}: {head.after.errors} errors.",
        f"{name}-confusion.csv",
    )
    flows = ", ".join(f"{flow.true} taken for {flow.predicted} {signed(flow.change)}" for flow in section.flows)
    yield Plot(
        f"{name}-change",
        plots.confusion_change(before, after, "Change: after − before", normalised),
        f"Change of the confusion matrix. More than chance: {flows or 'nothing'}.",
        f"{name}-confusion.csv",
    )


def _errors(section: AdapterSection) -> Plot:
    rows = (
        f"{row.digit}: {row.before} to {row.after}{'' if row.is_chance else ' (more than chance)'}"
        for row in section.digits
    )
    words = f"Change of the error rate of every digit, with intervals. Wrong test images: {', '.join(rows)}."
    marks = tuple(
        Mark(100 * row.net / max(1, row.images), height, f"{row.digit}: {row.fixed} fixed, {row.broken} broken")
        for height, row in enumerate(plots.from_below(section.digits, section.digit))
    )
    figure = plots.change_per_digit(section.digits, section.digit)
    return Plot(f"{section.name}-errors", figure, words, f"{section.name}-digits.csv", marks)


def _trade(section: AdapterSection) -> Plot:
    name, digit, head, strength_curve = section.name, section.digit, section.headline, section.strength_curve
    points: list[tuple[str, Counts]] = [("before", head.before), (name, head.after)]
    points.append((f"shifted threshold, chosen on {section.threshold.chosen_on}", section.threshold))
    points += [(label(one), one) for one in section.yardsticks]
    if strength_curve.recommended not in (0, 1):  # those are before and after
        points.append((f"recommended strength {strength_curve.recommended:g}", strength_curve.test))
    curves = {
        f"a number added to the logit of {digit}": section.trade.threshold,
        f"{name} at strengths 0 to 1.5": section.trade.strength,
    }
    words = "; ".join(f"{way}: {counts.missed} missed, {counts.errors} errors" for way, counts in points)
    named = [Mark(counts.missed, counts.errors, f"{way}: {_counted(counts)}") for way, counts in points]
    shifts = [
        Mark(one.missed, one.errors, f"{one.shift:+.2f} on the logit of {digit}: {_counted(one)}".replace("-", "−"))
        for one in section.trade.threshold
    ]
    strengths = [
        Mark(one.missed, one.errors, f"strength {one.strength:g}: {_counted(one)}", one.strength)
        for one in section.trade.strength
    ]
    alt = f"Missed {digit}s against all errors. {words}."
    figure = plots.trade(curves, points, digit)
    return Plot(f"{name}-trade", figure, alt, f"{name}-trade.csv", (*shifts, *named, *strengths))


def _strength_curve(section: AdapterSection) -> Plot:
    digit, strength_curve = section.digit, section.strength_curve
    return Plot(
        f"{section.name}-strength_curve",
        plots.strength_curve(strength_curve, digit),
        f"Accuracy, recall of {digit} and of the others by strength; recommended is {strength_curve.recommended:g}.",
        f"{section.name}-strength_curve.csv",
        tuple(
            Mark(one.strength, 100 * share, f"strength {one.strength:g}: {100 * share:.2f} % {words}", one.strength)
            for one in strength_curve.points
            for share, words in (
                (one.accuracy, "accuracy"),
                (one.recall, f"recall of {digit}"),
                (one.recall_of_others, "recall of the others"),
            )
        ),
    )


def _of_training(adapter: Artifact, section: AdapterSection) -> Iterator[Plot]:
    """What the first layer learnt, and how the loss fell."""
    name, directions = section.name, adapter.pictures()["directions"]
    if len(directions):
        yield Plot(
            f"{name}-directions",
            plots.directions(directions, section.layers[0].singular_values),
            "Weights of each pixel in what the first layer's update looks for, the strongest direction first.",
            f"{name}-layers.csv",
        )
    if losses := adapter.losses():  # an extracted adapter was not trained
        yield _loss(name, losses, "Loss of every fine-tuning step.")


def _loss(name: str, losses: Sequence[float], alt: str) -> Plot:
    """About fifty marks on the running mean."""
    window, mean = plots.running_mean(losses)
    marks = tuple(
        Mark(i + window, mean[i], f"step {i + window}: {mean[i]:.3g}")
        for i in range(0, len(mean), max(1, len(mean) // 50))
    )
    return Plot(f"{name}-loss", plots.loss_curve(losses), alt, f"{name}-loss.csv", marks)


def _counted(counts: Counts) -> str:
    return f"{counts.missed} missed, {counts.false_alarms} false_alarms, {counts.errors} errors in all"
