"""A run → one self-contained HTML page, its plots as PNG and SVG, and its numbers as JSON and CSV.

Every number on the page stands in the `Report`; beside it, only stored pictures and losses are drawn.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lora_mnist.evaluation.verdict import paired
from lora_mnist.report.document import AdapterSection, Line, Report, Share, SureGuess
from lora_mnist.report.images import COLUMNS, Sheet, picture, sheet_of
from lora_mnist.report.matrices import base_cell, cell_of
from lora_mnist.report.numbers import report_of
from lora_mnist.report.reproduce import commands, configs
from lora_mnist.report.tables import tables_of
from lora_mnist.report.words import (
    GLOSSARY,
    NBSP,
    TITLES,
    chance,
    how_large,
    side_effects,
    signed,
    sure,
    tied,
    title_of,
)
from lora_mnist.runs.atomic import to_json
from lora_mnist.runs.run import Run
from lora_mnist.settings.strict import Document

MOST_DRAWINGS = 300  # that the page shows of an adapter, half a kilobyte each


def write_report(run: Run, normalised: bool = False) -> Path:
    """Write the report of `run` and return its page.

    Args:
        normalised: print the confusion matrices as shares of each true digit instead of counts.

    Raises:
        BusyError: another command writes to the run.
        RunError: there is no base, or a file is damaged or belongs to another base.
    """
    from lora_mnist.report.figures import plots_of  # matplotlib takes its time, and only drawing needs it
    from lora_mnist.report.inline import inline

    with run.writing():
        report = report_of(run, normalised)
        run.require_writable()
        plots = {plot.name: plot for plot in plots_of(run, report, normalised)}
        drawings = {name: inline(plot) for name, plot in plots.items() if not _is_matrix(name)}
        files = texts_of(run, report, {name: plot.table for name, plot in plots.items()}, drawings)
        files |= {f"{name}.svg": plot.svg for name, plot in plots.items()}
        files |= {f"{name}.png": plot.png for name, plot in plots.items()}
        return run.save_report(files)


def texts_of(run: Run, report: Report, plots: Mapping[str, str], drawings: Mapping[str, str]) -> dict[str, bytes]:
    """Every file of a report that is text, by its name.

    Args:
        plots: by the name of every plot, the CSV file with its numbers.
        drawings: by name, the <svg> elements of those that stand in the page.
    """
    files = {"index.html": _page(run, report, plots, drawings), "report.json": to_json(report.model_dump(mode="json"))}
    return files | tables_of(run, report) | configs(report)


def _page(run: Run, report: Report, plots: Mapping[str, str], drawings: Mapping[str, str]) -> bytes:
    sheet = sheet_of(run.adapter(section.name) for section in report.adapters)
    environment = _environment()
    page = environment.get_template("report.html.j2").render(
        **dict(report),
        title=title_of(report),
        latest=_latest(report),
        in_order=_in_order(report),
        outcomes=_outcomes(report),
        plots=plots,
        drawings={name: Markup(drawing) for name, drawing in drawings.items()},
        losses=[one.name for one in report.adapters if f"{one.name}-loss" in plots],
        pictures={section.name: _thumbnails(run, section) for section in report.adapters},
        taught={section.name: _taught(run, section) for section in report.adapters if section.lesson},
        sheet=sheet and _data("image/png", sheet.png),
        data=_for_the_script(report, sheet),
        script=_source(environment, "report.js"),
        style=_source(environment, "report.css"),
        cells=lambda section, which, row, column: cell_of(section, which, (row, column), report.normalised),
        base_cells=lambda row, column: base_cell(report.base.confusion, (row, column), report.normalised),
        glossary=GLOSSARY,
        titles=TITLES,
        paired=paired,
        commands=commands(report),
    )
    return page.encode()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lora_mnist.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "signed": signed, "rows": _rows, "interval": _interval, "p": chance}
    environment.filters |= {"sure": sure, "side_effects": side_effects, "how_large": how_large, "tied": tied}
    environment.filters |= {"digest": _digest, "date": _date}
    return environment


def _source(environment: Environment, name: str) -> str:
    """A file beside the templates, which is none itself."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _is_matrix(plot: str) -> bool:
    """Whether the page shows it as a table, which follows its colours and can be read out."""
    return plot.endswith(("-confusion", "-before", "-after", "-change"))


def _in_order(report: Report) -> list[Line]:
    """The lines of `side_by_side` in the order of the page's sections, and then those that have none."""
    with_section = [line for line in report.side_by_side if line.method != "full"]
    return [*reversed(with_section), *(line for line in report.side_by_side if line.method == "full")]


def _latest(report: Report) -> str:
    """When the last thing of the run was made."""
    provenance = [
        report.provenance,
        *(one.provenance for one in report.checkpoints),
        *(one.provenance for one in report.adapters),
    ]
    return max(one.date for one in provenance)


def _outcomes(report: Report) -> dict[str, tuple[str, str]]:
    """By adapter, what its verdict comes to, in a few words, and whether that is good."""
    verdicts = {section.name: section.sum for section in report.adapters}
    return {name: (verdict.words.partition(":")[0], verdict.outcome) for name, verdict in verdicts.items()}


def _thumbnails(run: Run, section: AdapterSection) -> list[str]:
    """The changed test images, in the order of `examples`, as the sources of <img>."""
    return [_data("image/png", picture(image)) for image in run.adapter(section.name).pictures()["examples"]]


def _taught(run: Run, section: AdapterSection) -> list[tuple[int, str]]:
    """The drawings that it was taught: the digit, and the source of an <img>."""
    return [
        (label, _data("image/png", picture(image))) for label, image in run.adapter(section.name).labelled_drawings()
    ]


# For the script -------------------------------------------------------------------------------------------------------


def _for_the_script(report: Report, sheet: Sheet | None) -> str:
    """JSON that may stand in an element: what the slider and the images need of the report.

    `images`: index, label and agreement by place on the sheet; and of every adapter its own `guesses` at them: place,
    then prediction, confidence and probability of the true digit, before and after, in whole per cent.
    """
    places = sheet.places if sheet else {}
    known: dict[int, list[int | None]] = {}
    adapters: dict[str, object] = {}
    for section in report.adapters:
        shown = [one for one in section.wrong_images or () if one.index in places]
        known |= {places[one.index]: [one.index, one.label, one.agreed] for one in shown}
        adapters[section.name] = {
            "strengths": [point.model_dump() for point in section.trade.strength],
            "guesses": [[places[one.index], *_whole(one.before), *_whole(one.after)] for one in shown],
        }
    images = [known[place] for place in range(len(places))]
    data = {"columns": COLUMNS, "images": images, "adapters": adapters}
    return json.dumps(data, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")


def _whole(guess: SureGuess) -> list[int]:
    """In whole per cent, as the page says it."""
    shares = (int(f"{100 * share:.0f}") for share in (guess.confidence, guess.probability))
    return [guess.prediction, *shares]


# Words ----------------------------------------------------------------------------------------------------------------


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _digest(text: str) -> Markup:
    """As a content security policy names the one script, or style, that is allowed."""
    return Markup(f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}")


def _percent(share: float, places: int = 2) -> str:
    return f"{100 * share:.{places}f}{NBSP}%"


def _interval(share: Share, places: int = 2) -> str:
    return f"{100 * share.low:.{places}f} to {100 * share.high:.{places}f}{NBSP}%"


def _date(stored: str, with_time: bool = False) -> str:
    date = datetime.fromisoformat(stored)
    return f"{date.day} {date:%B %Y}" + (f", {date:%H:%M} UTC" if with_time else "")


def _rows(settings: Document) -> Sequence[tuple[str, str]]:
    """Every setting that is there, by its dotted name, as it would be typed."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.model_dump(mode="json", exclude_none=True).items():
        nested = {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
        rows += [(key, ", ".join(map(str, one)) if isinstance(one, list) else str(one)) for key, one in nested.items()]
    return rows
