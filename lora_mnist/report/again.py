"""Does a report say what its run does? Everything that is text is made again and compared; plots are pictures of it."""

import json
import re
from pathlib import Path

from lora_mnist import __version__
from lora_mnist.errors import RunError
from lora_mnist.report.numbers import report_of
from lora_mnist.report.page import texts_of
from lora_mnist.runs.folders import is_finished, standing
from lora_mnist.runs.likeness import first_difference
from lora_mnist.runs.moment import of_one_moment
from lora_mnist.runs.run import Run
from lora_mnist.settings.strict import Document, Many

# what a page has of pictures, which other versions of what draws them draw otherwise, and where their numbers lie
PICTURES = re.compile(
    rb'<svg class="plot".*?</svg>|data:image/png;base64,[A-Za-z0-9+/=]*|<a href="[^"/]*\.csv">CSV</a>', re.DOTALL
)


class ReportFindings(Document):
    """What of a report does not follow from its run, a clause each; and what could not be compared."""

    failures: Many[str] = ()
    notes: Many[str] = ()


def check_report(run: Run) -> ReportFindings | None:
    """Compare the report of a run whose own documents are proved; None if there is none.

    A report that says it was made from a run of another digest, or by another version, is not compared: that is said.
    """
    return of_one_moment(run, _check)


def _check(run: Run) -> ReportFindings | None:
    if not is_finished(run.report):
        return None
    try:
        run.stored_report.require_whole()
        stored = json.loads(run.stored_report.content("report.json"))
    except RunError as error:
        return ReportFindings(failures=(error.cause.rstrip("."),))
    except (OSError, ValueError, RecursionError) as error:
        return ReportFindings(failures=(f"report.json cannot be read: {error}",))
    facts = stored if isinstance(stored, dict) else {}
    if (facts.get("run_digest"), facts.get("version")) != (run.digest(), __version__):
        note = f"{run.report} is older than the run, and was not compared; write it again with `lora-mnist report`"
        return ReportFindings(notes=(note,))
    return ReportFindings(failures=tuple(_unlike(run, stored, bool(facts.get("normalised")))))


def _unlike(run: Run, stored: object, normalised: bool) -> list[str]:
    place, report = standing(run.report), report_of(run, normalised)
    if clause := first_difference("report.json", stored, json.loads(report.model_dump_json())):
        return [clause]
    there = list(place.iterdir())  # raises OSError where it is gone by now, unlike glob
    names = {file.stem for file in there if file.suffix == ".svg"}
    expected = texts_of(run, report, dict.fromkeys(names, ".csv"), dict.fromkeys(names, ""))
    wrong = [name for name, text in expected.items() if not _is_like(place / name, text)]
    wrong += sorted({file.name for file in there if file.suffix == ".csv"} - expected.keys())
    return [f"{name} does not say what follows from the run" for name in wrong]


def _is_like(file: Path, expected: bytes) -> bool:
    """But for pictures, which are left out of both."""
    try:
        found = file.read_bytes()
    except OSError:
        return False
    if file.name == "index.html":
        found, expected = PICTURES.sub(b"", found), PICTURES.sub(b"", expected)
    return found == expected
