"""A sweep → text for a terminal of 80 columns: how sure, which digit, and what is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from lora_mnist.cli.output import Line, table
from lora_mnist.cli.tables import DATASETS
from lora_mnist.sweep.rows import Failure
from lora_mnist.sweep.summary import CONTROLS as CONTROL_NAMES
from lora_mnist.sweep.summary import METRIC_NAMES, Cell, RoundsSummary, Summary, capital

if TYPE_CHECKING:  # they import torch
    from lora_mnist.sweep.run import KeptAdapter, Plan, SweepReport

CONTROLS = [name for names in CONTROL_NAMES.values() for name in names]
MOST_FAILURES = 5  # that are shown one by one


def planned(document: Plan) -> RenderableType:
    """What a sweep would do."""
    lines = [f"{document.jobs:,} jobs, {document.finished:,} of them finished."]
    if document.bases:
        lines.append(f"Before that, {document.bases} base{'s' if document.bases > 1 else ''} would be trained.")
    return Group(*map(Line, [*lines, f"Results would go to {document.folder}; nothing was done."]))


def answered(document: SweepReport) -> RenderableType:
    """What the jobs come to together, and what failed."""
    sweep = document.sweep
    parts: list[RenderableType] = []
    if document.answer is not None:
        parts += [_errors(document.answer), _digits(document.answer), *_enough(document.answer)]
        parts += [] if document.answer.rounds is None else [_rounds(document.answer.rounds)]
    there = len(sweep.rows) - sweep.trained
    before = f", {there:,} were there before" if there else ""
    done = f"{sweep.trained:,} jobs done in {_duration(sweep.seconds)}{before}: {sweep.folder}/results.csv"
    page = [] if document.page is None else [Line(f"page: {document.page}")]
    kept = [] if document.kept is None else [_kept(document.kept)]
    return Group(*parts, Line(done), *page, *kept, *_failures(sweep.failures))


def _errors(answer: Summary) -> RenderableType:
    """A line a variant: its counts with 95 % intervals over seeds, beside the base and the shifted threshold."""
    title = f"{DATASETS[answer.dataset]}, {answer.scope}, ± 95 % over seeds"
    rows = table("", "numbers", "missed", "false alarms", "all errors", "kept")
    rows.add_row("base", "", *map(str, answer.base.values()), "")
    for one in answer.variants:
        counts = map(str, one.after.values())
        rows.add_row(one.name, f"{one.parameters:,}", *counts, f"{one.kept} of {one.jobs}")
        rows.add_row("threshold", "", *map(str, one.threshold.values()), "", style="dim")
        for of in one.references:
            if of.name in CONTROLS:
                rows.add_row(of.name.replace("`", ""), "", *map(str, of.counts.values()), "", style="dim")
    note = "threshold: the base with one number added to the digit's logit, with which it misses no more of them."
    return Group(Line(title, style="bold"), rows, Line(note, style="dim"))


def _digits(answer: Summary) -> RenderableType:
    """A line a digit, a column a variant: the mean over seeds, the best in bold."""
    what = f"{capital(METRIC_NAMES[answer.metric])} on {answer.images} by repaired digit, and the change from the base"
    rows = table("digit", *(one.name for one in answer.variants))
    for digit in answer.digits:
        cells = {one.variant: one for one in answer.cells if one.digit == digit}
        best = min(one.value for one in cells.values())
        rows.add_row(str(digit), *(_cell(cells.get(one.name), best) for one in answer.variants))
    return Group(Line(what, style="bold"), rows)


def _enough(answer: Summary) -> list[RenderableType]:
    """One sentence for each digit, and one for all."""
    how = answer.rule
    return [*map(Line, answer.sentences), *([Line(how, style="dim")] if how else [])]


def _rounds(found: RoundsSummary) -> RenderableType:
    """All errors after each round."""
    errors = [found.rounds[0].errors[0], *(one.errors[1] for one in found.rounds)] if found.rounds else []
    path = " → ".join(f"{one:.1f}" for one in errors)
    kept = ", ".join(str(one.kept) for one in found.rounds)
    of = f" of {found.rounds[0].jobs}" if found.rounds else ""
    return Line(f"In rounds, all errors {path}; kept in {kept}{of}; {found.errors} at the end.")


def _failures(failed: tuple[Failure, ...]) -> list[RenderableType]:
    """Why jobs failed."""
    lines = [
        f"failed: digit {one.digit}, rank {one.rank or '-'}, seed {one.seed}: {one.cause}"
        for one in failed[:MOST_FAILURES]
    ]
    if len(failed) > MOST_FAILURES:
        lines.append(f"and {len(failed) - MOST_FAILURES:,} more failed.")
    return [Line(line, style="red") for line in lines]


def _kept(kept: KeptAdapter) -> RenderableType:
    counts = "missed {}, false alarms {}, {} errors in all".format(*kept.found.numbers)
    same = "as in the sweep" if kept.found == kept.told else "in the sweep {}, {}, {}".format(*kept.told.numbers)
    return Line(f"Kept as {kept.name} in {kept.run}: {counts} on test ({same}); verified from its files.")


def _cell(cell: Cell | None, best: float) -> Text:
    if cell is None:
        return Text("-")
    text = f"{cell.value:.1f} {cell.change:+.1f}".replace("-", "−")
    return Text(text, style="bold" if cell.value == best else "")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
