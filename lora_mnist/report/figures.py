"""The plots of a report, each with its text alternative: which there are, and of which numbers."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lora_mnist.report import plots
from lora_mnist.report.numbers import COUNTS
from lora_mnist.runs.rundir import Run


@dataclass(frozen=True)
class Plot:
    """A figure as the page and the folder need it; the same numbers give the same bytes."""

    name: str
    figure: Figure = field(repr=False)
    alt: str

    @property
    def svg(self) -> bytes:
        return self._saved("svg", metadata={"Date": None, "Creator": None})

    @property
    def png(self) -> bytes:
        return self._saved("png", metadata={"Software": None}, dpi=120)

    def _saved(self, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(file, format=kind, **options)
        return file.getvalue()


def plots_of(run: Run, summary: Mapping[str, Any], normalised: bool) -> Iterator[Plot]:
    """All plots of a run; `summary` is its `summarise_run`, and `normalised` prints shares instead of counts."""
    base = summary["base"]
    yield Plot(
        "base-confusion",
        plots.confusion(base["confusion"], "Base: test images", normalised=normalised),
        f"Confusion matrix of the base: {base['errors']['count']} of {base['errors']['of']} test images are wrong.",
    )
    if not summary["adapters"]:
        wrong = [row["count"] for row in base["digits"]]
        yield Plot("base-errors", plots.errors_per_digit(wrong, None, None), f"Wrong test images per digit: {wrong}.")
    yield Plot("base-loss", plots.loss_curve(run.losses()), "Loss of every pretraining step.")
    if len(summary["side_by_side"]) > len(summary["adapters"][:1]):  # several, or only a network trained whole
        yield _side_by_side(summary["side_by_side"])
    for section in summary["adapters"]:
        yield from _confusions(section, normalised)
        yield _errors(section)
        yield _trade(section)
        yield _dial(section)
        yield from _of_training(run, section)


def _side_by_side(lines: Sequence[Mapping[str, Any]]) -> Plot:
    rows = [
        {
            "name": _label(line),
            **{when: {"missed": line[when]["missed"], "others": _others(line[when])} for when in ("before", "after")},
        }
        for line in lines
    ]
    words = [
        f"{row['name']}: {row['before']['missed']} to {row['after']['missed']} of its digit,"
        f" {row['before']['others']} to {row['after']['others']} of the others"
        for row in rows
    ]
    return Plot("side-by-side", plots.side_by_side(rows), f"Wrong test images. {'; '.join(words)}.")


def _confusions(section: Mapping[str, Any], normalised: bool) -> Iterator[Plot]:
    name, head = section["name"], section["headline"]
    before, after = section["confusion"]["before"], section["confusion"]["after"]
    errors = {when: head["errors"][when]["count"] for when in ("before", "after")}
    darkest = int((np.array(before) * ~np.eye(10, dtype=bool)).max())  # one scale for both, so that damage shows
    if section["on_top_of"]:
        yield Plot(
            f"{name}-before",
            plots.confusion(before, "Before: test images", normalised=normalised),
            f"Confusion matrix before, with {', '.join(section['on_top_of'])}: {errors['before']} errors.",
        )
    yield Plot(
        f"{name}-after",
        plots.confusion(after, f"With {name}: test images", darkest, normalised),
        f"Confusion matrix with {name}: {errors['after']} errors.",
    )
    flows = ", ".join(f"{f['true']} taken for {f['predicted']} {signed(f['change'])}" for f in section["flows"])
    yield Plot(
        f"{name}-change",
        plots.confusion_change(before, after, "Change: after − before", normalised),
        f"Change of the confusion matrix: {flows or 'none'}.",
    )


def _errors(section: Mapping[str, Any]) -> Plot:
    before, after = ([row[when] for row in section["digits"]] for when in ("before", "after"))
    words = f"Wrong test images per digit, 0 to 9: before {before}, after {after}."
    return Plot(f"{section['name']}-errors", plots.errors_per_digit(before, after, section["digit"]), words)


def _trade(section: Mapping[str, Any]) -> Plot:
    name, digit, head, dial = (section[key] for key in ("name", "digit", "headline", "dial"))
    points = [("before", _counts(head, "before")), (name, _counts(head, "after"))]
    points.append((f"one number, chosen on {section['threshold']['chosen_on']}", section["threshold"]))
    points += [(_label(one), one) for one in section["yardsticks"]]
    if dial["recommended"] not in (0, 1):  # those are before and after
        points.append((f"recommended strength {dial['recommended']:g}", dial["test"]))
    curves = {f"a number added to the logit of {digit}": section["trade"]["threshold"]}
    curves[f"{name} at strengths 0 to 1.5"] = section["trade"]["strength"]
    words = "; ".join(f"{label}: {one['missed']} missed, {one['errors']} errors" for label, one in points)
    return Plot(f"{name}-trade", plots.trade(curves, points, digit), f"Missed {digit}s against all errors. {words}.")


def _dial(section: Mapping[str, Any]) -> Plot:
    digit, dial = section["digit"], section["dial"]
    return Plot(
        f"{section['name']}-dial",
        plots.dial(dial["points"], dial["recommended"], digit, dial["measured_on"]),
        f"Accuracy, recall of {digit} and recall of the others by strength; recommended is {dial['recommended']:g}.",
    )


def _of_training(run: Run, section: Mapping[str, Any]) -> Iterator[Plot]:
    """What the first layer learnt, and how the loss fell."""
    name, place = section["name"], run.adapter(section["name"])
    directions = run.pictures(place)["directions"]
    if len(directions):
        yield Plot(
            f"{name}-directions",
            plots.directions(directions, section["layers"][0]["singular_values"]),
            "Weights of each pixel in what the first layer's update looks for, the strongest direction first.",
        )
    if losses := run.losses(place):  # an extracted adapter was not trained
        yield Plot(f"{name}-loss", plots.loss_curve(losses), "Loss of every fine-tuning step.")


def _counts(headline: Mapping[str, Any], when: str) -> dict[str, int]:
    return {key: headline[key][when]["count"] for key in COUNTS}


def _label(line: Mapping[str, Any]) -> str:
    """An adapter and a network may have the same name."""
    return line["name"] + (" (all weights)" if line["method"] == "full" else "")


def _others(counts: Mapping[str, int]) -> int:
    return counts["errors"] - counts["missed"]


def signed(change: int) -> str:
    """With a sign, and a minus that is one."""
    return f"{change:+,}".replace("-", "−") if change else "0"
