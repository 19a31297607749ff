"""A sweep → text for a terminal of 80 columns: how sure, which digit, and what is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lora_mnist.cli.tables import DATASETS
from lora_mnist.cli.text import Paragraph
from lora_mnist.sweep.rows import Failure
from lora_mnist.sweep.summary import CONTROLS as CONTROL_NAMES
from lora_mnist.sweep.summary import (
    METRIC_NAMES,
    Cell,
    RoundsSummary,
    Summary,
    capital,
    estimate,
    images,
    rule,
    scope,
    sentences,
)

if TYPE_CHECKING:  # they import torch
    from lora_mnist.sweep.run import KeptAdapter, Plan, SweepReport

CONTROLS = [name for names in CONTROL_NAMES.values() for name in names]
MOST_FAILURES = 5  # that are shown one by one


def plan(document: Plan) -> RenderableType:
    """What a sweep would do."""
    lines = [f"{document.jobs:,} jobs, {document.finished:,} of them finished."]
    if document.bases:
        lines.append(f"Before that, {document.bases} base{'s' if document.bases > 1 else ''} would be trained.")
    return Group(*map(Paragraph, [*lines, f"Results would go to {document.folder}; nothing was done."]))


def answered(document: SweepReport) -> RenderableType:
    """What the jobs come to together, and what failed."""
    sweep = document.sweep
    parts: list[RenderableType] = []
    if document.answer is not None:
        parts += [errors(document.answer), digits(document.answer), *enough(document.answer)]
        parts += [] if document.answer.rounds is None else [rounds(document.answer.rounds)]
    there = len(sweep.rows) - sweep.trained
    before = f", {there:,} were there before" if there else ""
    done = f"{sweep.trained:,} jobs done in {_duration(sweep.seconds)}{before}: {sweep.folder}/results.csv"
    page = [] if document.page is None else [Paragraph(f"page: {document.page}")]
    kept = [] if document.kept is None else [_kept(document.kept)]
    return Group(*parts, Paragraph(done), *page, *kept, *failures(sweep.failures))


def errors(answer: Summary) -> RenderableType:
    """A line a variant: its counts with 95 % intervals over seeds, beside the base and the shifted threshold."""
    title = f"{DATASETS[answer.dataset]}, {scope(answer)}, ± 95 % over seeds"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("", overflow="fold", min_width=len("threshold"))
    for heading in ("numbers", "missed", "false alarms", "all errors", "kept"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("base", "", *map(estimate, answer.base.values()), "")
    for one in answer.variants:
        counts = map(estimate, one.after.values())
        table.add_row(one.name, f"{one.parameters:,}", *counts, f"{one.kept} of {one.jobs}")
        table.add_row("threshold", "", *map(estimate, one.threshold.values()), "", style="dim")
        for of in one.references:
            if of.name in CONTROLS:
                table.add_row(of.name.replace("`", ""), "", *map(estimate, of.counts.values()), "", style="dim")
    note = "threshold: the base with one number added to the digit's logit, with which it misses no more of them."
    return Group(Paragraph(title, style="bold"), table, Paragraph(note, style="dim"))


def digits(answer: Summary) -> RenderableType:
    """A line a digit, a column a variant: the mean over seeds, the best in bold."""
    what = f"{capital(METRIC_NAMES[answer.metric])} on {images(answer)} by repaired digit, and the change from the base"
    table = Table("digit", box=box.SIMPLE_HEAD, padding=(0, 1))
    for one in answer.variants:
        table.add_column(one.name, justify="right")
    for digit in answer.digits:
        cells = {one.variant: one for one in answer.cells if one.digit == digit}
        best = min(one.value for one in cells.values())
        table.add_row(str(digit), *(_cell(cells.get(one.name), best) for one in answer.variants))
    return Group(Paragraph(what, style="bold"), table)


def enough(answer: Summary) -> list[RenderableType]:
    """One sentence for each digit, and one for all."""
    how = rule(answer)
    return [*map(Paragraph, sentences(answer)), *([Paragraph(how, style="dim")] if how else [])]


def rounds(found: RoundsSummary) -> RenderableType:
    """All errors after each round."""
    errors = [found.rounds[0].errors[0], *(one.errors[1] for one in found.rounds)] if found.rounds else []
    path = " → ".join(f"{one:.1f}" for one in errors)
    kept = ", ".join(str(one.kept) for one in found.rounds)
    of = f" of {found.rounds[0].jobs}" if found.rounds else ""
    return Paragraph(f"In rounds, all errors {path}; kept in {kept}{of}; {estimate(found.errors)} at the end.")


def failures(failed: tuple[Failure, ...]) -> list[RenderableType]:
    """Why jobs failed."""
    lines = [
        f"failed: digit {one.digit}, rank {one.rank or '-'}, seed {one.seed}: {one.cause}"
        for one in failed[:MOST_FAILURES]
    ]
    if len(failed) > MOST_FAILURES:
        lines.append(f"and {len(failed) - MOST_FAILURES:,} more failed.")
    return [Paragraph(line, style="red") for line in lines]


def _kept(kept: KeptAdapter) -> RenderableType:
    counts = "missed {}, false_alarms {}, {} errors in all".format(*kept.found.numbers)
    same = "as in the sweep" if kept.found == kept.told else "in the sweep {}, {}, {}".format(*kept.told.numbers)
    return Paragraph(f"Kept as {kept.name} in {kept.run}: {counts} on test ({same}); verified from its files.")


def _cell(cell: Cell | None, best: float) -> Text:
    if cell is None:
        return Text("-")
    text = f"{cell.value:.1f} {cell.change:+.1f}".replace("-", "−")
    return Text(text, style="bold" if cell.value == best else "")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
