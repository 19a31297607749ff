"""A run → one self-contained HTML page, its plots as PNG and SVG, and its numbers as JSON and CSV.

Every number on the page stands in `summarise_run`'s document; beside it, only stored pictures and losses are drawn.
"""

import base64
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from lora_mnist import plots
from lora_mnist.files import to_json
from lora_mnist.reproduce import commands, configs
from lora_mnist.rundir import Run
from lora_mnist.summary import COUNTS, summarise_run
from lora_mnist.verdict import paired


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


def write_report(folder: Path, normalised: bool = False) -> Path:
    """Write the report of the run in `folder` and return its page.

    Args:
        normalised: print the confusion matrices as shares of each true digit instead of counts.

    Raises:
        RunError: there is no base, or a file is damaged or belongs to another base.
    """
    run = Run(folder)
    summary = summarise_run(run)
    run.require_writable()
    shown = {plot.name: plot for plot in _plots(run, summary, normalised)}
    svgs = {name: plot.svg for name, plot in shown.items()}
    environment = Environment(
        loader=PackageLoader("lora_mnist"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "signed": _signed, "shown": _shown, "interval": _interval, "p": _p}
    page = environment.get_template("report.html.j2").render(
        **summary,
        plots={name: {"source": _data("image/svg+xml", svg), "alt": shown[name].alt} for name, svg in svgs.items()},
        pictures={section["name"]: _thumbnails(run, section["name"]) for section in summary["adapters"]},
        normalised=normalised,
        paired=paired,
        verdict_kind=_verdict_kind,
        commands=commands(summary),
    )
    files = {"index.html": page.encode(), "report.json": to_json(summary)}
    files |= {f"{name}.svg": svg for name, svg in svgs.items()}
    files |= {f"{name}.png": plot.png for name, plot in shown.items()}
    return run.save_report(files | _tables(summary) | configs(summary))


# Plots ----------------------------------------------------------------------------------------------------------------


def _plots(run: Run, summary: Mapping[str, Any], normalised: bool) -> Iterator[Plot]:
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
        yield from _adapter_plots(run, section, normalised)


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


def _adapter_plots(run: Run, section: Mapping[str, Any], normalised: bool) -> Iterator[Plot]:
    name, digit, head = section["name"], section["digit"], section["headline"]
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
    flows = ", ".join(f"{f['true']} taken for {f['predicted']} {_signed(f['change'])}" for f in section["flows"])
    yield Plot(
        f"{name}-change",
        plots.confusion_change(before, after, "Change: after − before", normalised),
        f"Change of the confusion matrix: {flows or 'none'}.",
    )
    wrong = {when: [row[when] for row in section["digits"]] for when in ("before", "after")}
    yield Plot(
        f"{name}-errors",
        plots.errors_per_digit(wrong["before"], wrong["after"], digit),
        f"Wrong test images per digit, 0 to 9: before {wrong['before']}, after {wrong['after']}.",
    )
    points = [("before", _counts(head, "before")), (name, _counts(head, "after"))]
    points.append((f"one number, chosen on {section['threshold']['chosen_on']}", section["threshold"]))
    points += [(_label({**one, "method": one["kind"]}), one) for one in section["yardsticks"]]
    if section["dial"]["recommended"] not in (0, 1):  # those are before and after
        points.append((f"recommended strength {section['dial']['recommended']:g}", section["dial"]["test"]))
    curves = {f"a number added to the logit of {digit}": section["trade"]["threshold"]}
    curves[f"{name} at strengths 0 to 1.5"] = section["trade"]["strength"]
    words = "; ".join(f"{label}: {one['missed']} missed, {one['errors']} errors" for label, one in points)
    yield Plot(f"{name}-trade", plots.trade(curves, points, digit), f"Missed {digit}s against all errors. {words}.")
    dial = section["dial"]
    yield Plot(
        f"{name}-dial",
        plots.dial(dial["points"], dial["recommended"], digit, dial["measured_on"]),
        f"Accuracy, recall of {digit} and recall of the others by strength; recommended is {dial['recommended']:g}.",
    )
    directions = run.pictures(run.adapter(name))["directions"]
    if len(directions):
        values = section["layers"][0]["singular_values"]
        yield Plot(
            f"{name}-directions",
            plots.directions(directions, values),
            "Weights of each pixel in what the first layer's update looks for, the strongest direction first.",
        )
    if losses := run.losses(run.adapter(name)):  # an extracted adapter was not trained
        yield Plot(f"{name}-loss", plots.loss_curve(losses), "Loss of every fine-tuning step.")


def _thumbnails(run: Run, name: str) -> list[str]:
    """The changed test images, in the order of `examples`, as the sources of <img>."""
    return [_data("image/png", _png(image)) for image in run.pictures(run.adapter(name))["examples"]]


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(255 - image).save(file, format="png")  # ink on paper
    return file.getvalue()


# Files beside the page ------------------------------------------------------------------------------------------------


def _tables(summary: Mapping[str, Any]) -> dict[str, bytes]:
    files = {"adapters.csv": [_flat(line) for line in summary["side_by_side"]]}
    for section in summary["adapters"]:
        matrices = section["confusion"]
        files[f"{section['name']}-digits.csv"] = section["digits"]
        files[f"{section['name']}-confusion.csv"] = [
            {"true": row, "predicted": column, **{when: matrix[row][column] for when, matrix in matrices.items()}}
            for row in range(10)
            for column in range(10)
        ]
        files[f"{section['name']}-dial.csv"] = section["dial"]["points"]
        files[f"{section['name']}-trade.csv"] = [
            {"way": way, "amount": one.get("shift", one.get("strength")), **{key: one[key] for key in COUNTS}}
            for way, curve in section["trade"].items()
            for one in curve
        ]
    return {name: _csv(rows) for name, rows in files.items() if rows}


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """Counts before and after as columns of their own."""
    row = {key: " ".join(value) if isinstance(value, list) else value for key, value in line.items()}
    for when in ("before", "after"):
        row |= {f"{key}_{when}": count for key, count in row.pop(when).items()}
    return row


# Words ----------------------------------------------------------------------------------------------------------------


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _counts(headline: Mapping[str, Any], when: str) -> dict[str, int]:
    return {key: headline[key][when]["count"] for key in COUNTS}


def _label(line: Mapping[str, Any]) -> str:
    """An adapter and a network may have the same name."""
    return line["name"] + (" (all weights)" if line["method"] == "full" else "")


def _others(counts: Mapping[str, int]) -> int:
    return counts["errors"] - counts["missed"]


def _verdict_kind(verdict: str) -> str:
    return "help" if verdict.startswith("A repair") else "harm"


def _percent(share: float, places: int = 2) -> str:
    return f"{100 * share:.{places}f} %"


def _interval(share: Mapping[str, Any], places: int = 2) -> str:
    return f"{100 * share['low']:.{places}f} to {100 * share['high']:.{places}f} %"


def _signed(change: int) -> str:
    return f"{change:+,}".replace("-", "−") if change else "0"


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 1e-4 else "< 0.0001"


def _shown(value: Any) -> str:
    """A setting as it would be typed."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
