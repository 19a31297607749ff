"""A run → one self-contained HTML page, its plots as PNG and SVG, and its numbers as JSON and CSV.

Every number on the page stands in `summarise_run`'s document; beside it, only stored pictures and losses are drawn.
"""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from lora_mnist.evaluation.verdict import paired
from lora_mnist.files import to_json
from lora_mnist.report.figures import plots_of, signed
from lora_mnist.report.numbers import COUNTS, summarise_run
from lora_mnist.report.reproduce import commands, configs
from lora_mnist.runs.rundir import Run


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
    shown = {plot.name: plot for plot in plots_of(run, summary, normalised)}
    svgs = {name: plot.svg for name, plot in shown.items()}
    environment = Environment(
        loader=PackageLoader("lora_mnist.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "signed": signed, "shown": _shown, "interval": _interval, "p": _p}
    page = environment.get_template("report.html.j2").render(
        **summary,
        plots={name: {"source": _data("image/svg+xml", svg), "alt": shown[name].alt} for name, svg in svgs.items()},
        pictures={section["name"]: _thumbnails(run, section["name"]) for section in summary["adapters"]},
        normalised=normalised,
        paired=paired,
        commands=commands(summary),
    )
    files = {"index.html": page.encode(), "report.json": to_json(summary)}
    files |= {f"{name}.svg": svg for name, svg in svgs.items()}
    files |= {f"{name}.png": plot.png for name, plot in shown.items()}
    return run.save_report(files | _tables(summary) | configs(summary))


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


def _percent(share: float, places: int = 2) -> str:
    return f"{100 * share:.{places}f} %"


def _interval(share: Mapping[str, Any], places: int = 2) -> str:
    return f"{100 * share['low']:.{places}f} to {100 * share['high']:.{places}f} %"


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 1e-4 else "< 0.0001"


def _shown(value: Any) -> str:
    """A setting as it would be typed."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
