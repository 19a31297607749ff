"""A run → one self-contained HTML page, its plots as PNG and SVG, its documents as JSON and its tables as CSV.

The templates read the documents that the run stores; what they need beside those is in `tables.AdapterResults`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lora_mnist.evaluation.results import Matrix
from lora_mnist.evaluation.significance import DIGIT_LEVEL, LEVEL, wilson
from lora_mnist.evaluation.verdict import paired
from lora_mnist.report.images import COLUMNS, Sheet, picture_source, png_source, sheet_of
from lora_mnist.report.tables import (
    AdapterResults,
    base_digit_rows,
    base_settings,
    commands,
    configs,
    confusion_changes,
    digit_rows,
    read_adapter,
    settings_of,
    strength_rows,
    tables_of,
)
from lora_mnist.runs.atomic import to_json
from lora_mnist.runs.listing import AdapterLine, adapter_lines, documents_of
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import RunDocuments

if TYPE_CHECKING:
    from lora_mnist.report.plots import Plot

LEVELS = 6  # shades of a colour in the page's style
NBSP = "\N{NO-BREAK SPACE}"


def write_report(run: Run, normalised: bool = False) -> Path:
    """Write the report of `run` and return its page.

    Args:
        normalised: print the confusion matrices as shares of each true digit instead of counts.

    Raises:
        BusyError: another command writes to the run.
        RunError: there is no base, or a file is damaged or belongs to another base.
    """
    from lora_mnist.report.plots import default_style, plots_of  # imports matplotlib, which takes its time

    with run.writing(), default_style():
        documents, lines = documents_of(run), adapter_lines(run)
        adapters = [read_adapter(run, one, documents.checkpoints) for one in documents.adapters]
        run.require_writable()
        plots = {plot.name: plot for plot in plots_of(run, adapters, lines, normalised)}
        files = {"index.html": _page(run, documents, adapters, lines, plots, normalised)}
        files["report.json"] = to_json(documents.model_dump(mode="json"))
        files |= tables_of(run, adapters, lines) | configs(documents)
        for name, plot in plots.items():
            files |= {f"{name}.svg": plot.svg, f"{name}.png": plot.png}
        return run.save_report(files)


def _page(
    run: Run,
    documents: RunDocuments,
    adapters: Sequence[AdapterResults],
    lines: Sequence[AdapterLine],
    plots: Mapping[str, "Plot"],
    normalised: bool,
) -> bytes:
    from lora_mnist.report.plots import inline

    everything = [documents.base, *documents.checkpoints, *documents.adapters]
    with_section = [line for line in reversed(lines) if line.method != "full"]  # the newest first, as sections are
    matrices = ("-confusion", "-before", "-after", "-change")  # tables in the page, which can be read out
    sheet = sheet_of(one.images for one in adapters)
    examples = {one.name: one.images.pictures["examples"] for one in adapters}
    taught = [one.name for one in adapters if one.stored.finetune.lesson]
    drawings = {name: run.adapter(name).labelled_drawings() for name in taught}
    page = environment().get_template("report.html.j2")
    text = page.render(
        documents=documents,
        adapters=adapters,
        by_name={one.name: one for one in adapters},
        lines=[*with_section, *(line for line in lines if line.method == "full")],
        latest=max(one.provenance.date for one in everything),
        normalised=normalised,
        tables={name: plot.table for name, plot in plots.items()},
        plots={name: Markup(inline(plot)) for name, plot in plots.items() if not name.endswith(matrices)},
        pictures={name: list(map(picture_source, images)) for name, images in examples.items()},
        drawings={name: [(label, picture_source(image)) for label, image in all] for name, all in drawings.items()},
        sheet=sheet and png_source(sheet.png),
        data=_data_for_script(adapters, sheet),
        script=source("report.js"),
        style=source("report.css"),
        commands=commands(documents),
    )
    return text.encode()


@cache
def environment() -> Environment:
    """The templates, with the functions and filters that they use."""
    made = Environment(
        loader=PackageLoader("lora_mnist.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {"percent": percent, "signed": signed, "p": p_value, "sure": rounded_probability}
    made.filters |= {"unbroken": unbroken, "policy_hash": policy_hash, "date": date, "setting_rows": setting_rows}
    rows = (base_digit_rows, digit_rows, strength_rows, confusion_changes, matrix_cells)
    made.globals |= {one.__name__: one for one in (*rows, interval, paired, settings_of, base_settings)}
    made.globals |= {"LEVEL": LEVEL, "DIGIT_LEVEL": DIGIT_LEVEL}
    return made


def source(name: str) -> str:
    """A file beside the templates, which is none itself."""
    loader = environment().loader
    assert loader is not None
    return loader.get_source(environment(), name)[0]


def _data_for_script(adapters: Sequence[AdapterResults], sheet: Sheet | None) -> str:
    """JSON that may stand in an element: what the slider and the images need.

    `images`: index, label and agreement by place on the sheet; and of every adapter its own `predictions` at them:
    place, then prediction, confidence and probability of the true digit, before and after, in whole per cent.
    """
    places = sheet.places if sheet else {}
    images: dict[int, list[int | None]] = {}
    by_adapter: dict[str, object] = {}
    for one in adapters:
        predictions = []
        for image in one.images.wrong:
            if (place := places.get(image.index)) is not None:
                images[place] = [image.index, image.label, image.agreed]
                packed = [place]
                for seen in (image.before, image.after):
                    packed += [seen.prediction, round(100 * seen.confidence), round(100 * seen.probability)]
                predictions.append(packed)
        strengths = [point.model_dump() for point in one.curve.splits["test"]]
        by_adapter[one.name] = {"strengths": strengths, "predictions": predictions}
    data = {"columns": COLUMNS, "images": [images[place] for place in range(len(images))], "adapters": by_adapter}
    # a name could hold </script>
    return json.dumps(data, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")


# Confusion matrices ---------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """`style` is a class of the page's style: b, o or p (blue, orange, purple) and a level, or `right`."""

    text: str
    style: str


def matrix_cells(
    before: Matrix, after: Matrix, which: Literal["before", "after", "change"], normalised: bool
) -> list[list[Cell]]:
    """The cells of one of three matrices (10, 10), rows true digit. Before and after share one scale, so that damage
    shows.

    Args:
        normalised: as shares of the true digit's images, in per cent.
    """
    change = [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(before, after, strict=True)]
    values = {"before": before, "after": after, "change": change}[which]
    scale = change if which == "change" else before
    darkest = max(1, *(abs(scale[row][column]) for row in range(10) for column in range(10) if row != column))
    style = {"before": ".1f", "after": ".1f", "change": "+.1f"} if normalised else {"change": "+,d"}
    matrix = []
    for row, counts in enumerate(values):
        images, cells = max(1, sum(before[row])), []
        for column, count in enumerate(counts):
            text = f"{100 * count / images if normalised else count:{style.get(which, 'd')}}".replace("-", "−")
            colour = "b" if which != "change" else "o" if count > 0 else "p"
            level = min(LEVELS, -(-LEVELS * abs(count) // darkest))
            shade = f"{colour}{level}" if count else ""
            cells.append(Cell(text if count else "·", "right" if row == column else shade))
        matrix.append(cells)
    return matrix


# Filters --------------------------------------------------------------------------------------------------------------


def percent(share: float, places: int = 2) -> str:
    """A share in per cent."""
    return f"{100 * share:.{places}f}{NBSP}%"


def interval(count: int, images: int) -> str:
    """Wilson's 95 % interval of a share, in per cent."""
    low, high = wilson(count, images)
    return f"{100 * low:.2f} to {100 * high:.2f}{NBSP}%"


def signed(change: int) -> str:
    """With a sign, and a minus that is one."""
    return f"{change:+,}".replace("-", "−") if change else "0"


def p_value(p: float) -> str:
    """What stands after the letter p."""
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"


def rounded_probability(probability: float) -> str:
    """In whole per cent, without claiming certainty."""
    text = f"{100 * probability:.0f}"
    return {"0": f"<{NBSP}1{NBSP}%", "100": f">{NBSP}99{NBSP}%"}.get(text, f"{text}{NBSP}%")


def unbroken(words: str) -> str:
    """With no line break between a number and its unit, or a p and its value."""
    return re.sub(r" (?=%)|(?<=\bp) (?=[=<])|(?<=\bp [=<]) ", NBSP, words)


def policy_hash(text: str) -> Markup:
    """As a content security policy names the one script, or style, that is allowed."""
    return Markup(f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}")


def date(stored: str, with_time: bool = False) -> str:
    """A stored date in words."""
    found = datetime.fromisoformat(stored)
    return f"{found.day} {found:%B %Y}" + (f", {found:%H:%M} UTC" if with_time else "")


def setting_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every setting by its dotted name, as it would be typed."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        nested = {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
        rows += [(key, ", ".join(map(str, one)) if isinstance(one, list) else str(one)) for key, one in nested.items()]
    return rows
