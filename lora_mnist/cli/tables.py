"""Results → text for a terminal of 80 columns, with or without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lora_mnist.cli.text import Paragraph
from lora_mnist.evaluation.findings import COUNTS, Analysis, Comparison, Counts, GuardDecision, Proof
from lora_mnist.evaluation.verdict import paired, verdict_of
from lora_mnist.runs.records import (
    AdapterParameters,
    AppliedAdapter,
    Evaluation,
    Extraction,
    FullParameters,
    TuningRecord,
)
from lora_mnist.runs.sizes import SizeTable

if TYPE_CHECKING:  # they import torch, which the commands that only read JSON do without
    from lora_mnist.pipeline import Merging, Tuning, Verification

DATASETS = {"mnist": "MNIST", "digits": "scikit-learn's digits, not MNIST"}


def evaluation(document: Evaluation) -> RenderableType:
    """Errors per digit on every split, and the confusion matrix of `test`."""
    splits = document.splits
    table = Table("digit", title=f"{DATASETS[document.dataset.name]}: errors of {named(document)}")
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


def confusion(matrix: Sequence[Sequence[int]]) -> Table:
    """Rows true digit, columns predicted digit; zeros are dots, so that errors stand out."""
    table = Table("true", title="Confusion on test (columns: predicted digit)", padding=(0, 1))
    for digit in range(10):
        table.add_column(str(digit), justify="right", min_width=4)
    for digit, row in enumerate(matrix):
        table.add_row(str(digit), *(_count(count, digit == column) for column, count in enumerate(row)))
    return table


def finetuning(tuning: Tuning) -> RenderableType:
    """Parameters, what changed, the proof and the verdict; of an adapter, or of all weights trained."""
    record, analysis, evaluation = tuning.record, tuning.analysis, tuning.evaluation
    if analysis is None or evaluation is None:
        return Paragraph(not_kept(record), style="bold")
    digit, test = record.digit, analysis.splits["test"]
    return Group(
        Text(f"Data set: {DATASETS[evaluation.dataset.name]}"),
        _trained(record),
        summary(analysis.splits, digit),
        *_strength(record.guard),
        excuses(record, analysis),
        per_digit(test, evaluation.splits["test"].wrong, digit),
        *([] if record.proof is None else [proof(record.proof)]),
        _verdict(record, analysis),
    )


def _trained(record: TuningRecord) -> RenderableType:
    if isinstance(record.parameters, FullParameters):
        return Text(f"All {record.trained:,} weights of a copy trained; the base is as it was.")
    return parameters(record.parameters)


def _strength(guard: GuardDecision | None) -> list[Paragraph]:
    if guard is None or guard.rule == "none":
        return []
    kept = "as trained" if guard.strength == 1 else f"at {guard.strength:g} of the trained update"
    return [Paragraph(f"Kept {kept}: the fewest errors on val that --guard {guard.rule} allows.")]


def not_kept(record: TuningRecord) -> str:
    """Why the guard refused, and what to do."""
    guard = record.guard
    assert guard is not None  # it is what refused, by what it counted
    assert guard.before is not None
    assert guard.counted is not None
    words = {"errors": "errors in all", "missed": f"missed {record.digit}s"}[guard.counted]
    least, limit = min(one.of(guard.counted) for one in guard.tried), guard.before.of(guard.counted)
    if hurt := {digit for one in guard.tried if one.of(guard.counted) <= limit - guard.gain for digit in one.hurt}:
        digits = " and ".join(map(str, sorted(hurt)))
        why = f"with {record.name}, more images of {digits} on val are wrong than chance allows."
    else:
        why = f"on val there are {limit} {words} without {record.name}, and {least} or more with it."
        why += " One more adapter has to lower them." if guard.gain else ""
    way_out = "--guard none keeps it as trained. What was kept before is still there."
    return f"Nothing kept: {why} {way_out}"


def _verdict(record: TuningRecord, analysis: Analysis) -> Paragraph:
    return Paragraph(verdict_of(analysis, record.digit).words, style="bold")


def excuses(record: TuningRecord, analysis: Analysis) -> RenderableType:
    """What else would have lowered the missed images: one shifted logit, and the twin where it was trained."""
    test, digit, threshold = analysis.splits["test"], record.digit, analysis.threshold
    table = Table("on test", title=f"Digit {digit}, beside what else could be done")
    for heading in (f"missed {digit}s", "claimed", "all errors"):
        table.add_column(heading, justify="right")
    one_number = f"{threshold.shift:+.2f} on the logit of {digit}, by {threshold.chosen_on}"
    rows: list[tuple[str, Counts]] = [("before", test.before), (record.name, test.after)]
    rows.append((one_number, threshold.splits["test"]))
    lines = []
    if twin := analysis.twin:
        beside = twin.splits["test"]
        kept = "" if twin.strength is not None else ", not kept"
        rows.append((f"twin, every image alike{kept}", beside))
        if number := twin.threshold:
            rows.append((f"twin {number.shift:+.2f} on its logit, by {number.chosen_on}", number.splits["test"]))
        lines = [paired(beside.all, "all images"), paired(beside.digit, f"the {digit}s")]
    for name, counts in rows:
        table.add_row(name, *map(str, counts.numbers))
    return Group(table, *map(Paragraph, lines))


def path(rounds: Sequence[Tuning]) -> RenderableType:
    """What each round of a repair did, if there were several."""
    if len(rounds) == 1:
        return Group()
    table = Table("round", title="Digit after digit, on test")
    for heading in ("digit", "missed", "claimed", "all errors", "adapter"):
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


def extraction(tuning: Tuning) -> RenderableType:
    """What an extracted adapter kept of the change, layer by layer, and what it is worth beside the whole of it."""
    record, analysis, evaluation, facts = tuning.record, tuning.analysis, tuning.evaluation, tuning.record.extraction
    assert analysis is not None  # no guard refuses what is extracted
    assert evaluation is not None
    assert facts is not None
    assert record.proof is not None
    moved = ", ".join(f"{name} {100 * share:.3g} %" for name, share in facts.left_out.items() if share)
    return Group(
        Text(f"Data set: {DATASETS[evaluation.dataset.name]}"),
        _approximations(facts, record.rank),
        Paragraph(f"Left out, since an adapter holds no biases (moved by, of its norm): {moved or 'nothing'}"),
        _beside_checkpoint(record, facts, analysis.splits["test"]),
        _trained(record),
        excuses(record, analysis),
        proof(record.proof),
        _verdict(record, analysis),
    )


def _approximations(facts: Extraction, rank: int | None) -> Table:
    table = Table("layer", title=f"{facts.checkpoint} - base, at rank {rank}")
    for heading in ("rank", "energy kept", "largest singular values"):
        table.add_column(heading, justify="left" if heading.startswith("largest") else "right")
    for path, layer in facts.layers.items():
        values = " ".join(f"{value:.3g}" for value in layer.singular_values[:6])
        values += " …" if len(layer.singular_values) > 6 else ""
        table.add_row(path, str(layer.rank), f"{100 * layer.energy:.2f} %", values)
    return table


def _beside_checkpoint(record: TuningRecord, facts: Extraction, test: Comparison) -> Table:
    table = Table("test images", title=f"Digit {record.digit}: the base, all of the change, the adapter")
    for heading in ("missed", "claimed", "all errors"):
        table.add_column(heading, justify="right")
    table.add_row("base", *map(str, test.before.numbers))
    table.add_row(f"{facts.checkpoint} (all of it)", *map(str, facts.of_checkpoint.numbers))
    table.add_row(f"{record.name} (adapter)", *map(str, test.after.numbers))
    return table


def merging(document: Merging) -> RenderableType:
    """Where the merged network lies, and how far its logits are from those of base and adapters."""
    used = " + ".join(map(at_strength, document.merged))
    difference, largest = document.largest_difference, document.largest_logit
    return Group(
        evaluation(document.evaluation),
        Paragraph(f"Merged: base + {used}"),
        Paragraph(f"Largest logit difference from the unmerged model: {difference:.1e} of {largest:.3g}"),
        Paragraph(document.file, "Saved as ", label_style=""),
    )


def sizes(document: SizeTable) -> RenderableType:
    """Numbers that full fine-tuning and LoRA train, a row per rank."""
    shapes = ", ".join(map(_shape, document.layers.values()))
    table = Table("rank")
    for heading in ("LoRA", "share", "fewer"):
        table.add_column(heading, justify="right")
    for row in document.ranks:
        table.add_row(str(row.rank), f"{row.lora:,}", f"{100 * row.share:.2f} %", f"{1 / row.share:,.1f} x")
    return Group(Text(f"Full: {document.full:,} numbers in {shapes}{' and biases' * document.biases}"), table)


def parameters(table: AdapterParameters) -> RenderableType:
    """Shapes per layer, totals, and the share that the adapter adds."""
    rows = Table("layer", "W", "bias", "A", "B", title="Parameters")
    for row in table.layers:
        rows.add_row(row.layer, *map(_shape, (row.weight, row.bias, row.lora_A, row.lora_B)))
    total = f"{table.base:,} frozen + {table.added:,} trained = {table.total:,}"
    low = [row for row in table.layers if row.lora_A and row.lora_A[0] > min(row.weight)]
    notes = [f"Of {row.layer}, {_shape(row.weight)}, no update has a rank above {min(row.weight)}." for row in low]
    return Group(rows, Paragraph(f"{total} ({100 * table.share:.3f} % added)"), *map(Paragraph, notes))


def summary(comparison: Mapping[str, Comparison], digit: int) -> Table:
    """Missed, claimed and all errors of every split, before and after, together."""
    table = Table("", title=f"Digit {digit} before and after")
    for split in comparison:
        for heading in (f"{split} before", "after", "change"):
            table.add_column(heading, justify="right")
    names = (f"missed {digit}s", f"claimed as {digit}", "all errors")
    for key, words in zip(COUNTS, names, strict=True):
        cells = [(part.before.of(key), part.after.of(key)) for part in comparison.values()]
        table.add_row(words, *(cell for b, a in cells for cell in (str(b), str(a), change(a - b))))
    return table


def per_digit(test: Comparison, wrong_after: Sequence[int], target: int) -> Table:
    """Wrong test images of every digit before and after, with what was fixed and broken."""
    table = Table("digit", title="Wrong test images per digit")
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


def verification(findings: Verification) -> RenderableType:
    """The findings of `verify`: the base, then every adapter."""
    parts: list[RenderableType] = []
    if findings.dataset is not None:  # not known if the base is damaged
        parts.append(Text(f"Data set: {DATASETS[findings.dataset]}"))
    parts.append(_checked(findings.base.passed, "base: bytes, seal, stored logits and evaluation"))
    for adapter in findings.adapters:
        parts.append(_checked(adapter.passed, adapter.name))
        if adapter.proof is not None:
            parts.append(proof(adapter.proof))
    for checkpoint in findings.checkpoints:
        parts.append(_checked(checkpoint.passed, f"{checkpoint.name}: bytes, seal, stored logits"))
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
