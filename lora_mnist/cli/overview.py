"""The runs below a folder → text for a terminal, a line each."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lora_mnist.runs.overview import Overview, RunLine

DIGEST = 8  # characters of it that are shown; --json has it whole


def overview(document: Overview) -> RenderableType:
    """Data, base, adapters, what the best one did, size and digest of every run; then what is wrong with which."""
    if not document.runs:
        return Text(f"There is no run below {document.folder}.")
    table = Table(box=box.SIMPLE_HEAD, title=f"Runs below {document.folder}, with test figures", padding=0)
    table.add_column("run", overflow="fold")
    for heading in ("data", "base", "adapters", "best", "missed", "errors", "size", "digest"):
        table.add_column(heading, justify="left" if heading in ("data", "best") else "right", overflow="fold")
    for line in document.runs:
        table.add_row(*_cells(line, document.folder))
    faults = [Text(f"{line.run} is damaged: {line.fault}", style="bold red") for line in document.runs if line.fault]
    return Group(table, *faults)


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
