"""Results → text for a terminal of 80 columns, with or without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from lora_mnist.cli.grid import Grid
from lora_mnist.cli.text import Paragraph
from lora_mnist.evaluation.results import COUNTS, Analysis, Comparison, Counts, GuardDecision, Proof
from lora_mnist.evaluation.verdict import paired, verdict_of
from lora_mnist.runs.listing import SizeTable
from lora_mnist.runs.schemas import (
    AdapterParameters,
    AppliedAdapter,
    Evaluation,
    FinetuneRecord,
    FullParameters,
)

if TYPE_CHECKING:  # they import torch, which the commands that only read JSON do without
    from lora_mnist.pipeline import FinetuneResult, VerifyResult

DATASETS = {"mnist": "MNIST", "digits": "scikit-learn's digits, not MNIST"}


def evaluation(document: Evaluation) -> RenderableType:
    """Errors per digit on every split, and the confusion matrix of `test`."""
    splits = document.splits
    table = Grid("digit", title=f"{DATASETS[document.dataset.name]}: errors of {named(document)}")
    for split in splits:
        for heading in (f"{split} images", "wrong", "%"):
            table.add_column(heading, justify="right")
    for digit in range(10):
        cells = [_share(part.wrong[digit], part.images[digit]) for part in splits.values()]
        table.add_row(str(digit), *(cell for group in cells for cell in group))
    table.add_section()
    cells = [_share(part.errors, part.count) for part in splits.values()]
    table.add_row("all", *(cell for group in cells for cell in group))
    accuracy = ", ".join(f"{100 * part.accuracy:.2f} % on {split}" for split, part in splits.items())
    return Group(table, Paragraph(f"Accuracy {accuracy}."), confusion(splits["test"].confusion))


def named(document: Evaluation) -> str:
    """The network that was evaluated."""
    used = "".join(f" + {at_strength(adapter)}" for adapter in document.adapters)
    return f"the base{used}" if document.checkpoint is None else f"checkpoint {document.checkpoint}"


def confusion(matrix: Sequence[Sequence[int]]) -> Grid:
    """Rows true digit, columns predicted digit; zeros are dots, so that errors stand out."""
    table = Grid("true", title="Confusion on test (columns: predicted digit)", padding=(0, 1))
    for digit in range(10):
        table.add_column(str(digit), justify="right", min_width=4)
    for digit, row in enumerate(matrix):
        table.add_row(str(digit), *(_count(count, digit == column) for column, count in enumerate(row)))
    return table


def finetuning(tuning: FinetuneResult) -> RenderableType:
    """Parameters, what changed, the proof and the verdict; of an adapter, or of all weights trained."""
    record, analysis, evaluation = tuning.record, tuning.analysis, tuning.evaluation
    if analysis is None or evaluation is None:
        return Paragraph(not_kept(record), style="bold")
    digit, test = record.digit, analysis.splits["test"]
    return Group(
        Paragraph(f"Data set: {DATASETS[evaluation.dataset.name]}"),
        trained(record),
        summary(analysis.splits, digit),
        *_strength(record.guard),
        excuses(record, analysis),
        per_digit(test, evaluation.splits["test"].wrong, digit),
        *([] if record.proof is None else [proof(record.proof)]),
        verdict(record, analysis),
    )


def trained(record: FinetuneRecord) -> RenderableType:
    """The layers of an adapter, or how many weights there are."""
    if isinstance(record.parameters, FullParameters):
        return Paragraph(f"All {record.trained:,} weights of a copy trained; the base is as it was.")
    return parameters(record.parameters)


def _strength(guard: GuardDecision | None) -> list[Paragraph]:
    if guard is None or guard.rule == "none":
        return []
    kept = "as trained" if guard.scale == 1 else f"at {guard.scale:g} of the trained update"
    return [Paragraph(f"Kept {kept}: the fewest errors on val that --guard {guard.rule} allows.")]


def not_kept(record: FinetuneRecord) -> str:
    """Why the guard refused, and what to do."""
    guard = record.guard
    assert guard is not None  # it is what refused, by what it counted
    assert guard.before is not None
    assert guard.counted is not None
    words = {"errors": "errors in all", "missed": f"missed {record.digit}s"}[guard.counted]
    least, limit = min(one.of(guard.counted) for one in guard.tried), guard.before.of(guard.counted)
    if worse := {digit for one in guard.tried if one.of(guard.counted) <= limit - guard.gain for digit in one.worse}:
        digits = " and ".join(map(str, sorted(worse)))
        why = f"with {record.name}, more images of {digits} on val are wrong than chance allows."
    else:
        why = f"on val there are {limit} {words} without {record.name}, and {least} or more with it."
        why += " One more adapter has to lower them." if guard.gain else ""
    way_out = "--guard none keeps it as trained. What was kept before is still there."
    return f"Nothing kept: {why} {way_out}"


def verdict(record: FinetuneRecord, analysis: Analysis) -> Paragraph:
    """In a sentence or two, all of it."""
    return Paragraph(verdict_of(analysis, record.digit).words, style="bold")


def excuses(record: FinetuneRecord, analysis: Analysis) -> RenderableType:
    """What else would have lowered the missed images: one shifted logit, and the control where it was trained."""
    test, digit, threshold = analysis.splits["test"], record.digit, analysis.threshold
    table = Grid("on test", title=f"Digit {digit}, beside what else could be done")
    for heading in (f"missed {digit}s", "false alarms", "all errors"):
        table.add_column(heading, justify="right")
    one_number = f"{threshold.shift:+.2f} on the logit of {digit}, by {threshold.chosen_on}"
    rows: list[tuple[str, Counts]] = [("before", test.before), (record.name, test.after)]
    rows.append((one_number, threshold.splits["test"]))
    lines = []
    if control := analysis.control:
        beside = control.splits["test"]
        kept = "" if control.scale is not None else ", not kept"
        rows.append((f"control: uniform sampling{kept}", beside))
        if number := control.threshold:
            rows.append((f"control {number.shift:+.2f} on its logit, by {number.chosen_on}", number.splits["test"]))
        lines = [paired(beside.all, "all images"), paired(beside.digit, f"the {digit}s")]
    for name, counts in rows:
        table.add_row(name, *map(str, counts.numbers))
    return Group(table, *map(Paragraph, lines))


def path(rounds: Sequence[FinetuneResult]) -> RenderableType:
    """What each round of a repair did, if there were several."""
    if len(rounds) == 1:
        return Group()
    table = Grid("round", title="Digit after digit, on test")
    for heading in ("digit", "missed", "false alarms", "all errors", "adapter"):
        table.add_column(heading, justify="left" if heading == "adapter" else "right")
    for i, tuning in enumerate(rounds, 1):
        record, analysis = tuning.record, tuning.analysis
        if analysis is None:
            table.add_row(str(i), str(record.digit), "-", "-", "-", "not kept")
            continue
        test = analysis.splits["test"]
        counts = (f"{before} → {after}" for before, after in zip(test.before.numbers, test.after.numbers, strict=True))
        table.add_row(str(i), str(record.digit), *counts, record.name)
    return table


def sizes(document: SizeTable) -> RenderableType:
    """Numbers that full fine-tuning and LoRA train, a row per rank."""
    shapes = ", ".join(map(_shape, document.layers.values()))
    table = Grid("rank")
    for heading in ("LoRA", "share", "fewer"):
        table.add_column(heading, justify="right")
    for row in document.ranks:
        table.add_row(str(row.rank), f"{row.lora:,}", f"{100 * row.share:.2f} %", f"{1 / row.share:,.1f} x")
    return Group(Paragraph(f"Full: {document.full:,} numbers in {shapes}{' and biases' * document.biases}"), table)


def parameters(table: AdapterParameters) -> RenderableType:
    """Shapes per layer, totals, and the share that the adapter adds."""
    rows = Grid("layer", "W", "bias", "A", "B", title="Parameters")
    for row in table.layers:
        rows.add_row(row.layer, *map(_shape, (row.weight, row.bias, row.lora_A, row.lora_B)))
    total = f"{table.base:,} frozen + {table.added:,} trained = {table.total:,}"
    low = [row for row in table.layers if row.lora_A and row.lora_A[0] > min(row.weight)]
    notes = [f"Of {row.layer}, {_shape(row.weight)}, no update has a rank above {min(row.weight)}." for row in low]
    return Group(rows, Paragraph(f"{total} ({100 * table.share:.3f} % added)"), *map(Paragraph, notes))


def summary(comparison: Mapping[str, Comparison], digit: int) -> Grid:
    """Missed, false alarms and all errors of every split, before and after, together."""
    table = Grid("", title=f"Digit {digit} before and after")
    for split in comparison:
        for heading in (f"{split} before", "after", "change"):
            table.add_column(heading, justify="right")
    names = (f"missed {digit}s", "false alarms", "all errors")
    for key, words in zip(COUNTS, names, strict=True):
        cells = [(part.before.of(key), part.after.of(key)) for part in comparison.values()]
        table.add_row(words, *(cell for b, a in cells for cell in (str(b), str(a), change(a - b))))
    return table


def per_digit(test: Comparison, wrong_after: Sequence[int], target: int) -> Grid:
    """Wrong test images of every digit before and after, with what was fixed and broken."""
    table = Grid("digit", title="Wrong test images per digit")
    for heading in ("before", "fixed", "broken", "after", "change"):
        table.add_column(heading, justify="right")
    for digit in range(10):
        fixed, broken, after = test.fixed[digit], test.broken[digit], wrong_after[digit]
        name = f"{digit} (target)" if digit == target else str(digit)
        table.add_row(name, *map(str, (after + fixed - broken, fixed, broken, after)), change(broken - fixed))
    return table


def proof(found: Proof) -> RenderableType:
    """The three claims, one line each."""
    frozen, off, on = found.frozen, found.off, found.on
    lines = {
        f"frozen: {frozen.tensors} base tensors, {frozen.bytes:,} bytes, all as before": frozen.passed,
        f"off: logits of {off.images:,} images bit-identical to the base": off.passed,
        f"on: W + scaling · B A to {on.largest_difference:.1e} of {on.largest_logit:.3g}": on.passed,
    }
    return Group(*(_checked(passed, line) for line, passed in lines.items()))


def verification(findings: VerifyResult) -> RenderableType:
    """The findings of `verify`: the base, then every adapter."""
    parts: list[RenderableType] = []
    if findings.dataset is not None:  # not known if the base is damaged
        parts.append(Paragraph(f"Data set: {DATASETS[findings.dataset]}"))
    parts.append(_checked(findings.base.passed, "base: bytes, fingerprint, logits and all that follows from them"))
    for adapter in findings.adapters:
        parts.append(_checked(adapter.passed, adapter.name))
        if adapter.proof is not None:
            parts.append(proof(adapter.proof))
    for checkpoint in findings.checkpoints:
        what = f"{checkpoint.name}: bytes, fingerprint, logits and all that follows from them"
        parts.append(_checked(checkpoint.passed, what))
    if findings.report is not None:
        parts.append(_checked(findings.report, "report: its numbers are those of the run"))
    parts += [Paragraph(note, "note    ") for note in findings.notes]
    if findings.digest is not None:
        parts.append(Paragraph(findings.digest, "run digest  "))
    return Group(*parts)


def at_strength(adapter: AppliedAdapter) -> str:
    """An adapter that is on."""
    return f"{adapter.name} at strength {adapter.strength:g}"


def _share(wrong: int, count: int) -> tuple[str, str, str]:
    return str(count), str(wrong), f"{100 * wrong / count:.2f}" if count else "-"


def _count(count: int, on_diagonal: bool) -> Text:
    return Text(str(count) if count else "·", style="dim" if on_diagonal or not count else "bold")


def _shape(shape: Sequence[int] | None) -> str:
    return " x ".join(map(str, shape)) if shape else "-"


def change(more: int) -> Text:
    """How many more are wrong: red, or fewer: green."""
    style = "red" if more > 0 else "green" if more < 0 else ""
    return Text(f"{more:+d}" if more else "0", style=style)


def mark(passed: bool) -> Text:
    """One word, in its colour."""
    return Text("passed", style="green") if passed else Text("FAILED", style="bold red")


def _checked(passed: bool, what: str) -> Paragraph:
    word = mark(passed)
    return Paragraph(what, f"{word}  ", label_style=str(word.style))
