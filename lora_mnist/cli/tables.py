"""Results → tables for a terminal of 80 columns: all there is to see. `results` has the short answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lora_mnist.cli.output import Line, labelled, table
from lora_mnist.evaluation.results import COUNTS, Analysis, Comparison, Counts, Proof
from lora_mnist.evaluation.significance import LEVEL
from lora_mnist.evaluation.verdict import Tested, paired, verdict_of
from lora_mnist.runs.listing import AdapterLine, Listing, Overview, RunLine, SizeTable
from lora_mnist.runs.schemas import (
    AdapterParameters,
    AppliedAdapter,
    Evaluation,
    Extraction,
    FinetuneRecord,
    FullParameters,
)

if TYPE_CHECKING:  # they import torch, which the commands that only read JSON do without
    from lora_mnist.pipeline import FinetuneResult, Prediction, Predictions, VerifyResult
    from lora_mnist.pipeline.compare import Network, PairOfNetworks, SideBySide
    from lora_mnist.pipeline.doctor import Diagnosis
    from lora_mnist.pipeline.predict import Guess

DATASETS = {"mnist": "MNIST", "digits": "scikit-learn's digits, not MNIST"}
PAIRS = 15  # of networks that `compare` prints at most, which are all of six networks
DIGEST = 8  # characters of a run's digest that `runs` shows; --json has it whole


def titled(title: str, below: RenderableType) -> Group:
    """A table below its title."""
    return Group(Line(title, style="italic"), below)


# Evaluations ----------------------------------------------------------------------------------------------------------


def evaluation(document: Evaluation) -> RenderableType:
    """Errors per digit on every split, and the confusion matrix of `test`."""
    splits = document.splits
    errors = table("digit", *(heading for split in splits for heading in (f"{split} images", "wrong", "%")))
    for digit in range(10):
        cells = [(part.images[digit], part.wrong[digit]) for part in splits.values()]
        errors.add_row(str(digit), *(text for images, wrong in cells for text in _share(wrong, images)))
    errors.add_section()
    errors.add_row("all", *(text for part in splits.values() for text in _share(part.errors, part.count)))
    accuracy = ", ".join(f"{100 * part.accuracy:.2f} % on {split}" for split, part in splits.items())
    return Group(
        titled(f"{DATASETS[document.dataset.name]}: errors of {_named(document)}", errors),
        Line(f"Accuracy {accuracy}."),
        confusion(splits["test"].confusion),
    )


def before_and_after(base: Evaluation, document: Evaluation) -> RenderableType:
    """Errors per digit of the base beside those of what was made from it, and the latter's confusion matrix."""
    headings = [text for split in document.splits for text in (f"{split} images", "before", "after", "change")]
    errors = table("digit", *headings)
    splits = [(base.splits[split], after) for split, after in document.splits.items()]

    def cells(images: int, before: int, after: int) -> tuple[str, str, str, Text]:
        return str(images), str(before), str(after), _change(after - before)

    for digit in range(10):
        row = [cells(after.images[digit], before.wrong[digit], after.wrong[digit]) for before, after in splits]
        errors.add_row(str(digit), *(cell for group in row for cell in group))
    errors.add_section()
    row = [cells(after.count, before.errors, after.errors) for before, after in splits]
    errors.add_row("all", *(cell for group in row for cell in group))
    title = f"{DATASETS[document.dataset.name]}: errors of the base (before) and of {_named(document)} (after)"
    return Group(
        titled(title, errors),
        Line(f"Accuracy {accuracies(base, document)}."),
        confusion(document.splits["test"].confusion),
    )


def accuracies(base: Evaluation, document: Evaluation) -> str:
    """Before and after, on every split."""
    pairs = [(base.splits[split].accuracy, after.accuracy, split) for split, after in document.splits.items()]
    return ", ".join(f"{100 * before:.2f} → {100 * after:.2f} % on {split}" for before, after, split in pairs)


def confusion(matrix: Sequence[Sequence[int]]) -> RenderableType:
    """Rows true digit, columns predicted digit; zeros are dots, so that errors stand out."""
    counts = table("true", *map(str, range(10)))
    for digit, row in enumerate(matrix):
        cells = (
            Text(str(count) if count else "·", style="dim" if column == digit or not count else "bold")
            for column, count in enumerate(row)
        )
        counts.add_row(str(digit), *cells)
    return titled("Confusion on test (columns: predicted digit)", counts)


def _named(document: Evaluation) -> str:
    """The network that was evaluated."""
    used = "".join(f" + {at_strength(adapter)}" for adapter in document.adapters)
    return f"the base{used}" if document.checkpoint is None else f"checkpoint {document.checkpoint}"


# Fine-tuning ----------------------------------------------------------------------------------------------------------


def finetuning(tuning: FinetuneResult) -> RenderableType:
    """Parameters, what changed, the proof and the verdict; of an adapter, or of all weights trained."""
    record, analysis, evaluation = tuning.record, tuning.analysis, tuning.evaluation
    if analysis is None or evaluation is None:
        return Line(not_kept(record), style="bold")
    guard, parts = record.guard, [Line(f"Data set: {DATASETS[evaluation.dataset.name]}"), _trained(record)]
    parts.append(_summary(analysis.splits, record.digit))
    if guard is not None and guard.rule != "none":
        kept = "as trained" if guard.scale == 1 else f"at {guard.scale:g} of the trained update"
        parts.append(Line(f"Kept {kept}: the fewest errors on val that --guard {guard.rule} allows."))
    parts.append(_alternatives(record, analysis))
    parts.append(_per_digit(analysis.splits["test"], evaluation.splits["test"].wrong, record.digit))
    parts += [] if record.proof is None else [proof(record.proof)]
    return Group(*parts, Line(verdict_of(analysis, record.digit).words, style="bold"))


def _trained(record: FinetuneRecord) -> RenderableType:
    """The layers of an adapter, or how many weights there are."""
    if isinstance(record.parameters, FullParameters):
        return Line(f"All {record.trained:,} weights of a copy trained; the base is as it was.")
    return parameters(record.parameters)


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


def _summary(comparison: Mapping[str, Comparison], digit: int) -> RenderableType:
    """Missed, false alarms and all errors of every split, before and after, together."""
    counts = table("", *(text for split in comparison for text in (f"{split} before", "after", "change")))
    names = (f"missed {digit}s", "false alarms", "all errors")
    for key, words in zip(COUNTS, names, strict=True):
        cells = [(part.before.of(key), part.after.of(key)) for part in comparison.values()]
        counts.add_row(words, *(cell for b, a in cells for cell in (str(b), str(a), _change(a - b))))
    return titled(f"Digit {digit} before and after", counts)


def _per_digit(test: Comparison, wrong_after: Sequence[int], target: int) -> RenderableType:
    """Wrong test images of every digit before and after, with what was fixed and broken."""
    counts = table("digit", "before", "fixed", "broken", "after", "change")
    for digit in range(10):
        fixed, broken, after = test.fixed[digit], test.broken[digit], wrong_after[digit]
        name = f"{digit} (target)" if digit == target else str(digit)
        counts.add_row(name, *map(str, (after + fixed - broken, fixed, broken, after)), _change(broken - fixed))
    return titled("Wrong test images per digit", counts)


def _alternatives(record: FinetuneRecord, analysis: Analysis) -> RenderableType:
    """What else would have lowered the missed images: a shifted threshold, and the control where it was trained."""
    test, digit, threshold = analysis.splits["test"], record.digit, analysis.threshold
    counts = table("on test", f"missed {digit}s", "false alarms", "all errors")
    rows: list[tuple[str, Counts]] = [("before", test.before), (record.name, test.after)]
    shift = f"{threshold.shift:+.2f} on the logit of {digit}, by {threshold.chosen_on}"
    rows.append((shift, threshold.splits["test"]))
    lines = []
    if control := analysis.control:
        beside = control.splits["test"]
        kept = "" if control.scale is not None else ", not kept"
        rows.append((f"control: uniform sampling{kept}", beside))
        if number := control.threshold:
            rows.append((f"control {number.shift:+.2f} on its logit, by {number.chosen_on}", number.splits["test"]))
        lines = [paired(beside.all, "all images"), paired(beside.digit, f"the {digit}s")]
    for name, found in rows:
        counts.add_row(name, *map(str, found.numbers))
    return Group(titled(f"Digit {digit}, beside what else could be done", counts), *map(Line, lines))


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


def path(rounds: Sequence[FinetuneResult]) -> RenderableType:
    """What each round of a repair did, if there were several."""
    if len(rounds) == 1:
        return Group()
    steps = table("round", "digit", "missed", "false alarms", "all errors", "adapter", words=("adapter",))
    for i, tuning in enumerate(rounds, 1):
        record, analysis = tuning.record, tuning.analysis
        if analysis is None:
            steps.add_row(str(i), str(record.digit), "-", "-", "-", "not kept")
        else:
            steps.add_row(str(i), str(record.digit), *_moved(analysis.splits["test"], " → "), record.name)
    return titled("Digit after digit, on test", steps)


def extraction(tuning: FinetuneResult) -> RenderableType:
    """What an extracted adapter holds of a checkpoint's change, layer by layer, and what it does beside all of it."""
    record, analysis, facts = tuning.record, tuning.analysis, tuning.record.extraction
    assert facts is not None  # `extract` made it
    assert analysis is not None  # no guard refuses what is extracted
    assert record.proof is not None
    left_out = ", ".join(f"{name} {100 * share:.3g} %" for name, share in facts.left_out.items() if share)
    test = analysis.splits["test"]
    counts = table("test images", "missed", "false alarms", "all errors")
    counts.add_row("base", *map(str, test.before.numbers))
    counts.add_row(f"{facts.checkpoint} (all of it)", *map(str, facts.of_checkpoint.numbers))
    counts.add_row(f"{record.name} (adapter)", *map(str, test.after.numbers))
    return Group(
        _approximations(facts, record.rank),
        Line(f"Left out, since an adapter holds no biases (moved by, of its norm): {left_out or 'nothing'}"),
        titled(f"Digit {record.digit}: the base, all of the change, the adapter", counts),
        _trained(record),
        _alternatives(record, analysis),
        proof(record.proof),
        Line(verdict_of(analysis, record.digit).words, style="bold"),
    )


def _approximations(facts: Extraction, rank: int | None) -> RenderableType:
    largest = "largest singular values"
    layers = table("layer", "rank", "energy kept", largest, words=(largest,))
    for name, layer in facts.layers.items():
        values = " ".join(f"{value:.3g}" for value in layer.singular_values[:6])
        values += " …" if len(layer.singular_values) > 6 else ""
        layers.add_row(name, str(layer.rank), f"{100 * layer.energy:.2f} %", values)
    return titled(f"{facts.checkpoint} - base, at rank {rank}", layers)


# Proofs ---------------------------------------------------------------------------------------------------------------


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
        parts.append(Line(f"Data set: {DATASETS[findings.dataset]}"))
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
    parts += [Line(note, "note    ") for note in findings.notes]
    if findings.digest is not None:
        parts.append(Line(findings.digest, "run digest  "))
    return Group(*parts)


# Lists ----------------------------------------------------------------------------------------------------------------


def adapters(listing: Listing) -> RenderableType:
    """One line for every adapter, and for every checkpoint with all weights trained."""
    digest = labelled("digest", listing.digest)
    if not listing.adapters:
        return Group(Line(f"{listing.run} has no adapters yet."), digest)
    rows = table("adapter", "digit", "rank", "numbers", "missed", "false al.", "errors", "proof", "size")
    notes = []
    for line in listing.adapters:
        rows.add_row(line.name, *_facts(line), "-" if line.proof is None else _mark(line.proof), _size(line.bytes))
        if line.on_top_of:
            notes.append(f"{line.name} is for use on top of {', '.join(line.on_top_of)}.")
        if line.drawings:
            notes.append(f"{line.name} was taught {line.drawings:,} drawings.")
    return Group(titled(f"{DATASETS[listing.dataset]}: adapters, with test figures", rows), *map(Line, notes), digest)


def _facts(line: AdapterLine) -> list[str]:
    """Digit, rank, size, and the three counts before and after."""
    numbers = f"{line.parameters / 1e6:.2f} M" if line.parameters >= 1e6 else f"{line.parameters:,}"
    return [str(line.digit), "-" if line.rank is None else str(line.rank), numbers, *_moved(line, "→")]


def runs(document: Overview) -> RenderableType:
    """Data, base, adapters, what the best one did, size and digest of every run; then what is wrong with which."""
    if not document.runs:
        return Line(f"There is no run below {document.folder}.")
    rows = table("run", "data", "base", "adapters", "best", "missed", "errors", "size", "digest", words=("best",))
    for line in document.runs:
        rows.add_row(*_overview(line, document.folder))
    faults = (f"{line.run} is damaged: {line.fault}" for line in document.runs if line.fault)
    return Group(
        titled(f"Runs below {document.folder}, with test figures", rows),
        *(Line(fault, style="bold red") for fault in faults),
    )


def _overview(line: RunLine, folder: str) -> list[str | Text]:
    name = line.run.removeprefix(f"{folder}/")
    if line.fault is not None or line.accuracy is None:
        return [name, Text("damaged", style="bold red"), "", "", "", "", "", _size(line.bytes), ""]
    done = ["-", "-", "-"]
    if line.best:
        missed, _, errors = _moved(line.best, "→")
        done = [line.best.name, missed, errors]
    digest = (line.digest or "")[:DIGEST]
    return [
        *(name, line.dataset or "", f"{100 * line.accuracy:.2f} %", str(line.adapters)),
        *(*done, _size(line.bytes), digest),
    ]


def sizes(document: SizeTable) -> RenderableType:
    """Numbers that full fine-tuning and LoRA train, a row per rank."""
    shapes = ", ".join(map(_shape, document.layers.values()))
    rows = table("rank", "LoRA", "share", "fewer")
    for row in document.ranks:
        rows.add_row(str(row.rank), f"{row.lora:,}", f"{100 * row.share:.2f} %", f"{1 / row.share:,.1f} x")
    return Group(Line(f"Full: {document.full:,} numbers in {shapes}{' and biases' * document.biases}"), rows)


def diagnosis(document: Diagnosis) -> RenderableType:
    """What is good and what is not, and what to do about that."""
    lines = []
    for check in document.checks:
        mark, style = ("good", "green") if check.passed else ("BAD", "bold red")
        way_out = "" if check.way_out is None else f". {check.way_out}"
        lines.append(Line(f"{check.name}: {check.finding}{way_out}", f"{mark:<6}", label_style=style))
    failed = sum(not check.passed for check in document.checks)
    end = "All is well." if not failed else f"{failed} of {len(document.checks)} are not good."
    return Group(*lines, Line(end, style="bold"))


# Comparisons ----------------------------------------------------------------------------------------------------------


def side_by_side(document: SideBySide, every_pair: bool = False) -> RenderableType:
    """What each network does on `test`, and each pair on the same images: if they are many, those with the best one."""
    pairs = list(document.pairs)
    if not every_pair and len(pairs) > PAIRS:
        best = {min(same, key=lambda one: one.errors).number for same in document.datasets.values()}
        pairs = [pair for pair in pairs if best & {pair.first, pair.second}]
    parts: list[RenderableType] = [_networks(document), *([_pairs(pairs)] if pairs else [])]
    return Group(*parts, *map(Line, _notes(document, len(pairs))))


def _networks(document: SideBySide) -> RenderableType:
    """A table for each run."""
    tables: dict[str, Table] = {}
    for network in document.networks:
        title = f"{network.run}: {DATASETS[network.dataset.name]}, {network.images:,} test images"
        if title not in tables:
            tables[title] = table("network", "digit", "rank", "numbers", "missed", "false alarms", "errors")
        tables[title].add_row(f"{network.number} {network.name}", *_figures(network))
    return Group(*(titled(title, rows) for title, rows in tables.items()))


def _figures(network: Network) -> list[str]:
    if network.adapter is None:
        return ["-", "-", "-", "-", "-", str(network.errors)]
    return _facts(network.adapter)


def _pairs(pairs: list[PairOfNetworks]) -> RenderableType:
    rows = table("pair", "images", "first only", "second only", "p", "", words=("images", ""))

    def cells(pair: PairOfNetworks, test: Tested) -> tuple[str, str, str, str]:
        if test.p <= LEVEL:
            found = f"{pair.second if test.fixed > test.broken else pair.first} is better"
        else:
            found = "may be chance" if test.change else "as good"
        return str(test.broken), str(test.fixed), f"{test.p:.2g}" if test.p >= 1e-4 else "<0.0001", found

    for pair in pairs:
        rows.add_row(f"{pair.first} and {pair.second}", "all", *cells(pair, pair.errors))
        if pair.missed is not None:
            rows.add_row("", f"the {pair.digit}s", *cells(pair, pair.missed))
    return titled("Images that one of two alone gets right", rows)


def _notes(document: SideBySide, shown: int) -> Iterator[str]:
    for network in document.networks:
        if network.adapter and network.adapter.on_top_of:
            yield f"{network.number} is with {', '.join(network.adapter.on_top_of)} on, before and after."
    if document.pairs:
        yield "p: McNemar's exact test, of each pair by itself."
    if shown < len(document.pairs):
        yield f"Of {len(document.pairs)} pairs, those with the network of fewest errors are shown; --verbose shows all."
    if len(document.datasets) > 1:
        groups = [
            f"{', '.join(str(one.number) for one in same)} ({same[0].dataset.name})"
            for same in document.datasets.values()
        ]
        yield f"No test between networks whose test images differ: {' and '.join(groups)}."


# Predictions ----------------------------------------------------------------------------------------------------------


def predictions(document: Predictions) -> RenderableType:
    """Of one picture all probabilities, of several a line each."""
    pictures, guesses = document.predictions, document.predictions[0].guesses
    stacks = [
        Line(f"{guess.adapter.name} is shown on top of {', '.join(guess.on_top_of)}, as it was trained.")
        for guess in guesses
        if guess.adapter and guess.on_top_of
    ]
    if len(pictures) == 1:
        note = Line(f"Probabilities in per cent; trained on {DATASETS[document.dataset]}.")
        return Group(Line(_picture(pictures[0])), _probabilities(pictures[0]), note, *stacks)
    rows = table("picture", *map(_network, guesses))
    for picture in pictures:
        cells = (f"{guess.digit} ({100 * max(guess.probabilities):.0f} %)" for guess in picture.guesses)
        rows.add_row(_picture(picture), *cells)
    return Group(titled(f"{DATASETS[document.dataset]}: what the networks see", rows), *stacks)


def _probabilities(prediction: Prediction) -> Table:
    """A row for each network, per cent of every digit; less than half of one is a dot."""
    rows = table("", "sees", *map(str, range(10)))
    for guess in prediction.guesses:
        shares = [round(100 * share) for share in guess.probabilities]
        seen = Text(str(guess.digit), style="bold")
        rows.add_row(_network(guess), seen, *(str(share) if share else "·" for share in shares))
    return rows


def _picture(prediction: Prediction) -> str:
    return prediction.file or f"test image {prediction.index}, a {prediction.label}"


def _network(guess: Guess) -> str:
    if guess.adapter is None:
        return "base"
    strength = guess.adapter.strength
    return guess.adapter.name if strength == 1 else f"{guess.adapter.name} at {strength:g}"


# Cells ----------------------------------------------------------------------------------------------------------------


def at_strength(adapter: AppliedAdapter) -> str:
    """An adapter that is on."""
    return f"{adapter.name} at strength {adapter.strength:g}"


def _share(wrong: int, count: int) -> tuple[str, str, str]:
    return str(count), str(wrong), f"{100 * wrong / count:.2f}" if count else "-"


def _moved(line: AdapterLine | Comparison, arrow: str) -> list[str]:
    """The three counts, before and after."""
    counts = zip(line.before.numbers, line.after.numbers, strict=True)
    return [f"{before}{arrow}{after}" for before, after in counts]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _shape(shape: Sequence[int] | None) -> str:
    return " x ".join(map(str, shape)) if shape else "-"


def _change(more: int) -> Text:
    """How many more are wrong: red, or fewer: green."""
    style = "red" if more > 0 else "green" if more < 0 else ""
    return Text(f"{more:+d}" if more else "0", style=style)


def _mark(passed: bool) -> Text:
    """One word, in its colour."""
    return Text("passed", style="green") if passed else Text("FAILED", style="bold red")


def _checked(passed: bool, what: str) -> Line:
    word = _mark(passed)
    return Line(what, f"{word}  ", label_style=str(word.style))
