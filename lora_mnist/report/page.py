"""A run → one self-contained HTML page, its plots as PNG and SVG, and its numbers as JSON and CSV.

Every number on the page stands in the `Report`; beside it, only stored pictures and losses are drawn.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from lora_mnist.evaluation.verdict import paired
from lora_mnist.files import to_json
from lora_mnist.report.document import Report, Share
from lora_mnist.report.figures import Plot, plots_of, signed
from lora_mnist.report.numbers import report_of
from lora_mnist.report.reproduce import commands, configs
from lora_mnist.report.tables import tables_of
from lora_mnist.runs.rundir import Run, sole_writer
from lora_mnist.runs.saved import Saved
from lora_mnist.settings.strict import Document


@sole_writer
def write_report(run: Run, normalised: bool = False) -> Path:
    """Write the report of `run` and return its page.

    Args:
        normalised: print the confusion matrices as shares of each true digit instead of counts.

    Raises:
        BusyError: another command writes to the run.
        RunError: there is no base, or a file is damaged or belongs to another base.
    """
    report = report_of(run)
    run.require_writable()
    plots = {plot.name: plot for plot in plots_of(run, report, normalised)}
    svgs = {name: plot.svg for name, plot in plots.items()}
    files = {
        "index.html": _page(run, report, normalised, plots, svgs),
        "report.json": to_json(report.model_dump(mode="json")),
    }
    files |= {f"{name}.svg": svg for name, svg in svgs.items()}
    files |= {f"{name}.png": plot.png for name, plot in plots.items()}
    return run.save_report(files | tables_of(report) | configs(report))


def _page(run: Run, report: Report, normalised: bool, plots: Mapping[str, Plot], svgs: Mapping[str, bytes]) -> bytes:
    environment = Environment(
        loader=PackageLoader("lora_mnist.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "signed": signed, "rows": _rows, "interval": _interval, "p": _p}
    page = environment.get_template("report.html.j2").render(
        **dict(report),
        plots={name: {"source": _data("image/svg+xml", svg), "alt": plots[name].alt} for name, svg in svgs.items()},
        pictures={section.name: _thumbnails(run.adapter(section.name)) for section in report.adapters},
        normalised=normalised,
        paired=paired,
        commands=commands(report),
    )
    return page.encode()


def _thumbnails(adapter: Saved) -> list[str]:
    """The changed test images, in the order of `examples`, as the sources of <img>."""
    return [_data("image/png", _png(image)) for image in adapter.pictures()["examples"]]


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(255 - image).save(file, format="png")  # ink on paper
    return file.getvalue()


# Words ----------------------------------------------------------------------------------------------------------------


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _percent(share: float, places: int = 2) -> str:
    return f"{100 * share:.{places}f} %"


def _interval(share: Share, places: int = 2) -> str:
    return f"{100 * share.low:.{places}f} to {100 * share.high:.{places}f} %"


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 1e-4 else "< 0.0001"


def _rows(settings: Document) -> list[tuple[str, str]]:
    """Every setting that is there, by its dotted name, as it would be typed."""
    rows = []
    for name, value in settings.model_dump(mode="json", exclude_none=True).items():
        nested = {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
        rows += [(key, ", ".join(map(str, one)) if isinstance(one, list) else str(one)) for key, one in nested.items()]
    return rows
