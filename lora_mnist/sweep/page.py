"""An answer → one self-contained HTML page, with its plots, and its numbers as JSON and CSV beside it."""

import base64
import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lora_mnist.report.page import LEVELS
from lora_mnist.report.plots import Plot, inline
from lora_mnist.runs.atomic import new_folder, to_json, write_file
from lora_mnist.sweep.answer import Answer, Cell
from lora_mnist.sweep.drawings import TABLE, plots_of
from lora_mnist.sweep.references import ON_VAL
from lora_mnist.sweep.rows import Row
from lora_mnist.sweep.tables import markdown
from lora_mnist.sweep.words import METRIC_NAMES, capital, estimate, images, points, rule, scope, sentences, title

TEXT = "tables.md"
INLINE = ("by-setting", "trade")  # the third plot is a table there
PAGE = "report"  # folder in that of the sweep
TITLES = {"mnist": "MNIST", "digits": "scikit-learn's handwritten digits (not MNIST)"}


def write_page(answer: Answer, rows: Sequence[Row], folder: Path) -> Path:
    """Write the page of `answer`, which `rows` give, into the folder of its sweep and return it. Raises DiskError."""
    plots = {plot.name: plot for plot in plots_of(answer)}
    files = {"index.html": _page(answer, plots), "answer.json": to_json(answer.model_dump(mode="json"))}
    files |= {TABLE: _table(answer).encode(), TEXT: markdown(answer, rows).encode()}
    for name, plot in plots.items():
        files |= {f"{name}.svg": plot.svg, f"{name}.png": plot.png}
    with new_folder(folder / PAGE) as fresh:
        for name, content in files.items():
            write_file(fresh / name, content)
    return folder / PAGE / "index.html"


def shade(cell: Cell, reach: float) -> str:
    """The class of a cell of the map: purple where there are fewer than the base has, orange where there are more."""
    if not cell.change or not reach:
        return ""
    level = min(LEVELS, max(1, round(LEVELS * abs(cell.change) / reach)))
    return f"{'o' if cell.change > 0 else 'p'}{level}"


def _page(answer: Answer, plots: Mapping[str, Plot]) -> bytes:
    loader = ChoiceLoader([PackageLoader("lora_mnist.sweep"), PackageLoader("lora_mnist.report")])
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"estimate": estimate, "points": points, "digest": _digest}
    reach = max(abs(cell.change) for cell in answer.cells)
    page = environment.get_template("sweep.html.j2").render(
        answer=answer,
        drawings={name: Markup(inline(plots[name])) for name in INLINE},
        cells={(cell.digit, cell.variant): cell for cell in answer.cells},
        shade=lambda cell: shade(cell, reach),
        sentences=sentences(answer),
        rule=rule(answer),
        metric=METRIC_NAMES[answer.metric],
        shown=(ON_VAL, *(one.name for one in answer.variants)),
        scope=scope(answer),
        images=images(answer),
        title=title(answer),
        dataset=TITLES[answer.dataset],
        capital=capital,
        style=loader.get_source(environment, "report.css")[0],
        winners={digit: _winner(answer, digit) for digit in answer.digits},
        table=TABLE,
    )
    return page.encode()


def _winner(answer: Answer, digit: int) -> str:
    """The variant with the lowest mean for a digit."""
    return min((cell for cell in answer.cells if cell.digit == digit), key=lambda cell: cell.value).variant


def _table(answer: Answer) -> str:
    """A line a variant: its counts and those of the threshold, each with half of its interval."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    counts = [f"{who}{name}{part}" for who in ("", "threshold_") for name in METRIC_NAMES for part in ("", "_half")]
    writer.writerow(["variant", answer.by, "parameters", "jobs", "kept", *counts, "worst_other", "worst_other_half"])
    for one in answer.variants:
        known = [part[name] for part in (one.after, one.threshold) for name in METRIC_NAMES]
        pairs = [(number.mean, number.half) for number in (*known, one.worst)]
        numbers = [number for pair in pairs for number in pair]
        writer.writerow([one.name, one.by, one.parameters, one.jobs, one.kept, *numbers])
    return text.getvalue()


def _digest(text: str) -> Markup:
    """As a content security policy names the one style that is allowed."""
    return Markup(f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}")
