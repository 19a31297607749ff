"""A run → one self-contained HTML page, its plots as PNG and SVG, its documents as JSON and its tables as CSV.

The templates read the documents that the run stores; what they need beside those is in `tables.AdapterResults`.
"""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lora_mnist.evaluation.results import Matrix
from lora_mnist.evaluation.significance import LEVEL, format_p, wilson
from lora_mnist.evaluation.verdict import control_sentence
from lora_mnist.report import tables
from lora_mnist.report.images import COLUMNS, picture_source, sheet_of
from lora_mnist.report.plots import BLUE, GREY, INK, ORANGE, SERIES, Plot, default_style, plots_of
from lora_mnist.report.tables import AdapterResults, read_adapter
from lora_mnist.runs.atomic import to_json
from lora_mnist.runs.listing import adapter_lines, documents_of
from lora_mnist.runs.run import Run
from lora_mnist.settings.layers import DATASETS

LEVELS = 6  # shades of a colour in the page's style
NBSP = "\N{NO-BREAK SPACE}"
PAGE_COLOURS = {  # what the page's style has in place of a colour, so that plots follow light and dark
    "#000000": "currentColor",
    INK: "currentColor",
    GREY: "var(--quiet)",
    "#ffffff": "var(--paper)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES) if colour not in (BLUE, ORANGE)},
}
MARK_RADIUS = 7  # points: how near the pointer has to be


def write_report(run: Run, normalised: bool = False) -> Path:
    """Write the report of `run` and return its page.

    Args:
        normalised: print the confusion matrices as shares of each true digit instead of counts.

    Raises:
        BusyError: another command writes to the run.
        RunError: there is no base, or a file is damaged or belongs to another base.
    """
    with run.writing(), default_style():
        documents, lines = documents_of(run), adapter_lines(run)
        adapters = [read_adapter(run, one, documents.checkpoints) for one in documents.adapters]
        run.require_writable()
        plots = {plot.name: plot for plot in plots_of(run, adapters, lines, normalised)}
        sheet, places = sheet_of(one.images for one in adapters)
        with_section = [line for line in reversed(lines) if line.method != "full"]  # the newest first, as sections are
        template = environment().get_template("report.html.j2")
        page = template.render(
            documents=documents,
            adapters=adapters,
            by_name={one.name: one for one in adapters},
            lines=[*with_section, *(line for line in lines if line.method == "full")],
            normalised=normalised,
            exports=sorted(page.name for page in run.exports.glob("*.html")),
            plots=plots,
            sheet=sheet,
            data=_data_for_script(adapters, places),
            script=template_file("report.js"),
            style=template_file("report.css"),
            lora_picture=base64.b64encode(template_file("lora.svg").encode()).decode(),
            commands=tables.commands(documents),
        )
        files = {"index.html": page.encode(), "report.json": to_json(documents.model_dump(mode="json"))}
        files |= tables.tables_of(run, adapters, lines) | tables.configs(documents)
        for name, plot in plots.items():
            files |= {f"{name}.svg": plot.svg, f"{name}.png": plot.png}
        return run.save_report(files)


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
    filters = (percent, signed, keep_together, policy_hash, date, setting_rows, inline_svg, picture_source)
    made.filters |= {one.__name__: one for one in filters} | {"p": format_p, "sure": rounded_probability}
    rows = (tables.base_digit_rows, tables.digit_rows, tables.score_rows, tables.strength_rows)
    settings = (tables.settings_of, tables.base_settings)
    others = (tables.confusion_changes, matrix_cells, interval, control_sentence)
    made.globals |= {one.__name__: one for one in (*rows, *settings, *others)}
    made.globals |= {"LEVEL": LEVEL, "DATASETS": DATASETS}
    return made


def template_file(name: str) -> str:
    """A file beside the templates, which is none itself."""
    return resources.files(__package__).joinpath("templates", name).read_text("utf-8")


def _data_for_script(adapters: Sequence[AdapterResults], places: Mapping[int, int]) -> str:
    """JSON that may stand in an element: what the slider and the images need.

    `images`: index, label and agreement by place on the sheet; and of every adapter its own `predictions` at them:
    place, then prediction, confidence and probability of the true digit, before and after, in whole per cent.
    """
    images: dict[int, list[int | None]] = {}
    by_adapter: dict[str, object] = {}
    for one in adapters:
        predictions = []
        for image in one.images.wrong:
            if (place := places.get(image.index)) is not None:
                images[place] = [image.index, image.label, image.agreed]
                row = [place]
                for guess in (image.before, image.after):
                    row += [guess.prediction, round(100 * guess.confidence), round(100 * guess.probability)]
                predictions.append(row)
        strengths = [point.model_dump() for point in one.curve.splits["test"]]
        by_adapter[one.name] = {"strengths": strengths, "predictions": predictions}
    data = {"columns": COLUMNS, "images": [images[place] for place in range(len(images))], "adapters": by_adapter}
    # a name could hold </script>
    return json.dumps(data, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")


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
    darkest = max(1, *(abs(scale[row][column]) for row, column in itertools.permutations(range(10), 2)))
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


def rounded_probability(probability: float) -> str:
    """In whole per cent, without claiming certainty."""
    text = f"{100 * probability:.0f}"
    return {"0": f"<{NBSP}1{NBSP}%", "100": f">{NBSP}99{NBSP}%"}.get(text, f"{text}{NBSP}%")


def keep_together(words: str) -> str:
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


def inline_svg(plot: Plot) -> Markup:
    """The <svg> element of `plot` in the page's colours, with its marks.

    The drawing is matplotlib's; what a page has no use for goes. Styles become attributes, so that the page's content
    security policy can forbid all styles that are not its own.
    """
    drawing = plot.svg_with_text.decode()
    drawing = drawing[drawing.index("<svg") : drawing.rindex("</svg>")]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", drawing)
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"| version="[^"]*"', "", drawing)
    drawing = drawing.replace("xlink:href", "href")
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # the same in every plot; what is referred to is no group
    drawing = re.sub(r' style="([^"]*)"', lambda found: _attributes(found[1]), drawing)
    drawing = re.sub(r' transform="rotate\(-0 [^"]*"', "", drawing)
    drawing = re.sub(r"(?<![>\d-])-?\d+\.\d{3,}(?![\w%])", lambda found: f"{float(found[0]):.2f}", drawing)
    drawing = re.sub(r"\s*\n\s*", "\n", drawing)
    head = f'<svg class="plot" role="img" aria-label="{escape(plot.alt)}" fill="currentColor" stroke-linejoin="round"'
    return Markup(drawing.replace("<svg", head, 1) + "".join(_circles(plot)) + "</svg>")


def _attributes(style: str) -> str:
    """`a: b; c: d` as attributes; fonts are the page's own."""
    entries = re.findall(r"([^:; ]+): *([^;]+)", style)
    return "".join(f' {name}="{PAGE_COLOURS.get(one, one)}"' for name, one in entries if name != "font-family")


def _circles(plot: Plot) -> Iterator[str]:
    """For every mark an unseen circle that has a title."""
    axes = plot.figure.axes[0]
    axes.get_xlim(), axes.get_ylim()  # matplotlib settles them when it is asked
    left, bottom, width, height = axes.get_position().bounds
    paper_width, paper_height = (72 * inches for inches in plot.figure.get_size_inches())  # in points, as SVG has them
    for mark in plot.marks:
        x, y = axes.transAxes.inverted().transform(axes.transData.transform((mark.x, mark.y)))  # 0 to 1 in the axes
        if not (0 <= x <= 1 and 0 <= y <= 1) and mark.strength is None:
            continue  # but for a strength, which the slider needs, and which stays at the edge of the axes
        across = paper_width * (left + min(max(x, 0), 1) * width)
        down = paper_height * (1 - bottom - min(max(y, 0), 1) * height)
        strength = "" if mark.strength is None else f' data-strength="{mark.strength:g}"'
        circle = f'<circle class="mark"{strength} cx="{across:.2f}" cy="{down:.2f}" r="{MARK_RADIUS}">'
        yield f"{circle}<title>{escape(mark.words)}</title></circle>"
