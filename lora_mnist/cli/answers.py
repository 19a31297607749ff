"""The answer first: what the commands that train print unless asked for more. `tables` has all the rest."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from lora_mnist.cli import tables
from lora_mnist.cli.options import DEFAULT_RUN
from lora_mnist.cli.output import Line, labelled, plain_table, to_copy
from lora_mnist.errors import listed
from lora_mnist.settings.layers import DATASETS

if TYPE_CHECKING:  # what --help does without, as with all that is imported further down
    from lora_mnist.browser.one_file import PageExportResult
    from lora_mnist.pipeline.convert import MergeResult
    from lora_mnist.pipeline.export import ExportResult
    from lora_mnist.pipeline.finetune import FinetuneResult
    from lora_mnist.pipeline.import_base import ImportResult
    from lora_mnist.pipeline.pretrain import PretrainResult
    from lora_mnist.pipeline.run_all import RunResult, StageDone
    from lora_mnist.pipeline.teach import TeachResult
    from lora_mnist.runs.schemas import Evaluation, RunRecord

PROVED = "passed: no byte of the base changed; adapter off, it is the base"


def pretraining(document: PretrainResult) -> RenderableType:
    """How good the base is, digit by digit, a row for each split, and which is the weakest."""
    first = f"{_accuracy(document)}, after {document.seconds:.1f} s of training."
    return Group(Line(first, style="bold"), Line(_weakest(document)), *_base(document))


def imported(document: ImportResult) -> RenderableType:
    """The same of an imported base, with what was read and how its pixels were measured."""
    source, model, (asked, *others) = document.source, document.architecture, document.pixels
    assert source is not None
    casts = ", ".join(sorted({one.dtype for one in source.tensors} - {"float32"}))
    sizes = " → ".join(map(str, (784, *model.hidden, 10)))
    shares = {way: f"{100 * share:.2f} %" for way, share in document.pixels.items()}
    pixels = f"{shares[document.best]} of val are right with {document.best}"
    pixels += f", and with {asked} as asked {shares[asked]}" if document.better else ", as asked"
    if document.alike:  # a repair that was trained for the wrong pixels is none in the program that uses the others
        alike = ", ".join(f"{way} ({shares[way]})" for way in document.alike)
        pixels += f". Accuracy hardly tells it from {alike}: look up which one your training used"
    elif not document.better:
        pixels += f", and not nearly as many in {len(others)} other ways"
    if document.better:
        pixels += f"; import it again with {'that' if document.alike else document.best} and --force"
    halves = "val and test are halves of the test images, since its training probably saw all training images"
    if document.dataset.name == "mnist-5k":
        halves += "; these 5,000 are all training images of MNIST, so it may have seen them too"
    return Group(
        Line(f"{_accuracy(document)}.", style="bold"),
        Line(_weakest(document)),
        labelled(
            "imported", f"{source.file}: {sizes}, ReLU assumed between them{f'; {casts} → float32' if casts else ''}"
        ),
        labelled("pixels", pixels),
        labelled("images", halves),
        Line(document.base_fingerprint, "fingerprint  "),
        *_base(document),
    )


def _base(document: PretrainResult) -> Iterator[RenderableType]:
    """Wrong images, a row for each split, where it is and what to do next."""
    digits = (*map(str, range(10)), "all")
    wrong = plain_table(f"wrong ({DATASETS[document.dataset.name]})", *digits, apart=1)
    for split, part in document.splits.items():
        wrong.add_row(f"{split}, of {part.count:,}", *(f"{count:,}" for count in tables.by_digit(part)))
        if document.source:  # its digits are compared with what its training measured, in shares
            images = (*part.images, part.count)
            shares = (100 * count / of for count, of in zip(tables.by_digit(part), images, strict=True))
            wrong.add_row("in per cent", *(f"{share:.1f}" for share in shares))
    yield wrong
    yield labelled("saved", str(Path(document.run) / "base"))
    yield to_copy("next", command_line("finetune", Path(document.run)))


def _accuracy(document: PretrainResult) -> str:
    return f"{DATASETS[document.dataset.name]}: {' and '.join(tables.accuracies(document))} are right"


def _weakest(document: PretrainResult) -> str:
    found, rare = document.weakest, f"The base {document.rare}. " if document.rare else ""
    if found is None:
        return f"{rare}Without val there is no weakest digit: name one with --digit."
    share, low, high = (100 * one for one in (found.wrong / found.images, found.low, found.high))
    interval = f"{share:.1f} %, 95 % interval {low:.1f} to {high:.1f} %"
    return f"{rare}Weakest on val: {found.digit}, {found.wrong:,} of {found.images:,} wrong ({interval})."


def finetuning(tuning: FinetuneResult, run: Path, base: RunRecord) -> RenderableType:
    """The verdict, the counts, side effects, the proof, where it is and what to do next: at most 17 lines."""
    record, analysis, evaluation, made = tuning.record, tuning.analysis, tuning.evaluation, tuning.provenance
    parts, extraction = [verdict_and_counts(tuning)], record.extraction
    if extraction and analysis:  # how much of the change the adapter holds, and what all of the change does
        held = sorted(100 * layer.energy for layer in extraction.layers.values())
        missed, alarms, errors = extraction.of_checkpoint.numbers
        counts = f"{missed:,} missed, {alarms:,} false alarms, {errors:,} errors in all on test"
        after = analysis.splits["test"].after.errors
        parts += [
            labelled("holds", f"{held[0]:.3g} to {held[-1]:.3g} % of the change's energy in each layer; no biases"),
            labelled("all of it", f"{extraction.checkpoint}: {counts}, where the adapter has {after:,}"),
        ]
    else:
        f1 = ""
        if analysis and evaluation:
            scores = (analysis.splits["test"].scores_before, evaluation.splits["test"].scores)
            was, now = (100 * one.digits[record.digit].f1 for one in scores)
            f1 = f"; F1 of the {record.digit}s {was:.1f} → {now:.1f} % on test"
        parts.append(labelled("trained", f"in {made.seconds:.1f} s on {made.device}{f1}"))
    parts += [saved(tuning, run)] if tuning.kept else []
    return Group(*parts, next_step(tuning, run, base))


def next_step(tuning: FinetuneResult, run: Path, base: RunRecord | PretrainResult) -> RenderableType:
    """What one would do now. A base of ours that saw all digits alike has hardly a weakness: if it was not repaired,
    one that has is offered."""
    balanced = base.rare is None and base.source is None
    if balanced and not (tuning.verdict and tuning.verdict.is_repair):
        return to_copy("next", "lora-mnist run --config rare --run runs/rare")
    if tuning.kept:
        return to_copy("next", command_line("report", run, "--open"))
    return to_copy("next", command_line("finetune", run, f"--digit {tuning.record.digit} --guard none"))


def verdict_and_counts(tuning: FinetuneResult) -> RenderableType:
    """The verdict, three counts, side effects, the proof; or why nothing was kept."""
    record, analysis, verdict, evaluation = tuning.record, tuning.analysis, tuning.verdict, tuning.evaluation
    if analysis is None or verdict is None or evaluation is None:
        return Line(tables.not_kept(record), style="bold")
    return Group(
        Line(verdict.headline, style="bold"),
        tables.three_counts(analysis, evaluation, record.digit),
        labelled("others", verdict.side_effects),
        *([labelled("compared", verdict.compared)] if verdict.compared else []),
        labelled("proof", PROVED if record.proof else "none, since all weights were trained; the base is unchanged"),
    )


def saved(tuning: FinetuneResult, run: Path) -> RenderableType:
    """Where it is, how large, and how it is to be used."""
    record = tuning.record
    if tuning.file:
        return labelled("saved", f"{tuning.file}: {record.trained:,} weights")
    size = f"{record.trained:,} numbers ({100 * record.trained / record.parameters.base:.3g} % of the base)"
    kept = _scaled(record.guard.scale if record.guard else 1)
    below = f", on top of {listed(record.on_top_of)}" if record.on_top_of else ""
    return labelled("saved", f"{run / 'adapters' / record.name}: {size}{kept}{below}")


def _scaled(scale: float | None) -> str:
    return "" if scale in (1, None) else f", at {scale:g} of the trained update"


def taught(result: TeachResult, run: Path, dataset: str) -> RenderableType:
    """The verdict, drawings and errors before → after, side effects, the proof, where it is: at most 16 lines."""
    lesson, verdict = result.lesson, result.verdict
    table = plain_table(DATASETS[dataset], "before → after")
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
        lines.append(to_copy("next", command_line("report", run, "--open")))
    elif lesson.scale is None:
        lines.append(labelled("not kept", "the guard allows no scale; --guard none keeps it as trained"))
    else:
        lines.append(labelled("not kept", "as asked for; leave out --dry-run to keep it"))
    return Group(*lines)


def merged(document: MergeResult, base: Evaluation, run: Path) -> RenderableType:
    """How good the merged network is, of what it was made, how exactly, and where it is."""
    dataset, accuracy = document.evaluation.dataset.name, ", ".join(tables.accuracies(document.evaluation, base))
    exact = f"{document.largest_difference:.1e} of {document.largest_logit:.3g}"
    original = f"{document.original}, with the names and the format of your file"
    return Group(
        Line(f"{DATASETS[dataset]}: accuracy {accuracy}.", style="bold"),
        labelled("merged", f"the {tables.with_adapters(document.merged)}"),
        labelled("exact", f"no logit differs from base and adapters apart by more than {exact}"),
        labelled("saved", document.file),
        *([labelled("original", original)] if document.original else []),
        to_copy("next", command_line("evaluate", run, f"--checkpoint {document.name}")),
    )


def exported(document: ExportResult) -> RenderableType:
    """Where it lies, how it is called, and how far its logits are from ours."""
    about, is_original = document.provenance, document.format == "original"
    kind = f"ONNX, opset {document.opset}" if document.opset else "as imported" if is_original else "torch.export"
    difference = f"{document.largest_difference:.1e} at most; the largest is {document.largest_logit:.3g}"
    return Group(
        labelled("network", f"{tables.with_adapters(about.adapters)}, on {DATASETS[about.dataset.name]}"),
        labelled("input", about.input if is_original else f"{about.input}; normalised inside"),
        labelled("output", about.output),
        labelled("checked", f"on {document.images:,} held-out images the logits differ from ours by {difference}"),
        labelled("saved", f"{document.file}: {kind}, {document.bytes / 1e6:.1f} MB"),
    )


def page_exported(document: PageExportResult) -> RenderableType:
    """Where it lies, what is in it, and how far what it computes is from ours."""
    same, images = f"{100 * document.same_decisions:.2f} %", f"{document.images:,} held-out images"
    return Group(
        labelled("network", tables.with_adapters(document.adapters)),
        labelled("weights", f"{document.weights}; A and B fp32"),
        labelled("checked", f"{same} of {images} decided as in fp32, base and adapters at half and full strength"),
        labelled("saved", f"{document.file}: one page, {document.bytes / 1e6:.1f} MB, to open in any browser"),
    )


def was_finished(done: Sequence[StageDone]) -> bool:
    """Whether none of these stages had anything to do; a run is verified each time."""
    from lora_mnist.pipeline.verify import VerifyResult

    return all(one.skipped or isinstance(one.result, VerifyResult) for one in done)


def stage_lines(done: Sequence[StageDone], rounds: int) -> list[RenderableType]:
    """What there is to print after the last of the stages `done`.

    Stages that were finished before are held back until one had something to do, so a finished run has no lines.
    """
    from lora_mnist.pipeline.pretrain import PretrainResult
    from lora_mnist.pipeline.verify import VerifyResult

    lines: list[RenderableType] = []
    first = len(done) if was_finished(done) else 0 if was_finished(done[:-1]) else len(done) - 1
    for i, one in list(enumerate(done))[first:]:
        result, time = one.result, "before" if one.skipped else f"{one.seconds:.1f} s"
        if isinstance(result, PretrainResult):
            stage, text = f"1/4 {'import' if result.source else 'pretrain'}", f"{_accuracy(result)}. {_weakest(result)}"
        elif isinstance(result, VerifyResult):
            passed, adapters = "passed" if result.passed else "FAILED", _count(len(result.adapters), "adapter")
            stage, text = "3/4 verify", f"{passed}: base and {adapters}, from their files"
        elif rounds == 1:
            refused = "" if result.kept else ": not kept"
            stage, text = "2/4 finetune", f"{result.record.name}, on digit {result.record.digit}{refused}"
        else:
            lines += [stage_line("2/4 finetune", "", "digit by digit; on val, which decides:")] if i == 1 else []
            what = "not kept"
            if result.analysis:
                val = result.analysis.splits["val"]  # without one there are no rounds
                what = "missed {:<9} false alarms {:<8} errors {}".format(*tables.before_after(val))
            stage, text = f"    round {i}", f"{result.record.digit}  {what}"
        lines.append(stage_line(stage, time, text))
    return lines


def run_done(document: RunResult, run: Path) -> RenderableType:
    """What all stages come to, how to use it, and what to do next."""
    from lora_mnist.evaluation.verdict import changes_by_digit, side_effects

    *_, last = document.rounds
    kept = [tuning for tuning in document.rounds if tuning.kept]
    names = [tuning.record.name for tuning in kept]
    lines = [verdict_and_counts(last)]
    if len(document.rounds) > 1:
        verdicts: dict[str, list[int]] = {}
        for tuning in kept:
            verdicts.setdefault(tuning.verdict.title if tuning.verdict else "", []).append(tuning.record.digit)
        said = "; ".join(f"{title}: {listed(digits)}" for title, digits in verdicts.items())
        moved = ", ".join(f"{tables.before_after(part)[-1]} on {split}" for split, part in document.overall.items())
        lines = [
            Line(f"{_count(len(kept), 'round')} kept: all errors {moved}.", style="bold"),
            labelled("verdicts", f"{said} (on test)."),
            labelled("digits", side_effects(changes_by_digit(document.overall["test"]))),
            *([] if last.kept else [labelled("not kept", tables.not_kept(last.record))]),
            labelled("proof", PROVED),
            labelled("saved", f"{run / 'adapters'}: {', '.join(names)}"),
        ]
    elif last.kept:
        lines.append(saved(last, run))
    if kept:
        lines.append(to_copy("to use it", command_line("merge", run, *(f"--adapter {name}" for name in names))))
    return Group("", *lines, next_step(kept[-1] if kept else last, run, document.pretraining))


def nothing_to_do(document: RunResult, page: Path) -> RenderableType:
    """Three lines on a run of which nothing was left to do."""
    rounds, before, after = document.rounds, document.overall["test"].before, document.overall["test"].after
    last = rounds[-1]
    refused = "" if last.kept else f"; {last.record.name} was refused"
    errors = f"{before.errors:,} → {after.errors:,} errors on test{refused}."
    if last.verdict and len(rounds) == 1:
        what = f"{last.record.name}, {before.missed:,} → {after.missed:,} missed {last.record.digit}s, {errors}"
        title = last.verdict.title
    elif kept := [tuning.record.digit for tuning in rounds if tuning.kept]:
        what = f"{_count(len(kept), 'round')}, {errors}"
        title = f"Digit{'' if len(kept) == 1 else 's'} {listed(kept)}"
    else:
        what, title = "nothing is kept.", f"The guard refused {last.record.name}"
    return Group(
        Line(f"Finished already: {what}"),
        Line(f"{title}. --force trains again."),
        Line(str(page), "Verified again. Report: ", label_style=""),
    )


def stage_line(stage: str, time: str, text: str) -> Line:
    """What a stage did; `time` says how long it took, or that it was finished before."""
    return Line(text, f"{stage:<12} {time:>7}  ")


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'' if number == 1 else 's'}"


def command_line(name: str, run: Path, *more: str) -> str:
    """As it is typed for that run."""
    where = [] if run == DEFAULT_RUN else ["--run", shlex.quote(str(run))]
    return " ".join(["lora-mnist", name, *where, *more])
