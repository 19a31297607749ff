"""An adapter's numbers as rows, which the page, the plots and the CSV files share; and what makes the run again.

Counts are of `test` unless a name says otherwise, shares are 0 to 1.
"""

import csv
import io
import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tomli_w

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.evaluation.results import (
    Comparison,
    Counts,
    LayerEffect,
    Matrix,
    ScoreTable,
    SplitResult,
    StrengthCurve,
)
from lora_mnist.evaluation.significance import LEVEL, mcnemar, paired_interval, wilson
from lora_mnist.evaluation.verdict import LessonVerdict, Verdict, verdict_of
from lora_mnist.report.images import Images, read_images
from lora_mnist.runs.artifact import ANALYSIS, DRAWINGS, EVALUATION, VAL_COLUMNS, Artifact
from lora_mnist.runs.atomic import RESTORE
from lora_mnist.runs.listing import AdapterLine
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import ExtractionSettings, FinetunedDocuments, FullParameters, Provenance, RunDocuments
from lora_mnist.settings.config import TeachSettings

Row = Mapping[str, Any]  # by column
PAIR_LEVEL = LEVEL / 90  # pairs of digits that can be confused (Bonferroni's correction)
NEW_RUN = "--run ../../again"  # from the folder of the report, a run beside this one


class Alternative(NamedTuple):
    """Another way to miss fewer images: its name in a plot, its name in a table, and what it does on `test`."""

    label: str
    description: str
    counts: Counts


@dataclass(frozen=True)
class AdapterResults:
    """What the run stores of one adapter, and what the page needs of that more than once."""

    stored: FinetunedDocuments
    before: SplitResult  # on `test` without it: of the base, or of the base with the adapters below
    curve: StrengthCurve  # of its analysis, as are the layers; every adapter has both
    layers: Mapping[str, LayerEffect]
    verdict: Verdict  # on the repair of its digit
    alternatives: tuple[Alternative, ...]  # the first is the shifted threshold
    images: Images
    drawings: Sequence[tuple[int, np.ndarray]]  # that it was taught: the digit, and uint8 (28, 28)

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def digit(self) -> int:
        return self.stored.finetune.digit

    @property
    def after(self) -> SplitResult:
        """`test` with it."""
        return self.stored.evaluation.splits["test"]

    @property
    def comparison(self) -> Comparison:
        return self.stored.analysis.splits["test"]

    @property
    def conclusion(self) -> Verdict | LessonVerdict:
        """What it comes to: a repair, or drawings that were taught."""
        lesson = self.stored.finetune.lesson
        return lesson.verdict if lesson else self.verdict

    @property
    def at_recommended(self) -> Counts:
        """`test` at the strength that the curve recommends."""
        return next(one for one in self.curve.splits["test"] if one.strength == self.curve.recommended)


def read_adapter(run: Run, stored: FinetunedDocuments, checkpoints: Sequence[FinetunedDocuments]) -> AdapterResults:
    """What the report needs of one adapter.

    Args:
        checkpoints: those with all weights trained; of the same digit, they are alternatives to it.

    Raises:
        RunError: an adapter below it is not in the run.
        AlteredError: its documents do not hold what every adapter has, or do not fit each other.
    """
    record, analysis, artifact = stored.finetune, stored.analysis, run.adapter(stored.name)
    if missing := [one for one in record.on_top_of if one not in run.adapter_names()]:
        raise RunError(
            f"{stored.name} was trained on top of {', '.join(missing)}, which is not in the run.",
            f"Restore that, or remove {artifact.folder}.",
        )
    curve, layers = analysis.strength_curve, analysis.layers
    is_full = record.rank is None or isinstance(record.parameters, FullParameters)
    if is_full or record.proof is None or curve is None or not layers:
        raise AlteredError(f"{artifact.folder} does not hold all that is known of an adapter.", RESTORE)
    if curve.measured_on not in stored.evaluation.splits.keys() & curve.splits.keys():
        raise AlteredError(f"{artifact.folder / EVALUATION} has no {curve.measured_on}, as its curve has.", RESTORE)
    if curve.recommended not in [one.strength for one in curve.splits["test"]]:
        raise AlteredError(f"{artifact.folder / ANALYSIS} has no counts at the strength that it recommends.", RESTORE)
    below = run.adapter(record.on_top_of[-1]) if record.on_top_of else run.base
    return AdapterResults(
        stored=stored,
        before=below.evaluation.splits["test"],
        curve=curve,
        layers=layers,
        verdict=verdict_of(analysis, record.digit),
        alternatives=tuple(_alternatives(stored, checkpoints)),
        images=read_images(run, artifact),
        drawings=artifact.labelled_drawings() if record.lesson else (),
    )


def _alternatives(stored: FinetunedDocuments, checkpoints: Sequence[FinetunedDocuments]) -> list[Alternative]:
    """The shifted threshold, the control without and with one, and all weights trained on the same digit."""
    digit, shifted, control = stored.finetune.digit, stored.analysis.threshold, stored.analysis.control
    description = f"shifted threshold: {shifted.shift:+.2f} on the logit of {digit}, chosen on {shifted.chosen_on}"
    label = f"shifted threshold, chosen on {shifted.chosen_on}"
    found = [Alternative(label, description, shifted.splits["test"])]
    if control:
        kept = "" if control.scale is not None else ", not kept"
        found.append(Alternative("control", f"control: uniform sampling{kept}", control.splits["test"]))
        shift, chosen_on = control.threshold.shift, control.threshold.chosen_on
        description = f"control + shifted threshold: {shift:+.2f} on its logit of {digit}, chosen on {chosen_on}"
        label = "control with a shifted threshold"
        found.append(Alternative(label, description, control.threshold.splits["test"]))
    for one in checkpoints if not stored.finetune.on_top_of else []:
        if one.finetune.digit == digit:
            counts = one.analysis.splits["test"].after
            found.append(Alternative(f"{one.name} (all weights)", f"{one.name}: all weights trained", counts))
    return found


def base_digit_rows(base: SplitResult) -> list[Row]:
    """Wrong images of every digit, with Wilson's 95 % interval of their share."""
    rows: list[Row] = []
    for digit, (wrong, images) in enumerate(zip(base.wrong, base.images, strict=True)):
        low, high = wilson(wrong, images)
        rows.append({"digit": digit, "count": wrong, "of": images, "share": wrong / images, "low": low, "high": high})
    return rows


def digit_rows(adapter: AdapterResults) -> list[Row]:
    """Wrong images of every digit before and after; `net` is the change, `low` and `high` are the interval of `net` /
    `images` (see `significance.paired_interval`), and `p` is McNemar's, corrected for ten digits.
    """
    rows: list[Row] = []
    for digit, pair in enumerate(adapter.verdict.facts.digits):
        images = adapter.before.images[digit]
        low, high = paired_interval(pair.fixed, pair.broken, max(1, images))
        before, after = adapter.before.wrong[digit], adapter.after.wrong[digit]
        counts = {"before": before, "fixed": pair.fixed, "broken": pair.broken, "after": after, "net": after - before}
        rows.append({"digit": digit, "images": images, **counts, "low": low, "high": high, "p": pair.p})
    return rows


def score_rows(after: ScoreTable, before: ScoreTable | None = None) -> list[Row]:
    """Precision, recall and F1 of every digit and their means; those of `before` too, if they are given."""
    rows: list[Row] = []
    for name, one in after.rows.items():
        was = {f"{key}_before": value for key, value in before.rows[name].model_dump().items()} if before else {}
        rows.append({"digit": name, **was, **one.model_dump()})
    return rows


def strength_rows(adapter: AdapterResults) -> list[Row]:
    """Counts, accuracy and recalls on the split that the strength curve was measured on, by rising strength."""
    curve = adapter.curve
    measured = adapter.stored.evaluation.splits[curve.measured_on]
    images, of_digit = measured.count, measured.images[adapter.digit]
    return [
        {
            "strength": point.strength,  # in the first column
            **point.model_dump(exclude={"wrong"}),
            "accuracy": 1 - point.errors / images,
            "recall": 1 - point.missed / max(1, of_digit),  # a tiny val may have none of them
            "recall_of_others": 1 - (point.errors - point.missed) / max(1, images - of_digit),
        }
        for point in curve.splits[curve.measured_on]
    ]


def confusion_changes(comparison: Comparison) -> list[Row]:
    """The pairs of digits between which more or fewer images are confused, beyond chance; the largest change first."""
    rows = []
    for true, predicted in itertools.permutations(range(10), 2):
        came, went = comparison.came[true][predicted], comparison.went[true][predicted]
        if mcnemar(went, came) <= PAIR_LEVEL:
            rows.append({"true": true, "predicted": predicted, "change": came - went})
    return sorted(rows, key=lambda row: -abs(row["change"]))


def tables_of(run: Run, adapters: Sequence[AdapterResults], lines: Sequence[AdapterLine]) -> dict[str, bytes]:
    """CSV files by name, one beside every plot at least; a table without rows is left out."""
    base = run.base.evaluation.splits["test"]
    files: dict[str, Sequence[Row]] = {
        "adapters.csv": [_line_row(line) for line in lines],
        "base-digits.csv": base_digit_rows(base),
        "base-scores.csv": score_rows(base.scores),
        "base-confusion.csv": _matrix_rows(count=base.confusion),
        "base-loss.csv": _loss_rows(run.base),
    }
    for one in adapters:
        shifts, strengths = one.stored.analysis.threshold.curve, one.curve.splits["test"]
        trade: list[Row] = []
        for way, amount, points in (("threshold", "shift", shifts), ("strength", "strength", strengths)):
            for counts in (point.model_dump(exclude={"wrong"}) for point in points):
                trade.append({"way": way, "amount": counts.pop(amount), **counts})
        files |= {
            f"{one.name}-digits.csv": digit_rows(one),
            f"{one.name}-scores.csv": score_rows(one.after.scores, one.before.scores),
            f"{one.name}-confusion.csv": _matrix_rows(before=one.before.confusion, after=one.after.confusion),
            f"{one.name}-images.csv": [
                {"index": image.index, "kind": image.kind, "label": image.label}
                | {f"{key}_before": value for key, value in image.before._asdict().items()}
                | {f"{key}_after": value for key, value in image.after._asdict().items()}
                | {"agreed": image.agreed}
                for image in one.images.wrong
            ],
            f"{one.name}-layers.csv": [
                {"layer": layer, **effect.model_dump()}
                | {"singular_values": " ".join(f"{value:.6g}" for value in effect.singular_values)}
                for layer, effect in one.layers.items()
            ],
            f"{one.name}-loss.csv": _loss_rows(run.adapter(one.name)),
            f"{one.name}-strength_curve.csv": strength_rows(one),
            f"{one.name}-trade.csv": trade,
        }
    return {name: to_csv(rows) for name, rows in files.items() if rows}


def _loss_rows(saved: Artifact) -> list[Row]:
    """The loss of every step, and that on `val` with its accuracy where they were measured."""
    val = {step: dict(zip(VAL_COLUMNS, measured, strict=True)) for step, *measured in saved.val_curve()}
    return [{"step": step, "loss": loss, **val.get(step, {})} for step, loss in enumerate(saved.losses(), 1)]


def _line_row(line: AdapterLine) -> Row:
    """Counts before and after as columns of their own."""
    row = line.model_dump(exclude={"before", "after"}) | {"on_top_of": " ".join(line.on_top_of)}
    row["change"] = line.after.errors - line.before.errors
    for when, counts in (("before", line.before), ("after", line.after)):
        row |= {f"{key}_{when}": count for key, count in counts.model_dump().items()}
    return row


def _matrix_rows(**matrices: Matrix) -> list[Row]:
    """A row for every cell, a column for every matrix."""
    return [
        {"true": true, "predicted": taken, **{name: matrix[true][taken] for name, matrix in matrices.items()}}
        for true in range(10)
        for taken in range(10)
    ]


def to_csv(rows: Sequence[Row]) -> bytes:
    """A line a row; a row may lack some of the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def base_settings(documents: RunDocuments) -> dict[str, Any]:
    """The settings that made the base, by the names that a config file has for them; of an imported one no training."""
    trained = () if documents.run.source else ("seed", "pretrain")
    return documents.run.settings.model_dump(mode="json", include={"data", "model", *trained}, exclude_none=True)


def settings_of(stored: FinetunedDocuments) -> dict[str, Any]:
    """The settings that made an adapter or a checkpoint, likewise. TOML has no null: what is None is left out, and
    reading that gives None again."""
    settings = stored.finetune.settings.model_dump(mode="json", exclude_none=True)
    if stored.finetune.method == "full":
        settings["full_learning_rate"] = settings.pop("learning_rate")
    return settings


def configs(documents: RunDocuments) -> dict[str, bytes]:
    """A TOML file for the base, for every checkpoint and for every trained adapter, by its file name."""
    files = {"base.toml": base_settings(documents)}
    trained = [one for one in documents.adapters if one.finetune.method in ("lora", "taught")]
    for one in (*documents.checkpoints, *trained):
        section = "teach" if one.finetune.method == "taught" else "finetune"
        suffix = ".full" if one.finetune.method == "full" else ""  # an adapter may have the same name
        files[f"{one.name}{suffix}.toml"] = {"seed": one.finetune.seed, section: settings_of(one)}
    return {name: tomli_w.dumps(settings).encode() for name, settings in files.items()}


def commands(documents: RunDocuments) -> list[str]:
    """What makes all of it again, to be run in order in the folder that holds the config files."""

    def machine(provenance: Provenance) -> str:
        return f"--device {provenance.device} --threads {provenance.threads}"

    make = f"pretrain {NEW_RUN}"
    if source := documents.run.source:
        model = documents.run.settings.model
        make = f"import {shlex.quote(source.file)} {NEW_RUN} --mean {model.mean!r} --std {model.std!r}"
    place = documents.base.provenance.data  # of MNIST, if it is that; the new run remembers it
    data = f" --data {shlex.quote(place)}" if place else ""
    lines = [f"lora-mnist {make} --config base.toml {machine(documents.base.provenance)}{data}"]
    if source:
        lines.insert(0, f"# {source.file}, SHA-256 {source.sha256}, is not in this folder: put it there")
    for one in documents.checkpoints:
        config = f"--config {one.name}.full.toml"
        lines.append(f"lora-mnist finetune --full {NEW_RUN} {config} {machine(one.provenance)}")
    checkpoints = [one.name for one in documents.checkpoints]
    for one in reversed(documents.adapters):  # those below before those on top of them
        name, record, config = one.name, one.finetune, f"{NEW_RUN} --config {one.name}.toml"
        settings = record.settings
        if isinstance(settings, TeachSettings):
            command = f"lora-mnist teach ../adapters/{name}/{DRAWINGS} {config} {machine(one.provenance)}"
            lines.append(f"# {command} # prepares the drawings once more, so this comes close and no closer")
        elif not isinstance(settings, ExtractionSettings):
            below = "".join(f" --on-top-of {other}" for other in record.on_top_of)
            control = " --control" if one.analysis.control else ""
            lines.append(f"lora-mnist finetune {config}{below}{control} {machine(one.provenance)}")
        elif settings.checkpoint in checkpoints:
            options = f"--rank {settings.rank} --checkpoint {settings.checkpoint} --digit {record.digit} --name {name}"
            lines.append(f"lora-mnist extract {NEW_RUN} {options} {machine(one.provenance)}")
        else:
            lines.append(f"# {name} was extracted from {settings.checkpoint}, which was not trained in this run")
    return lines
