"""A sweep → text for a terminal of 80 columns: how sure, which digit, and what is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from lora_mnist.cli.output import Line, table
from lora_mnist.settings.layers import DATASETS
from lora_mnist.sweep.summary import CONTROL_NAMES, METRIC_NAMES, RoundsSummary, Summary, capital

if TYPE_CHECKING:  # they import torch
    from lora_mnist.sweep.sweep import Plan, SweepReport

MOST_FAILURES = 5  # that are shown one by one


def planned(document: Plan) -> RenderableType:
    """What a sweep would do."""
    lines = [f"{document.jobs:,} jobs, {document.finished:,} of them finished."]
    if document.bases:
        lines.append(f"Before that, {document.bases} base{'s' if document.bases > 1 else ''} would be trained.")
    return Group(*map(Line, [*lines, f"Results would go to {document.folder}; nothing was done."]))


def answered(document: SweepReport) -> RenderableType:
    """What the jobs come to together, and what failed."""
    sweep, answer, kept = document.sweep, document.answer, document.kept
    parts: list[RenderableType] = []
    if answer is not None:
        parts += [_errors(answer), _digits(answer), *map(Line, answer.sentences)]
        parts += [Line(answer.rule, style="dim")] if answer.rule else []
        parts += [] if answer.rounds is None else [_rounds(answer.rounds)]
    time = f"{sweep.seconds:.0f} s"
    if sweep.seconds >= 100:
        time = f"{sweep.seconds / 60:.0f} min" if sweep.seconds < 6000 else f"{sweep.seconds / 3600:.1f} h"
    there = len(sweep.rows) - sweep.trained
    before = f", {there:,} were there before" if there else ""
    parts.append(Line(f"{sweep.trained:,} jobs done in {time}{before}: {sweep.folder}/results.csv"))
    parts += [] if document.page is None else [Line(f"page: {document.page}")]
    if kept is not None:
        found = "missed {}, false alarms {}, {} errors in all on test".format(*kept.found.numbers)
        same = "in the sweep {}, {}, {}".format(*kept.in_sweep.numbers)
        same = "as in the sweep" if kept.found == kept.in_sweep else same
        parts.append(Line(f"Kept as {kept.name} in {kept.run}: {found} ({same}); verified from its files."))
    for one in sweep.failures[:MOST_FAILURES]:
        what = f"digit {one.digit}, rank {one.rank or '-'}, seed {one.seed}"
        parts.append(Line(f"failed: {what}: {one.cause}", style="red"))
    if (more := len(sweep.failures) - MOST_FAILURES) > 0:
        parts.append(Line(f"and {more:,} more failed.", style="red"))
    return Group(*parts)


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
            if any(of.name in names for names in CONTROL_NAMES.values()):
                rows.add_row(of.name.replace("`", ""), "", *map(str, of.counts.values()), "", style="dim")
    note = "threshold: the base with one number added to the digit's logit, to miss no more than the row above."
    return Group(Line(title, style="bold"), rows, Line(note, style="dim"))


def _digits(answer: Summary) -> RenderableType:
    """A line a digit, a column a variant: the mean over seeds and the change from the base, the best in bold."""
    what = f"{capital(METRIC_NAMES[answer.metric])} on {answer.images} by repaired digit, and the change from the base"
    rows = table("digit", *(one.name for one in answer.variants))
    for digit in answer.digits:
        cells = {one.variant: one for one in answer.cells if one.digit == digit}
        best = min(one.value for one in cells.values())
        texts = {}
        for name, one in cells.items():
            text = f"{one.value:.1f} {one.change:+.1f}".replace("-", "−")
            texts[name] = Text(text, style="bold" if one.value == best else "")
        rows.add_row(str(digit), *(texts.get(one.name, "-") for one in answer.variants))
    return Group(Line(what, style="bold"), rows)


def _rounds(found: RoundsSummary) -> RenderableType:
    errors = [found.rounds[0].errors[0], *(one.errors[1] for one in found.rounds)] if found.rounds else []
    path = " → ".join(f"{one:.1f}" for one in errors)
    kept = ", ".join(str(one.kept) for one in found.rounds)
    of = f" of {found.rounds[0].jobs}" if found.rounds else ""
    return Line(f"In rounds, all errors {path}; kept in {kept}{of}; {found.errors} at the end.")
