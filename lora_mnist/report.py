"""A run → PNG files and one self-contained HTML page. It reads what the stages stored and computes nothing anew."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from lora_mnist import plots
from lora_mnist.errors import RunError
from lora_mnist.rundir import Run
from lora_mnist.verdict import paired, verdict


@dataclass(frozen=True)
class Picture:
    """A PNG beside the page and inside it."""

    name: str
    png: bytes
    alt: str

    @property
    def source(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def write_report(folder: Path) -> Path:
    """Write the report of the run in `folder` and return its page.

    Raises:
        RunError: there is no base, or a file is damaged or belongs to another base.
    """
    run = Run(folder)
    run.require_base()
    names = list(reversed(run.adapter_names()))  # the newest first
    base = run.evaluation()
    for name in names:
        run.require_adapter(name)
        if run.evaluation(run.adapter(name))["base_seal"] != base["base_seal"]:
            raise RunError(
                f"Adapter {name!r} was trained on another base.", f"Remove {run.adapter(name)}, or train it again."
            )
    run.require_writable()
    sections = [_adapter_section(run, name) for name in names]
    base_pictures = _base_pictures(run, base["splits"]["test"])
    environment = Environment(loader=PackageLoader("lora_mnist"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = _shown
    environment.filters["percent"] = lambda share, places=2: f"{100 * share:.{places}f} %"
    page = environment.get_template("report.html.j2").render(
        record=run.record(), base=base, sections=sections, pictures=base_pictures
    )
    pictures = [*base_pictures, *(picture for section in sections for picture in section["pictures"])]
    return run.save_report({"index.html": page.encode(), **{picture.name: picture.png for picture in pictures}})


def _base_pictures(run: Run, test: Mapping[str, Any]) -> list[Picture]:
    return [
        _picture(
            "base-confusion",
            plots.confusion(test["confusion"], "Base: test images by true and predicted digit"),
            "Confusion matrix of the base on the test images; its counts stand in evaluation.json.",
        ),
        _picture(
            "base-errors",
            plots.errors_per_digit(test["wrong"], None, None, "Base: wrong test images per digit"),
            f"Bars of the wrong test images per digit, 0 to 9: {', '.join(map(str, test['wrong']))}.",
        ),
        _picture(
            "base-loss",
            plots.loss_curve(run.losses(), "Base: loss while pretraining"),
            "Loss of every pretraining step.",
        ),
    ]


def _adapter_section(run: Run, name: str) -> dict[str, Any]:
    after = run.evaluation(run.adapter(name))["splits"]["test"]
    document = run.document(run.adapter(name), "finetune.json")
    below = document["on_top_of"]
    if missing := [one for one in below if one not in run.adapter_names()]:
        raise RunError(
            f"{name} was trained on top of {', '.join(missing)}, which is not in the run.",
            f"Restore that, or remove {run.adapter(name)}.",
        )
    before = run.evaluation(run.adapter(below[-1]) if below else None)["splits"]["test"]
    analysis = run.document(run.adapter(name), "analysis.json")
    comparison, threshold = analysis["splits"], analysis["threshold"]
    digit = document["digit"]
    start = " + ".join(["base", *below]) if len(below) < 2 else f"base + {len(below)} adapters"
    counts = comparison["test"]
    return {
        "name": name,
        "document": document,
        "comparison": comparison,
        "verdict": verdict(counts, digit, threshold["splits"]["test"]),
        "threshold": threshold,
        "twin": analysis.get("twin"),
        "paired": paired,
        "full": _full_fine_tunings(run, digit) if not below else [],
        "before": before,
        "after": after,
        "pictures": _adapter_pictures(run, name, digit, start, before, after, counts),
    }


def _adapter_pictures(
    run: Run,
    name: str,
    digit: int,
    start: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    counts: Mapping[str, Any],
) -> list[Picture]:
    """Confusion before, after and its change, errors per digit, and the loss; `start` names what it was put on."""
    largest = max(
        matrix[row][column]
        for matrix in (before["confusion"], after["confusion"])
        for row in range(10)
        for column in range(10)
        if row != column
    )
    pictures = [
        _picture(
            f"{name}-before",
            plots.confusion(before["confusion"], f"Before: {start}, test images", largest),
            f"Confusion before: {counts['before']['errors']} errors, {counts['before']['missed']} missed {digit}s.",
        ),
        _picture(
            f"{name}-after",
            plots.confusion(after["confusion"], f"After: {start} + {name}, test images", largest),
            f"Confusion after: {counts['after']['errors']} errors, {counts['after']['missed']} missed {digit}s.",
        ),
        _picture(
            f"{name}-change",
            plots.confusion_change(before["confusion"], after["confusion"], "Change: after − before"),
            "Difference of the two confusion matrices, cell by cell.",
        ),
        _picture(
            f"{name}-errors",
            plots.errors_per_digit(before["wrong"], after["wrong"], digit, "Wrong test images per digit"),
            f"Bars per digit 0 to 9: before {before['wrong']}, after {after['wrong']}.",
        ),
    ]
    if losses := run.losses(run.adapter(name)):  # an extracted adapter was not trained
        figure = plots.loss_curve(losses, "Loss while fine-tuning")
        pictures.append(_picture(f"{name}-loss", figure, "Loss of every fine-tuning step."))
    return pictures


def _shown(value: Any) -> str:
    """A setting as it would be typed."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _full_fine_tunings(run: Run, digit: int) -> list[tuple[str, dict[str, int]]]:
    """In words, and by counts on `test`, every copy of the base that was trained whole on `digit`."""
    places = [run.checkpoint(name) for name in run.checkpoint_names()]
    tuned = [place for place in places if (place / "finetune.json").is_file()]
    return [
        (f"{place.name}: all weights trained", run.document(place, "analysis.json")["splits"]["test"]["after"])
        for place in tuned
        if run.document(place, "finetune.json")["digit"] == digit
    ]


def _picture(name: str, figure: Figure, alt: str) -> Picture:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, metadata={"Software": None})  # the same bytes for the same numbers
    return Picture(f"{name}.png", png.getvalue(), alt)
