"""The runs below a folder → text for a terminal, a line each."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from lora_mnist.cli.grid import Rows
from lora_mnist.cli.text import Paragraph
from lora_mnist.runs.listing import Overview, RunLine

HEADINGS = ("run", "data", "base", "adapters", "best", "missed", "errors", "size", "digest")
DIGEST = 8  # characters of it that are shown; --json has it whole


def overview(document: Overview) -> RenderableType:
    """Data, base, adapters, what the best one did, size and digest of every run; then what is wrong with which."""
    if not document.runs:
        return Paragraph(f"There is no run below {document.folder}.")
    title = f"Runs below {document.folder}, with test figures"
    rows = Rows(HEADINGS, {title: [_cells(line, document.folder) for line in document.runs]})
    faults = (f"{line.run} is damaged: {line.fault}" for line in document.runs if line.fault)
    return Group(rows, *(Paragraph(fault, style="bold red") for fault in faults))


def _cells(line: RunLine, folder: str) -> list[str | Text]:
    size = f"{line.bytes / 1e6:.1f} MB"
    name = line.run.removeprefix(f"{folder}/")
    if line.fault is not None or line.accuracy is None:
        return [name, Text("damaged", style="bold red"), "", "", "", "", "", size, ""]
    done = ["-", "-", "-"]
    if best := line.best:
        missed, _, errors = zip(best.before.numbers, best.after.numbers, strict=True)
        done = [best.name, *(f"{before}→{after}" for before, after in (missed, errors))]
    accuracy, digest = f"{100 * line.accuracy:.2f} %", (line.digest or "")[:DIGEST]
    return [name, line.dataset or "", accuracy, str(line.adapters), *done, size, digest]
