"""What the run stored of one adapter → its section of the report."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.evaluation.results import (
    COUNTS,
    Analysis,
    Comparison,
    LayerEffect,
    Matrix,
    Pair,
    Proof,
    SplitResult,
    StrengthCurve,
)
from lora_mnist.evaluation.significance import LEVEL, mcnemar, paired_interval
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.report.document import (
    AdapterSection,
    BeforeAfter,
    Change,
    DialPoint,
    DialSection,
    DigitRow,
    Flow,
    Headline,
    LayerRow,
    Share,
    ShiftedThreshold,
    Trade,
    Yardstick,
)
from lora_mnist.report.images import judged_of
from lora_mnist.report.provenance import made_of
from lora_mnist.runs.artifact import ANALYSIS, EVALUATION, Artifact
from lora_mnist.runs.atomic import RESTORE
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import AdapterParameters, FinetuneRecord, FullParameters

FLOW_LEVEL = LEVEL / 90  # pairs of digits that can be confused


@dataclass(frozen=True)
class _Stored:
    """What the run holds on one adapter; the last five are what only adapters have.

    Attributes:
        before: `test` without it: the base, or the base with the adapters that it was trained on top of.
        splits: with it.
    """

    saved: Artifact
    before: SplitResult
    splits: Mapping[str, SplitResult]
    proof: Proof
    parameters: AdapterParameters
    rank: int
    strength_curve: StrengthCurve
    layers: Mapping[str, LayerEffect]

    @property
    def record(self) -> FinetuneRecord:
        return self.saved.finetune

    @property
    def analysis(self) -> Analysis:
        return self.saved.analysis

    @property
    def digit(self) -> int:
        return self.record.digit

    @property
    def after(self) -> SplitResult:
        return self.splits["test"]

    @property
    def comparison(self) -> Comparison:
        return self.analysis.splits["test"]


def section_of(run: Run, saved: Artifact) -> AdapterSection:
    """Everything about one adapter.

    Raises:
        RunError: one that it was trained on top of is not in the run.
    """
    one = _stored(run, saved)
    record, shifted = one.record, one.analysis.threshold
    on_test, judged = shifted.splits["test"], judged_of(run, saved)
    return AdapterSection(
        name=one.saved.name,
        digit=one.digit,
        weakest_on_val=record.weakest_on_val,
        on_top_of=record.on_top_of,
        method=record.method,
        rank=one.rank,
        verdict=verdict_of(one.analysis, one.digit),
        headline=_headline(one),
        accuracy=BeforeAfter[Share](before=Share.accuracy(one.before), after=Share.accuracy(one.after)),
        parameters=one.parameters,
        proof=one.proof,
        threshold=ShiftedThreshold(shift=shifted.shift, chosen_on=shifted.chosen_on, **dict(on_test)),
        yardsticks=tuple(_yardsticks(run, one)),
        control=one.analysis.control,
        digits=_digits(one),
        confusion=BeforeAfter[Matrix](before=one.before.confusion, after=one.after.confusion),
        flows=_flows(one.comparison),
        trade=Trade(threshold=shifted.curve, strength=one.strength_curve.splits["test"]),
        strength_curve=_strength_curve(one),
        layers=tuple(LayerRow(layer=path, **dict(effect)) for path, effect in one.layers.items()),
        examples=judged.examples(one.analysis),
        wrong_images=judged.wrong_images(),
        guard=record.guard,
        lesson=record.lesson,
        provenance=made_of(one.saved),
    )


def _stored(run: Run, saved: Artifact) -> _Stored:
    record, analysis = saved.finetune, saved.analysis
    if missing := [one for one in record.on_top_of if one not in run.adapter_names()]:
        raise RunError(
            f"{saved.name} was trained on top of {', '.join(missing)}, which is not in the run.",
            f"Restore that, or remove {saved.folder}.",
        )
    proof, rank, strength_curve, layers = record.proof, record.rank, analysis.strength_curve, analysis.layers
    if (
        proof is None
        or rank is None
        or strength_curve is None
        or not layers
        or isinstance(record.parameters, FullParameters)
    ):
        raise AlteredError(f"{saved.folder} does not hold all that is known of an adapter.", RESTORE)
    below = run.adapter(record.on_top_of[-1]) if record.on_top_of else run.base
    before = below.evaluation.splits["test"]
    return _Stored(saved, before, saved.evaluation.splits, proof, record.parameters, rank, strength_curve, layers)


def _headline(one: _Stored) -> Headline:
    count, of_digit, comparison = one.before.count, one.before.images[one.digit], one.comparison
    images = {"missed": of_digit, "false_alarms": count - of_digit, "errors": count}
    changes = {
        key: _change(
            Share.of_images(comparison.before.of(key), images[key]),
            Share.of_images(comparison.after.of(key), images[key]),
            comparison.pairs.of(key),
        )
        for key in COUNTS
    }
    return Headline(**changes)


def _change(before: Share, after: Share, pair: Pair) -> Change:
    p = mcnemar(pair.fixed, pair.broken)
    return Change(before=before, after=after, change=after.count - before.count, **dict(pair), p=p)


def _yardsticks(run: Run, one: _Stored) -> Iterator[Yardstick]:
    """The control, and every checkpoint with all weights trained on the same digit."""
    if control := one.analysis.control:
        counts = {key: control.splits["test"].of(key) for key in COUNTS}
        kept = control.scale is not None
        yield Yardstick(method="control", name="control", kept=kept, **counts)
        if number := control.threshold:
            moved = number.splits["test"]
            yield Yardstick(
                method="control and threshold", name="control with a shifted threshold", kept=kept, **dict(moved)
            )
    for saved in run.full_checkpoints() if not one.record.on_top_of else []:
        if saved.finetune.digit == one.digit:
            after = saved.analysis.splits["test"].after
            yield Yardstick(method="full", name=saved.name, kept=True, **dict(after))


def _digits(one: _Stored) -> tuple[DigitRow, ...]:
    return tuple(_digit(one, digit) for digit in range(10))


def _digit(one: _Stored, digit: int) -> DigitRow:
    pair, images = one.comparison.by_digit[digit], one.before.images[digit]
    low, high = paired_interval(pair.fixed, pair.broken, max(1, images))
    return DigitRow(
        digit=digit,
        images=images,
        before=one.before.wrong[digit],
        fixed=pair.fixed,
        broken=pair.broken,
        after=one.after.wrong[digit],
        net=one.after.wrong[digit] - one.before.wrong[digit],
        low=low,
        high=high,
        p=mcnemar(pair.fixed, pair.broken),
    )


def _flows(comparison: Comparison) -> tuple[Flow, ...]:
    """The pairs of digits between which more or fewer images are confused, beyond chance; the largest change first."""
    flows = []
    for row, column in itertools.permutations(range(10), 2):
        came, went = comparison.came[row][column], comparison.went[row][column]
        if (p := mcnemar(went, came)) <= FLOW_LEVEL:
            flows.append(Flow(true=row, predicted=column, change=came - went, p=p))
    return tuple(sorted(flows, key=lambda flow: -abs(flow.change)))


def _strength_curve(one: _Stored) -> DialSection:
    strength_curve = one.strength_curve
    if strength_curve.measured_on not in one.splits.keys() & strength_curve.splits.keys():
        raise AlteredError(
            f"{one.saved.folder / EVALUATION} has no {strength_curve.measured_on}, on which the strength_curve is.",
            RESTORE,
        )
    measured = one.splits[strength_curve.measured_on]
    count, of_digit = measured.count, measured.images[one.digit]
    points = tuple(
        DialPoint(
            **dict(point),
            accuracy=1 - point.errors / count,
            recall=1 - point.missed / max(1, of_digit),  # a tiny val may have none of them
            recall_of_others=1 - (point.errors - point.missed) / max(1, count - of_digit),
        )
        for point in strength_curve.splits[strength_curve.measured_on]
    )
    at = next((point for point in strength_curve.splits["test"] if point.strength == strength_curve.recommended), None)
    if at is None:
        raise AlteredError(f"{one.saved.folder / ANALYSIS} has no test counts at the strength it recommends.", RESTORE)
    return DialSection(
        measured_on=strength_curve.measured_on, recommended=strength_curve.recommended, points=points, test=at
    )
