"""The answer first: what the commands that train print unless asked for more. `tables` has all the rest."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from lora_mnist.cli import tables
from lora_mnist.cli.output import Line, labelled, plain_table, to_copy
from lora_mnist.evaluation.results import WeakestDigit
from lora_mnist.evaluation.verdict import listed, side_effects
from lora_mnist.pipeline import FinetuneResult, PretrainResult, RunResult, VerifyResult
from lora_mnist.pipeline.run import STAGES, Done
from lora_mnist.runs.schemas import AdapterParameters, Evaluation
from lora_mnist.settings.request import Request

if TYPE_CHECKING:
    from lora_mnist.pipeline.convert import Merging
    from lora_mnist.pipeline.export import Export
    from lora_mnist.pipeline.teach import TeachResult

PROVED = "passed: no byte of the base changed; with the adapter off, it is the base"


# A single stage -------------------------------------------------------------------------------------------------------


def pretraining(document: PretrainResult) -> RenderableType:
    """How good the base is, digit by digit, a row for each split, and which is the weakest."""
    digits = (*map(str, range(10)), "all")
    wrong = plain_table(f"wrong ({tables.DATASETS[document.dataset.name]})", *digits, apart=1)
    for split, part in document.splits.items():
        wrong.add_row(f"{split}, of {part.count:,}", *(f"{count:,}" for count in tables.by_digit(part)))
    return Group(
        Line(f"{_accuracy(document)}, after {document.seconds:.1f} s of training.", style="bold"),
        Line(_weakest(document.weakest)),
        wrong,
        labelled("saved", str(Path(document.run) / "base")),
        next_step("finetune", Path(document.run)),
    )


def _accuracy(document: PretrainResult) -> str:
    return f"{tables.DATASETS[document.dataset.name]}: {' and '.join(tables.accuracies(document))} are right"


def _weakest(found: WeakestDigit | None) -> str:
    """Which digit, and how often it is wrong."""
    if found is None:
        return "Without val there is no weakest digit: name one with --digit."
    wrong = f"{found.wrong:,} of {found.images:,} wrong ({100 * found.wrong / found.images:.1f} %"
    return f"Weakest on val: {found.digit}, {wrong}, 95 % interval {100 * found.low:.1f} to {100 * found.high:.1f} %)."


def finetuning(tuning: FinetuneResult, run: Path) -> RenderableType:
    """The verdict, the three counts, side effects, the proof, where it is and what to do next: at most 16 lines."""
    parts = [answer(tuning)]
    if tuning.kept:
        parts += [*_extracted(tuning), *saved(tuning, run), next_step("report", run, "--open")]
    return Group(*parts)


def answer(tuning: FinetuneResult) -> RenderableType:
    """The verdict, three counts, side effects, the proof; or why nothing was kept."""
    record, analysis, verdict, evaluation = tuning.record, tuning.analysis, tuning.verdict, tuning.evaluation
    if analysis is None or verdict is None or evaluation is None:
        return Line(tables.not_kept(record), style="bold")
    return Group(
        Line(verdict.headline, style="bold"),
        tables.three_counts(analysis, evaluation, record.digit),
        labelled("others", verdict.side_effects),
        *([labelled("compared", verdict.compared)] if verdict.compared else []),
        labelled("proof", _proof([tuning])),
    )


def _proof(kept: Sequence[FinetuneResult]) -> str:
    if any(tuning.record.proof is None for tuning in kept):
        return "none, since all weights were trained; the base is unchanged"
    return PROVED


def _extracted(tuning: FinetuneResult) -> list[RenderableType]:
    """Of an adapter made of a checkpoint, how much of the change it holds, and what all of the change does."""
    facts, analysis = tuning.record.extraction, tuning.analysis
    if facts is None or analysis is None:
        return []
    held = sorted(100 * layer.energy for layer in facts.layers.values())
    missed, alarms, errors = facts.of_checkpoint.numbers
    counts = f"{missed:,} missed, {alarms:,} false alarms, {errors:,} errors in all on test"
    after = analysis.splits["test"].after.errors
    return [
        labelled("holds", f"{held[0]:.3g} to {held[-1]:.3g} % of the change's energy in each layer; no biases"),
        labelled("all of it", f"{facts.checkpoint}: {counts}, where the adapter has {after:,}"),
    ]


def saved(tuning: FinetuneResult, run: Path) -> list[RenderableType]:
    """Where it is, how large, and how it is to be used, if it was kept."""
    record, known = tuning.record, tuning.record.parameters
    if not tuning.kept:
        return []
    if not isinstance(known, AdapterParameters):
        return [labelled("saved", f"{tuning.file}: {record.trained:,} weights")]
    below = f", on top of {listed(record.on_top_of)}" if record.on_top_of else ""
    size = f"{known.added:,} numbers ({100 * known.share:.3g} % of the base)"
    kept = _scaled(record.guard.scale if record.guard else 1)
    return [labelled("saved", f"{run / 'adapters' / record.name}: {size}{kept}{below}")]


def _scaled(scale: float | None) -> str:
    return "" if scale in (1, None) else f", at {scale:g} of the trained update"


def taught(result: TeachResult, run: Path, dataset: str) -> RenderableType:
    """The verdict, drawings and errors before → after, side effects, the proof, where it is: at most 16 lines."""
    lesson, verdict = result.lesson, result.verdict
    table = plain_table(tables.DATASETS[dataset], "before → after")
    form = "{0.before:,} → {0.after:,}"
    if lesson.unseen:
        table.add_row(f"drawings right, of {lesson.unseen.images}, tested unseen", form.format(lesson.unseen))
    table.add_row(f"drawings right, of {lesson.count}, seen in training", form.format(lesson))
    if lesson.val:
        table.add_row(f"errors on val, of {lesson.val.images:,}", form.format(lesson.val))
    lines: list[RenderableType] = [Line(verdict.words, style="bold"), table]
    lines += [labelled("digits", verdict.side_effects)] if verdict.side_effects else []
    if result.folder:
        lines += [labelled("proof", PROVED), labelled("saved", f"{result.folder}{_scaled(lesson.scale)}")]
        lines.append(next_step("report", run, "--open"))
    elif lesson.scale is None:
        lines.append(labelled("not kept", "the guard allows no scale; --guard none keeps it as trained"))
    else:
        lines.append(labelled("not kept", "as asked for; leave out --dry-run to keep it"))
    return Group(*lines)


# Networks to take along -----------------------------------------------------------------------------------------------


def merged(document: Merging, base: Evaluation, run: Path) -> RenderableType:
    """How good the merged network is, of what it was made, how exactly, and where it is."""
    dataset, accuracy = document.evaluation.dataset.name, ", ".join(tables.accuracies(document.evaluation, base))
    exact = f"{document.largest_difference:.1e} of {document.largest_logit:.3g}"
    return Group(
        Line(f"{tables.DATASETS[dataset]}: accuracy {accuracy}.", style="bold"),
        labelled("merged", f"the {tables.with_adapters(document.merged)}"),
        labelled("exact", f"no logit differs from base and adapters apart by more than {exact}"),
        labelled("saved", document.file),
        next_step("evaluate", run, f"--checkpoint {document.name}"),
    )


def exported(document: Export) -> RenderableType:
    """Where it lies, how it is called, and how far its logits are from ours."""
    about, kind = document.provenance, f"ONNX, opset {document.opset}" if document.opset else "torch.export"
    difference = f"{document.largest_difference:.1e} at most; the largest is {document.largest_logit:.3g}"
    return Group(
        labelled("network", f"{tables.with_adapters(about.adapters)}, on {tables.DATASETS[about.dataset.name]}"),
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
        result, time = done.result, "before" if done.skipped else f"{done.seconds:.1f} s"
        if isinstance(result, PretrainResult):
            return [_stage(1, f"{_accuracy(result)}. {_weakest(result.weakest)}", time)]
        if isinstance(result, VerifyResult):
            what = f"base and {_count(len(result.adapters), 'adapter')}"
            return [_stage(3, f"{'passed' if result.passed else 'FAILED'}: {what}, from their files", time)]
        if self._rounds == 1:
            refused = "" if result.kept else ": not kept"
            return [_stage(2, f"{result.record.name}, on digit {result.record.digit}{refused}", time)]
        self._round += 1
        heading = [_stage(2, "digit by digit; on val, which decides:", "")] if self._round == 1 else []
        what = "not kept"
        if result.analysis:
            missed, alarms, errors = tables.moved(result.analysis.splits["val"])  # without one there are no rounds
            what = f"{f'missed {missed}':<16} {f'false alarms {alarms}':<21} errors {errors}"
        return [*heading, _timed(f"    round {self._round}", time, f"{result.record.digit}  {what}")]


def report_line(page: Path, seconds: float) -> RenderableType:
    """Of the last stage."""
    return _stage(4, str(page), f"{seconds:.1f} s")


def whole(document: RunResult, run: Path, verbose: bool = False) -> RenderableType:
    """What all stages come to, and how to see more, unless that follows."""
    *_, last = document.rounds
    kept = [tuning for tuning in document.rounds if tuning.kept]
    names = [tuning.record.name for tuning in kept]
    lines = [answer(last), *saved(last, run)]
    if len(document.rounds) > 1:
        verdicts: dict[str, list[int]] = {}
        for tuning in kept:
            verdicts.setdefault(tuning.verdict.title if tuning.verdict else "", []).append(tuning.record.digit)
        said = "; ".join(f"{title}: {listed(digits)}" for title, digits in verdicts.items())
        moved = ", ".join(f"{tables.moved(part)[-1]} on {split}" for split, part in document.overall.items())
        lines = [
            Line(f"{_count(len(kept), 'round')} kept: all errors {moved}.", style="bold"),
            labelled("verdicts", f"{said} (on test)."),
            labelled("digits", side_effects(document.overall["test"])),
            *([] if last.kept else [labelled("not kept", tables.not_kept(last.record))]),
            labelled("proof", _proof(kept)),
            labelled("saved", f"{run / 'adapters'}: {', '.join(names)}"),
        ]
    if kept:
        options = " ".join(f"--adapter {name}" for name in names)
        lines.append(to_copy("to use it", f"{command_line('merge', run)} {options}"))
    if not verbose:
        lines.append(labelled("more", f"every table: {command_line('run', run)} --verbose"))
    return Group("", *lines)


def finished(document: RunResult, page: Path) -> RenderableType:
    """Three lines on a run of which nothing was left to do."""
    rounds, before, after = document.rounds, document.overall["test"].before, document.overall["test"].after
    last = rounds[-1]
    refused = "" if last.kept else f"; {last.record.name} was refused"
    errors = f"{before.errors:,} → {after.errors:,} errors on test{refused}."
    if not rounds[0].kept:
        what, title = "nothing is kept.", f"The guard refused {last.record.name}"
    elif len(rounds) == 1:
        missed = f"{before.missed:,} → {after.missed:,} missed {last.record.digit}s"
        what = f"{last.record.name}, {missed}, {errors}"
        title = last.verdict.title if last.verdict else ""
    else:
        kept = [tuning.record.digit for tuning in rounds if tuning.kept]
        what = f"{_count(len(kept), 'round')}, {errors}"
        title = f"Digit{'' if len(kept) == 1 else 's'} {listed(kept)}"
    return Group(
        Line(f"Finished already: {what}"),
        Line(f"{title}. --force trains again."),
        Line(str(page), "Verified again. Report: ", label_style=""),
    )


# Words ----------------------------------------------------------------------------------------------------------------


def next_step(command: str, run: Path, *more: str) -> Text:
    """The command that one would give now."""
    return to_copy("next", " ".join([command_line(command, run), *more]))


def _stage(number: int, text: str, time: str) -> Line:
    return _timed(f"{number}/{len(STAGES)} {STAGES[number - 1]}", time, text)


def _timed(label: str, time: str, text: str) -> Line:
    """With the seconds that it took now, or that it was finished before."""
    return Line(text, f"{label:<12} {time:>7}  ")


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'' if number == 1 else 's'}"


def command_line(name: str, run: Path) -> str:
    """As it is typed for that run."""
    where = "" if run == Request().run else f" --run {shlex.quote(str(run))}"
    return f"lora-mnist {name}{where}"
