"""The answer first: what the commands that train print unless asked for more. `tables` has all the rest."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lora_mnist.cli import tables
from lora_mnist.cli.output import Line, labelled, to_copy
from lora_mnist.evaluation.results import COUNTS, Comparison, WeakestDigit
from lora_mnist.evaluation.verdict import listed, side_effects
from lora_mnist.pipeline import Export, FinetuneResult, Merging, PretrainResult, RunResult, TeachResult, VerifyResult
from lora_mnist.pipeline.run import STAGES, Done
from lora_mnist.runs.schemas import AdapterParameters, Evaluation
from lora_mnist.settings.request import Request

PROVED = "passed: no byte of the base changed; with the adapter off, it is the base"


# A single stage -------------------------------------------------------------------------------------------------------


def pretraining(document: PretrainResult) -> RenderableType:
    """How good the base is, digit by digit, and which is the weakest."""
    return Group(
        Line(f"{_accuracy(document)}, after {document.seconds:.1f} s of training.", style="bold"),
        Line(_weakest(document.weakest)),
        _by_digit(document),
        labelled("saved", str(Path(document.run) / "base")),
        next_step("finetune", Path(document.run)),
    )


def _by_digit(document: PretrainResult) -> Table:
    """Wrong images of every digit, a row for each split."""
    table = Table(f"wrong ({tables.DATASETS[document.dataset.name]})", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in (*map(str, range(10)), "all"):
        table.add_column(heading, justify="right", no_wrap=True)
    for split, part in document.splits.items():
        table.add_row(f"{split}, of {part.count:,}", *(f"{count:,}" for count in (*part.wrong, part.errors)))
    return table


def _accuracy(document: PretrainResult) -> str:
    right = " and ".join(f"{100 * part.accuracy:.2f} % on {split}" for split, part in document.splits.items())
    return f"{tables.DATASETS[document.dataset.name]}: {right} are right"


def _weakest(found: WeakestDigit | None) -> str:
    """Which digit, and how often it is wrong."""
    if found is None:
        return "Without val there is no weakest digit: name one with --digit."
    wrong = f"{found.wrong:,} of {found.images:,} wrong ({100 * found.wrong / found.images:.1f} %"
    return f"Weakest on val: {found.digit}, {wrong}, 95 % interval {100 * found.low:.1f} to {100 * found.high:.1f} %)."


def finetuning(tuning: FinetuneResult, run: Path) -> RenderableType:
    """The verdict, the three counts, side effects, the proof, where it is and what to do next: at most 16 lines."""
    step = [next_step("report", run, "--open")] if tuning.kept else []
    return Group(answer(tuning), *saved(tuning, run), *step)


def answer(tuning: FinetuneResult) -> RenderableType:
    """The verdict, three counts, side effects, the proof; or why nothing was kept."""
    record, analysis = tuning.record, tuning.analysis
    if analysis is None:
        return Line(tables.not_kept(record), style="bold")
    verdict = tuning.verdict
    assert verdict is not None  # something was kept
    return Group(
        Line(verdict.headline, style="bold"),
        _three_counts(tuning),
        labelled("others", verdict.side_effects),
        *([labelled("compared", verdict.compared)] if verdict.compared else []),
        labelled("proof", _proof([tuning])),
    )


def _three_counts(tuning: FinetuneResult) -> Table:
    """Missed, false alarms and all errors, before → after, on every split."""
    analysis, evaluation, digit = tuning.analysis, tuning.evaluation, tuning.record.digit
    assert analysis is not None  # something was kept
    assert evaluation is not None
    table = Table(tables.DATASETS[evaluation.dataset.name], box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for split in analysis.splits:
        table.add_column(f"{split}, of {evaluation.splits[split].count:,}", justify="right", no_wrap=True)
    names = (
        f"missed: {digit}s taken for another digit",
        f"false alarms: others taken for a {digit}",
        "all errors, of every digit",
    )
    for key, words in zip(COUNTS, names, strict=True):
        table.add_row(words, *(_moved(part, key) for part in analysis.splits.values()))
    return table


def _proof(kept: Sequence[FinetuneResult]) -> str:
    if any(tuning.record.proof is None for tuning in kept):
        return "none, since all weights were trained; the base is unchanged"
    return PROVED


def saved(tuning: FinetuneResult, run: Path) -> list[RenderableType]:
    """Where it is, how large, and how it is to be used, if it was kept."""
    record, known = tuning.record, tuning.record.parameters
    if not tuning.kept:
        return []
    if not isinstance(known, AdapterParameters):
        return [labelled("saved", f"{tuning.file}: {record.trained:,} weights")]
    scale = record.guard.scale if record.guard else 1.0
    kept = "" if scale == 1 else f", at {scale:g} of the trained update"
    below = f", on top of {listed(record.on_top_of)}" if record.on_top_of else ""
    size = f"{known.added:,} numbers ({100 * known.share:.3g} % of the base)"
    return [labelled("saved", f"{run / 'adapters' / record.name}: {size}{kept}{below}")]


def taught(result: TeachResult, run: Path, dataset: str) -> RenderableType:
    """The verdict, drawings and errors before → after, side effects, the proof, where it is: at most 16 lines."""
    lesson, verdict = result.lesson, result.verdict
    table = Table(tables.DATASETS[dataset], box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("before → after", justify="right", no_wrap=True)
    if lesson.unseen:
        unseen = lesson.unseen
        table.add_row(f"drawings right, of {unseen.images}, tested unseen", f"{unseen.before:,} → {unseen.after:,}")
    table.add_row(f"drawings right, of {lesson.count}, seen in training", f"{lesson.before:,} → {lesson.after:,}")
    if lesson.val:
        table.add_row(f"errors on val, of {lesson.val.images:,}", f"{lesson.val.before:,} → {lesson.val.after:,}")
    lines: list[RenderableType] = [Line(verdict.words, style="bold"), table]
    lines += [labelled("digits", verdict.side_effects)] if verdict.side_effects else []
    if result.folder:
        kept = "" if lesson.scale == 1 else f", at {lesson.scale:g} of the trained update"
        lines += [labelled("proof", PROVED), labelled("saved", f"{result.folder}{kept}")]
        lines.append(next_step("report", run, "--open"))
    elif lesson.scale is None:
        lines.append(labelled("not kept", "the guard allows no scale; --guard none keeps it as trained"))
    else:
        lines.append(labelled("not kept", "as asked for; leave out --dry-run to keep it"))
    return Group(*lines)


# Networks to take along -----------------------------------------------------------------------------------------------


def extracted(tuning: FinetuneResult, run: Path) -> RenderableType:
    """The verdict on an extracted adapter, how much of the change it holds, and what all of the change does."""
    facts, analysis = tuning.record.extraction, tuning.analysis
    assert facts is not None  # `extract` made it
    assert analysis is not None  # no guard refuses what is extracted
    kept = sorted(100 * layer.energy for layer in facts.layers.values())
    after = analysis.splits["test"].after
    words = ("missed", "false alarms", "errors in all")
    counts = ", ".join(f"{count:,} {word}" for count, word in zip(facts.of_checkpoint.numbers, words, strict=True))
    return Group(
        answer(tuning),
        labelled("holds", f"{kept[0]:.3g} to {kept[-1]:.3g} % of the change's energy in each layer; no biases"),
        labelled("all of it", f"{facts.checkpoint}: {counts} on test, where the adapter has {after.errors:,}"),
        *saved(tuning, run),
        next_step("report", run, "--open"),
    )


def merged(document: Merging, base: Evaluation, run: Path) -> RenderableType:
    """How good the merged network is, of what it was made, how exactly, and where it is."""
    accuracy = tables.accuracies(base, document.evaluation)
    used = " + ".join(map(tables.at_strength, document.merged))
    exact = f"{document.largest_difference:.1e} of {document.largest_logit:.3g}"
    return Group(
        Line(f"{tables.DATASETS[document.evaluation.dataset.name]}: accuracy {accuracy}.", style="bold"),
        labelled("merged", f"the base + {used}"),
        labelled("exact", f"no logit differs from base and adapters apart by more than {exact}"),
        labelled("saved", document.file),
        next_step("evaluate", run, f"--checkpoint {document.name}"),
    )


def exported(document: Export) -> RenderableType:
    """Where it lies, how it is called, and how far its logits are from ours."""
    about, kind = document.provenance, f"ONNX, opset {document.opset}" if document.opset else "torch.export"
    used = "".join(f" + {tables.at_strength(adapter)}" for adapter in about.adapters)
    difference = f"{document.largest_difference:.1e} at most; the largest is {document.largest_logit:.3g}"
    return Group(
        labelled("network", f"base{used}, on {tables.DATASETS[about.dataset.name]}"),
        labelled("input", f"{about.input}; normalised inside"),
        labelled("output", about.output),
        labelled("checked", f"on {document.images:,} held-out images the logits differ from ours by {difference}"),
        labelled("saved", f"{document.file}: {kind}, {document.bytes / 1e6:.1f} MB"),
    )


# `run` ----------------------------------------------------------------------------------------------------------------


class Stages:
    """The lines of `run`, stage by stage.

    Those of stages that were finished before are held back until something is done: if nothing is, there are none.

    Attributes:
        finished: whether nothing had to be done so far.
    """

    def __init__(self, rounds: int):
        self.finished = True
        self._rounds, self._round = rounds, 0
        self._held: list[RenderableType] = []

    def after(self, done: Done) -> RenderableType:
        """What there is to print now that this is over."""
        self.finished = self.finished and (done.skipped or isinstance(done.result, VerifyResult))
        self._held += self._lines(done)
        if self.finished:
            return Group()
        held, self._held = self._held, []
        return Group(*held)

    def _lines(self, done: Done) -> list[RenderableType]:
        result, seconds = done.result, None if done.skipped else done.seconds
        if isinstance(result, PretrainResult):
            return [_stage(1, f"{_accuracy(result)}. {_weakest(result.weakest)}", seconds)]
        if isinstance(result, VerifyResult):
            what = f"base and {len(result.adapters)} adapter{'' if len(result.adapters) == 1 else 's'}"
            return [_stage(3, f"{'passed' if result.passed else 'FAILED'}: {what}, from their files", seconds)]
        if self._rounds == 1:
            refused = "" if result.kept else ": not kept"
            return [_stage(2, f"{result.record.name}, on digit {result.record.digit}{refused}", seconds)]
        self._round += 1
        heading = [_stage(2, "digit by digit; on val, which decides:", None, "")] if self._round == 1 else []
        return [*heading, Line(_round(result), _timed(f"    round {self._round}", seconds))]


def report_line(page: Path, seconds: float) -> RenderableType:
    """Of the last stage."""
    return _stage(4, str(page), seconds)


def whole(document: RunResult, run: Path, verbose: bool = False) -> RenderableType:
    """What all stages come to, and how to see more, unless that follows."""
    *_, last = document.rounds
    several = len(document.rounds) > 1
    lines = _answers(document, run) if several else [answer(last), *saved(last, run)]
    if kept := [tuning.record.name for tuning in document.rounds if tuning.kept]:
        stack = " ".join(f"--adapter {name}" for name in kept)
        lines.append(to_copy("to use it", f"{command_line('merge', run)} {stack}"))
    if not verbose:
        lines.append(labelled("more", f"every table: {command_line('run', run)} --verbose"))
    return Group("", *lines)


def _answers(document: RunResult, run: Path) -> list[RenderableType]:
    """Of several rounds."""
    *_, last = document.rounds
    kept = [tuning for tuning in document.rounds if tuning.kept]
    names = ", ".join(tuning.record.name for tuning in kept)
    return [
        Line(_overall(document.overall, len(kept)), style="bold"),
        labelled("verdicts", _verdicts(kept)),
        labelled("digits", side_effects(document.overall["test"])),
        *([] if last.kept else [labelled("not kept", tables.not_kept(last.record))]),
        labelled("proof", _proof(kept)),
        labelled("saved", f"{run / 'adapters'}: {names}"),
    ]


def finished(document: RunResult, page: Path) -> RenderableType:
    """Three lines on a run of which nothing was left to do."""
    rounds, before, after = document.rounds, document.overall["test"].before, document.overall["test"].after
    *_, last = rounds
    refused = "" if last.kept else f"; {last.record.name} was refused"
    errors = f"{before.errors:,} → {after.errors:,} errors on test{refused}."
    if not rounds[0].kept:
        what, title = "nothing is kept.", f"The guard refused {last.record.name}"
    elif len(rounds) == 1:
        record = last.record
        what = f"{record.name}, {before.missed:,} → {after.missed:,} missed {record.digit}s, {errors}"
        title = last.verdict.title if last.verdict else ""
    else:
        kept = [tuning.record.digit for tuning in rounds if tuning.kept]
        what = f"{len(kept)} round{'' if len(kept) == 1 else 's'}, {errors}"
        title = f"Digit{'' if len(kept) == 1 else 's'} {listed(kept)}"
    return Group(
        Line(f"Finished already: {what}"),
        Line(f"{title}. --force trains again."),
        Line(str(page), "Verified again. Report: ", label_style=""),
    )


def _round(tuning: FinetuneResult) -> str:
    digit, analysis = tuning.record.digit, tuning.analysis
    if analysis is None:
        return f"{digit}  not kept"
    val = analysis.splits["val"]  # without one there are no rounds
    cells = (
        f"{name} {_moved(val, key)}" for key, name in zip(COUNTS, ("missed", "false alarms", "errors"), strict=True)
    )
    missed, alarms, errors = cells
    return f"{digit}  {missed:<16} {alarms:<21} {errors}"


def _overall(splits: dict[str, Comparison], count: int) -> str:
    moved = ", ".join(f"{_moved(part, 'errors')} on {split}" for split, part in splits.items())
    return f"{count} round{'' if count == 1 else 's'} kept: all errors {moved}."


def _verdicts(kept: Sequence[FinetuneResult]) -> str:
    """By what they say, with the digits."""
    digits: dict[str, list[str]] = {}
    for tuning in kept:
        assert tuning.verdict is not None  # it was kept
        digits.setdefault(tuning.verdict.title, []).append(str(tuning.record.digit))
    return "; ".join(f"{title}: {listed(which)}" for title, which in digits.items()) + " (on test)."


# Words ----------------------------------------------------------------------------------------------------------------


def next_step(command: str, run: Path, *more: str) -> Text:
    """The command that one would give now."""
    return to_copy("next", " ".join([command_line(command, run), *more]))


def _stage(number: int, text: str, seconds: float | None, time: str | None = None) -> Line:
    return Line(text, _timed(f"{number}/{len(STAGES)} {STAGES[number - 1]}", seconds, time))


def _timed(label: str, seconds: float | None, time: str | None = None) -> str:
    """With the seconds that it took now, or that it was finished before."""
    if time is None:
        time = "before" if seconds is None else f"{seconds:.1f} s"
    return f"{label:<12} {time:>7}  "


def _moved(part: Comparison, key: str) -> str:
    return f"{part.before.of(key):,} → {part.after.of(key):,}"


def command_line(name: str, run: Path) -> str:
    """As it is typed for that run."""
    where = "" if run == Request().run else f" --run {shlex.quote(str(run))}"
    return f"lora-mnist {name}{where}"
