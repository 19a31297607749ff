"""Results → tables for a terminal of 80 columns: all there is to see. `answers` has the short ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lora_mnist.cli.output import Line, labelled, plain_table, table
from lora_mnist.evaluation.significance import LEVEL
from lora_mnist.settings.layers import DATASETS

if TYPE_CHECKING:  # --help does without pydantic, and the commands that only read JSON without torch
    from lora_mnist.evaluation.results import Analysis, Comparison, Counts, Proof, ScoreTable, SplitResult
    from lora_mnist.pipeline.compare import SideBySide
    from lora_mnist.pipeline.doctor import Diagnosis
    from lora_mnist.pipeline.finetune import FinetuneResult
    from lora_mnist.pipeline.predict import Predictions
    from lora_mnist.pipeline.verify import VerifyResult
    from lora_mnist.runs.listing import AdapterLine, Listing, Overview, SizeTable
    from lora_mnist.runs.schemas import AdapterParameters, AppliedAdapter, Evaluation, Extraction, FinetuneRecord

PAIRS = 15  # of networks that `compare` prints at most, which are all of six networks
NARROW = "{}→{}"  # a count before and after, where a table has nine columns
DIGEST = 8  # characters of a run's digest that `runs` shows; --json has it whole


def titled(title: str, below: RenderableType) -> RenderableType:
    """A table below its title."""
    return Group(Line(title, style="italic"), below)


def evaluation(document: Evaluation, base: Evaluation | None = None) -> RenderableType:
    """Errors per digit on every split, beside those of the base if it is given, and the confusion matrix of `test`."""
    figures = ("wrong", "%") if base is None else ("before", "after", "change")
    errors = table("digit", *(text for split in document.splits for text in (f"{split} images", *figures)))
    for i, name in enumerate((*map(str, range(10)), "all")):
        cells: list[str | Text] = []
        for split, part in document.splits.items():
            images, wrong = [*part.images, part.count][i], by_digit(part)[i]
            cells.append(str(images))
            if base is None:
                cells += [str(wrong), f"{100 * wrong / images:.2f}" if images else "-"]
            else:
                before = by_digit(base.splits[split])[i]
                cells += [str(before), str(wrong), f"{wrong - before:+d}" if wrong != before else "0"]
        if name == "all":
            errors.add_section()
        errors.add_row(name, *cells)
    of = f"checkpoint {document.checkpoint}" if document.checkpoint else f"the {with_adapters(document.adapters)}"
    of = of if base is None else f"the base (before) and of {of} (after)"

    confusion = table("true", *map(str, range(10)))
    for digit, row in enumerate(document.splits["test"].confusion):
        counts = [Text(str(count or "·"), style="bold" if count else "dim") for count in row]
        counts[digit].style = "dim"  # as are the zeros, so that errors stand out
        confusion.add_row(str(digit), *counts)
    return Group(
        titled(f"{DATASETS[document.dataset.name]}: errors of {of}", errors),
        Line(f"Accuracy {', '.join(accuracies(document, base))}."),
        titled("Confusion on test (columns: predicted digit)", confusion),
        scores(document.splits["test"].scores, base.splits["test"].scores if base else None),
    )


def scores(found: ScoreTable, before: ScoreTable | None = None) -> RenderableType:
    """Precision, recall and F1 of every digit, after those of before if they are given."""
    rows = table("digit", "precision", "recall", "F1")
    for name, one in found.rows.items():
        if name == "mean":
            rows.add_section()
        cells = [f"{100 * value:.1f}" for value in vars(one).values()]
        if before:
            was = vars(before.rows[name]).values()
            cells = [f"{100 * value:.1f} → {cell}" for value, cell in zip(was, cells, strict=True)]
        rows.add_row(name, *cells)
    return titled("Per cent on test", rows)


def by_digit(part: SplitResult) -> list[int]:
    """Wrong images of every digit, and of all."""
    return [*part.wrong, part.errors]


def accuracies(document: Evaluation, base: Evaluation | None = None) -> list[str]:
    """On every split, after that of the base if it is given."""
    before = {} if base is None else {name: f"{100 * part.accuracy:.2f} → " for name, part in base.splits.items()}
    return [f"{before.get(name, '')}{100 * part.accuracy:.2f} % on {name}" for name, part in document.splits.items()]


def with_adapters(applied: Sequence[AppliedAdapter]) -> str:
    """The base with those that are on."""
    return " + ".join(["base", *(f"{adapter.name} at strength {adapter.strength:g}" for adapter in applied)])


def finetuning(tuning: FinetuneResult) -> RenderableType:
    """All of an adapter, trained or extracted, or of a checkpoint with all weights trained."""
    from lora_mnist.runs.schemas import FullParameters

    record, analysis, evaluation, verdict = tuning.record, tuning.analysis, tuning.evaluation, tuning.verdict
    if analysis is None or evaluation is None or verdict is None:
        return Line(not_kept(record), style="bold")
    parts = [] if record.extraction is None else [_extraction(record.extraction, record.rank)]
    if isinstance(record.parameters, FullParameters):
        parts.append(Line(f"All {record.trained:,} weights of a copy trained; the base is as it was."))
    else:
        parts.append(parameters(record.parameters))
    parts.append(titled(f"Digit {record.digit} before and after", three_counts(analysis, evaluation, record.digit)))
    if (guard := record.guard) and guard.rule != "none":
        kept = "as trained" if guard.scale == 1 else f"at {guard.scale:g} of the trained update"
        parts.append(Line(f"Kept {kept}: the fewest errors on val that --guard {guard.rule} allows."))
    parts.append(_alternatives(record, analysis))

    test, counts = analysis.splits["test"], table("digit", "before", "fixed", "broken", "after", "change", "p")
    for digit, (one, after) in enumerate(zip(verdict.facts.digits, evaluation.splits["test"].wrong, strict=True)):
        name = f"{digit} (target)" if digit == record.digit else str(digit)
        style = "red" if one.is_more else "green" if one.is_fewer else ""
        change = Text(f"{one.change:+d}" if one.change else "0", style=style)
        cells = map(str, (after - one.change, one.fixed, one.broken, after))
        counts.add_row(name, *cells, change, f"{one.p:.2g}")
    parts.append(titled("Wrong test images per digit (p: McNemar's, corrected for ten digits)", counts))
    parts.append(scores(evaluation.splits["test"].scores, test.scores_before))
    parts += [] if record.proof is None else [proof(record.proof)]
    return Group(*parts, Line(verdict.words, style="bold"))


def parameters(document: AdapterParameters) -> RenderableType:
    """Shapes per layer, totals, and the share that the adapter adds."""
    rows = table("layer", "W", "bias", "A", "B", words=("W", "bias", "A", "B"))
    notes = []
    for row in document.layers:
        rows.add_row(row.layer, *map(_shape, (row.weight, row.bias, row.lora_A, row.lora_B)))
        if row.lora_A and row.lora_A[0] > min(row.weight):
            notes.append(Line(f"Of {row.layer}, {_shape(row.weight)}, no update has a rank above {min(row.weight)}."))
    total = f"{document.base:,} frozen + {document.added:,} trained = {document.total:,}"
    return Group(titled("Parameters", rows), Line(f"{total} ({100 * document.share:.3f} % added)"), *notes)


def three_counts(analysis: Analysis, evaluation: Evaluation, digit: int) -> Table:
    """Missed, false alarms and all errors, before → after, on every split."""
    columns = [f"{split}, of {evaluation.splits[split].count:,}" for split in analysis.splits]
    rows = plain_table(DATASETS[evaluation.dataset.name], *columns)
    names = (
        f"missed: {digit}s taken for another digit",
        f"false alarms: others taken for a {digit}",
        "all errors, of every digit",
    )
    for words, *cells in zip(names, *(before_after(part) for part in analysis.splits.values()), strict=True):
        rows.add_row(words, *cells)
    accuracies = []
    for split, part in analysis.splits.items():
        was, now = (100 - 100 * one.errors / evaluation.splits[split].count for one in (part.before, part.after))
        accuracies.append(f"{was:.2f} → {now:.2f} %")
    rows.add_row("accuracy", *accuracies)
    return rows


def _alternatives(record: FinetuneRecord, analysis: Analysis) -> RenderableType:
    """What else would have lowered the missed images: a shifted threshold, and the control where it was trained."""
    from lora_mnist.evaluation.verdict import control_sentence

    test, digit, threshold = analysis.splits["test"], record.digit, analysis.threshold
    rows: dict[str, Counts] = {"before": test.before, record.name: test.after}
    if extraction := record.extraction:
        rows[f"{extraction.checkpoint}, all of it"] = extraction.of_checkpoint
    rows[f"{threshold.shift:+.2f} on the logit of {digit}, by {threshold.chosen_on}"] = threshold.splits["test"]
    lines = []
    if control := analysis.control:
        beside, number = control.splits["test"], control.threshold
        rows[f"control: uniform sampling{', not kept' * (control.scale is None)}"] = beside
        rows[f"control {number.shift:+.2f} on its logit, by {number.chosen_on}"] = number.splits["test"]
        lines = [
            Line(control_sentence(beside.all, "all images")),
            Line(control_sentence(beside.digit, f"the {digit}s")),
        ]
    counts = table("on test", f"missed {digit}s", "false alarms", "all errors")
    for name, found in rows.items():
        counts.add_row(name, *map(str, found.numbers))
    return Group(titled(f"Digit {digit}, beside what else could be done", counts), *lines)


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
    return f"Nothing kept: {why} --guard none keeps it as trained. What was kept before is still there."


def rounds(results: Sequence[FinetuneResult]) -> RenderableType:
    """What each round of a repair did, if there were several."""
    if len(results) == 1:
        return Group()
    steps = table("round", "digit", "missed", "false alarms", "all errors", "adapter", words=("adapter",))
    for i, tuning in enumerate(results, 1):
        record, analysis = tuning.record, tuning.analysis
        done = [*before_after(analysis.splits["test"]), record.name] if analysis else ["-", "-", "-", "not kept"]
        steps.add_row(str(i), str(record.digit), *done)
    return titled("Digit after digit, on test", steps)


def _extraction(extraction: Extraction, rank: int | None) -> RenderableType:
    """What an extracted adapter holds of a checkpoint's change, layer by layer."""
    largest = "largest singular values"
    layers = table("layer", "rank", "energy kept", largest, words=(largest,))
    for name, layer in extraction.layers.items():
        values = [f"{value:.3g}" for value in layer.singular_values[:6]]
        values += ["…"] * (len(layer.singular_values) > 6)
        layers.add_row(name, str(layer.rank), f"{100 * layer.energy:.2f} %", " ".join(values))
    left_out = ", ".join(f"{name} {100 * share:.3g} %" for name, share in extraction.left_out.items() if share)
    note = f"Left out, since an adapter holds no biases (moved by, of its norm): {left_out or 'nothing'}"
    return Group(titled(f"{extraction.checkpoint} - base, at rank {rank}", layers), Line(note))


def proof(found: Proof) -> RenderableType:
    """The three claims, one line each."""
    frozen, off, on = found.frozen, found.off, found.on
    return Group(
        _checked(frozen.passed, f"frozen: {frozen.tensors} base tensors, {frozen.bytes:,} bytes, all as before"),
        _checked(off.passed, f"off: logits of {off.images:,} images bit-identical to the base"),
        _checked(on.passed, f"on: W + scaling · B A to {on.largest_difference:.1e} of {on.largest_logit:.3g}"),
    )


def verification(findings: VerifyResult) -> RenderableType:
    """The findings of `verify`: the base, then every adapter."""
    parts: list[RenderableType] = []
    everything = "bytes, fingerprint, logits and all that follows from them"
    if findings.dataset is not None:  # not known if the base is damaged
        parts.append(Line(f"Data set: {DATASETS[findings.dataset]}"))
    parts.append(_checked(findings.base.passed, f"base: {everything}"))
    for adapter in findings.adapters:
        parts.append(_checked(adapter.passed, adapter.name))
        parts += [] if adapter.proof is None else [proof(adapter.proof)]
    parts += [_checked(one.passed, f"{one.name}: {everything}") for one in findings.checkpoints]
    if findings.report is not None:
        parts.append(_checked(findings.report, "report: its numbers are those of the run"))
    parts += [Line(note, "note    ") for note in findings.notes]
    parts += [] if findings.digest is None else [Line(findings.digest, "run digest  ")]
    return Group(*parts)


def adapters(listing: Listing) -> RenderableType:
    """One line for every adapter, and for every checkpoint with all weights trained."""
    digest = labelled("digest", listing.digest)
    base = [Line(f"The base {listing.rare}.")] if listing.rare else []
    base += [Line(f"The base was imported from {listing.imported}.")] if listing.imported else []
    if not listing.adapters:
        return Group(Line(f"{listing.run} has no adapters yet."), *base, digest)
    rows = table("adapter", "digit", "rank", "numbers", "missed", "false al.", "errors", "proof", "size")
    notes = []
    for line in listing.adapters:
        rows.add_row(line.name, *_figures(line), "-" if line.proof is None else _mark(line.proof), _size(line.bytes))
        if line.on_top_of:
            notes.append(Line(f"{line.name} is for use on top of {', '.join(line.on_top_of)}."))
        if line.drawings:
            notes.append(Line(f"{line.name} was taught {line.drawings:,} drawings."))
    title = f"{DATASETS[listing.dataset]}: adapters, with test figures"
    return Group(titled(title, rows), *base, *notes, digest)


def _figures(line: AdapterLine) -> list[str]:
    """Digit, rank, size, and the three counts before and after."""
    numbers = f"{line.parameters / 1e6:.2f} M" if line.parameters >= 1e6 else f"{line.parameters:,}"
    rank, (missed, alarms, errors) = "-" if line.rank is None else str(line.rank), before_after(line, NARROW)
    if line.digit is None:
        return ["-", rank, numbers, "-", "-", errors]
    return [str(line.digit), rank, numbers, missed, alarms, errors]


def runs(document: Overview) -> RenderableType:
    """Data, base, adapters, what the best one did, size and digest of every run; then what is wrong with which."""
    if not document.runs:
        return Line(f"There is no run below {document.folder}.")
    rows = table("run", "data", "base", "adapters", "best", "missed", "errors", "size", "digest", words=("best",))
    notes, faults = [], []
    for line in document.runs:
        name = line.run.removeprefix(f"{document.folder}/")
        if line.fault is not None or line.accuracy is None:
            rows.add_row(name, Text("damaged", style="bold red"), *[""] * 5, _size(line.bytes))
            faults.append(Line(f"{line.run} is damaged: {line.fault}", style="bold red"))
            continue
        missed = "-" if line.best is None or line.best.digit is None else before_after(line.best, NARROW)[0]
        errors = NARROW.format(line.errors, line.best.after.errors) if line.best else "-"
        best = [line.best.name if line.best else "-", missed, errors]
        base = [line.dataset or "", f"{100 * line.accuracy:.2f} %", str(line.adapters)]
        rows.add_row(name, *base, *best, _size(line.bytes), (line.digest or "")[:DIGEST])
        notes += [Line(f"{name}: the base {line.rare}.")] if line.rare else []
        notes += [Line(f"{name}: the base was imported from {line.imported}.")] if line.imported else []
    return Group(titled(f"Runs below {document.folder}, with test figures", rows), *notes, *faults)


def sizes(document: SizeTable) -> RenderableType:
    """Numbers that full fine-tuning and LoRA train, a row per rank."""
    shapes = ", ".join(map(_shape, document.layers.values()))
    rows = table("rank", "LoRA", "share of full")
    for row in document.ranks:
        rows.add_row(str(row.rank), f"{row.lora:,}", f"{100 * row.share:.3g} %")
    return Group(Line(f"Full: {document.full:,} numbers in {shapes}{' and biases' * document.biases}"), rows)


def diagnosis(document: Diagnosis) -> RenderableType:
    """What is good, what could be better, and what is not good; and what to do about that."""
    lines = []
    for check in document.checks:
        way_out = "" if check.way_out is None else f". {check.way_out}"
        word = "good" if check.way_out is None else "note"
        lines.append(_checked(check.passed, f"{check.name}: {check.finding}{way_out}", word, "BAD "))
    failed = sum(not check.passed for check in document.checks)
    end = "All is well." if not failed else f"{failed} of {len(document.checks)} are not good."
    return Group(*lines, Line(end, style="bold"))


def side_by_side(document: SideBySide, every_pair: bool = False) -> RenderableType:
    """What each network does on `test`, and each pair on the same images: if they are many, those with the best one."""
    pairs = list(document.pairs)
    if not every_pair and len(pairs) > PAIRS:
        best = {min(same, key=lambda one: one.errors).number for same in document.datasets.values()}
        pairs = [pair for pair in pairs if best & {pair.first, pair.second}]
    tables: dict[str, Table] = {}  # one for each run, and one for pairs
    for network in document.networks:
        title = f"{network.run}: {DATASETS[network.dataset.name]}, {network.images:,} test images"
        if title not in tables:
            tables[title] = table("network", "digit", "rank", "numbers", "missed", "false alarms", "errors")
        figures = _figures(network.adapter) if network.adapter else ["-"] * 5 + [str(network.errors)]
        tables[title].add_row(f"{network.number} {network.name}", *figures)
    if pairs:
        title = "Images that one of two alone gets right"
        tables[title] = table("pair", "images", "first only", "second only", "p", "", words=("images", ""))
    for pair in pairs:
        tests = {"all": pair.errors} | ({} if pair.missed is None else {f"the {pair.digit}s": pair.missed})
        for images, test in tests.items():
            found = "may be chance" if test.change else "as good"
            if test.p <= LEVEL:
                found = f"{pair.second if test.fixed > test.broken else pair.first} is better"
            p = f"{test.p:.2g}" if test.p >= 1e-4 else "<0.0001"
            name = f"{pair.first} and {pair.second}" if images == "all" else ""
            tables[title].add_row(name, images, str(test.broken), str(test.fixed), p, found)
    return Group(*map(titled, tables, tables.values()), *map(Line, _notes(document, len(pairs))))


def _notes(document: SideBySide, shown: int) -> Iterator[str]:
    for network in document.networks:
        if network.adapter and network.adapter.on_top_of:
            yield f"{network.number} is with {', '.join(network.adapter.on_top_of)} on, before and after."
    if document.pairs:
        yield "p: McNemar's exact test, of each pair by itself."
    if shown < len(document.pairs):
        yield f"Of {len(document.pairs)} pairs, those with the network of fewest errors are shown; --verbose shows all."
    if len(document.datasets) > 1:
        numbers = [", ".join(str(one.number) for one in same) for same in document.datasets.values()]
        names = [same[0].dataset.name for same in document.datasets.values()]
        groups = " and ".join(map("{} ({})".format, numbers, names))
        yield f"No test between networks whose test images differ: {groups}."


def predictions(document: Predictions) -> RenderableType:
    """Of one picture per cent of every digit, a row for each network; of several pictures a line each.

    Below stands why others were refused.
    """
    notes = [Line(reason) for reason in (document.refused or {}).values()]
    if not document.predictions:
        return Group(*notes)
    guesses, networks = document.predictions[0].guesses, []
    for guess in guesses:
        name, strength = (guess.adapter.name, guess.adapter.strength) if guess.adapter else ("base", 1)
        networks.append(name if strength == 1 else f"{name} at {strength:g}")
        if guess.on_top_of:
            notes.append(Line(f"{name} is shown on top of {', '.join(guess.on_top_of)}, as it was trained."))
    pictures = [one.file or f"test image {one.index}, a {one.label}" for one in document.predictions]
    if len(pictures) > 1:
        rows = table("picture", *networks)
        for picture, prediction in zip(pictures, document.predictions, strict=True):
            cells = (f"{guess.digit} ({100 * max(guess.probabilities):.0f} %)" for guess in prediction.guesses)
            rows.add_row(picture, *cells)
        return Group(titled(f"{DATASETS[document.dataset]}: what the networks see", rows), *notes)
    rows = table("", "sees", *map(str, range(10)))
    for name, guess in zip(networks, guesses, strict=True):
        shares = [round(100 * share) for share in guess.probabilities]
        cells = (str(share or "·") for share in shares)  # a dot is less than half of one per cent
        rows.add_row(name, Text(str(guess.digit), style="bold"), *cells)
    note = Line(f"Probabilities in per cent; trained on {DATASETS[document.dataset]}.")
    return Group(Line(pictures[0]), rows, note, *notes)


def before_after(line: AdapterLine | Comparison, form: str = "{:,} → {:,}") -> list[str]:
    """Missed, false alarms and all errors, before and after."""
    return [form.format(*pair) for pair in zip(line.before.numbers, line.after.numbers, strict=True)]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _shape(shape: Sequence[int] | None) -> str:
    return " x ".join(map(str, shape)) if shape else "-"


def _mark(passed: bool, good: str = "passed", bad: str = "FAILED") -> Text:
    return Text(good, style="green") if passed else Text(bad, style="bold red")


def _checked(passed: bool, what: str, *words: str) -> Line:
    word = _mark(passed, *words)
    return Line(what, f"{word}  ", label_style=str(word.style))
