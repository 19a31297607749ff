"""What the adapters of a sweep are compared with: a shifted threshold, controls, all weights, rounds. No torch."""

import statistics
from collections.abc import Sequence, Set

from lora_mnist.evaluation.results import Counts
from lora_mnist.settings.strict import Count, Document, Many
from lora_mnist.sweep.estimates import METRICS, Estimate, Metric, estimate_of
from lora_mnist.sweep.rows import Row

FULL = "all weights"
ON_TEST = "shifted threshold, as many missed (chosen on `test`)"
ON_VAL = "shifted threshold (chosen on `val`)"
CONTROLS = {  # by method: its name, and with a number on its logit
    "control": ("control: uniform sampling", "control + shifted threshold (chosen on `val`)"),
    "hard control": (
        "hard examples at the natural share",
        "hard examples at the natural share + shifted threshold (chosen on `val`)",
    ),
}


class Reference(Document):
    """What could explain an adapter away, or what it could reach: means over the same digits and seeds.

    Attributes:
        counts: its own.
        more: by how many more errors than the adapter, case by case.
    """

    name: str
    jobs: Count
    counts: dict[Metric, Estimate]
    more: Estimate


class RoundMean(Document):
    """One round: means over the bases that got so far.

    Attributes:
        jobs: that began it, of which `kept` kept something.
        missed, errors: before and after it, of those that kept something.
        change: of all errors.
        fell: in how many of these there were fewer errors.
    """

    jobs: Count
    kept: Count
    missed: tuple[float, float]
    errors: tuple[float, float]
    change: Estimate
    fell: Count


class Rounds(Document):
    """All of them, and where they end.

    Attributes:
        errors: at the end.
        worst: by how many points the error rate changed of that digit which fares worst against the base; `most`: the
            largest of all.
    """

    rounds: Many[RoundMean]
    errors: Estimate
    worst: Estimate
    most: float


def references_of(adapters: Sequence[Row], others: Sequence[Row], split: str) -> list[Reference]:
    """Those of the adapters of one variant.

    Args:
        others: rows of other methods, among them those that belong to these adapters.
        split: on which is counted; what is known of `test` only is left out for another.
    """
    found: dict[str, Sequence[Counts]] = {}
    if split == "test":
        found[ON_TEST] = [row.threshold_on_test for row in adapters]
    if "val" in adapters[0].after:
        found[ON_VAL] = [row.threshold[split] for row in adapters]
    for method, (name, with_number) in CONTROLS.items():
        controls = _partners(adapters, [row for row in others if row.method == method])
        if controls:
            found[name] = [control.after[split] for control in controls]
        if controls and split == "test" and controls[0].shifted:
            found[with_number] = [*map(_at_as_many_missed, adapters, controls)]
    if whole := _partners(adapters, [row for row in others if row.method == "full"], {"rank"}):
        found[FULL] = [row.after[split] for row in whole]
    return [_reference(name, adapters, counts, split) for name, counts in found.items()]


def rounds_of(rows: Sequence[Row], split: str) -> Rounds | None:
    """What several repairs on top of each other come to; None if there are none."""
    if not rows:
        return None
    longest = max(len(row.rounds) for row in rows)
    found = [_round(rows, number) for number in range(longest)]
    worst = [(row.seed, max(_points(row, split))) for row in rows]
    return Rounds(
        rounds=tuple(one for one in found if one is not None),
        errors=estimate_of([(row.seed, row.after[split].errors) for row in rows]),
        worst=estimate_of(worst),
        most=max(points for _, points in worst),
    )


def worst_other(row: Row, split: str) -> float:
    """By how many points the error rate rose of that digit, other than the repaired one, that lost most."""
    return max(points for digit, points in enumerate(_points(row, split)) if digit != row.digit)


def _points(row: Row, split: str) -> list[float]:
    before, after = row.before[split], row.after[split]
    more = zip(after.wrong, before.wrong, after.images, strict=True)
    return [100 * (now - then) / max(1, images) for now, then, images in more]


def _reference(name: str, adapters: Sequence[Row], counts: Sequence[Counts], split: str) -> Reference:
    """Args: counts: of each adapter's case, in their order."""
    cases = list(zip(adapters, counts, strict=True))
    more = estimate_of([(row.seed, of.errors - row.after[split].errors) for row, of in cases])
    means = {one: estimate_of([(row.seed, of.of(one)) for row, of in cases]) for one in METRICS}
    return Reference(name=name, jobs=len(adapters), counts=means, more=more)


def _at_as_many_missed(row: Row, control: Row) -> Counts:
    """The control with one number on its logit, with which it misses no more images on `val` than the adapter."""
    return control.shifted[min(row.after["val"].missed, len(control.shifted) - 1)]


def _partners(adapters: Sequence[Row], others: Sequence[Row], but: Set[str] = frozenset()) -> list[Row]:
    """For each adapter the other row of the same base and seed, with the same settings `but` for some; none if one is
    missing."""

    def case(row: Row) -> tuple[str, int, str]:
        return row.base, row.seed, row.settings.model_dump_json(exclude={"name", *but})

    there = {case(row): row for row in others}
    found = [there[case(row)] for row in adapters if case(row) in there]
    return found if len(found) == len(adapters) else []


def _round(rows: Sequence[Row], number: int) -> RoundMean | None:
    there = [(row.seed, row.rounds[number]) for row in rows if len(row.rounds) > number]
    kept = [(seed, one) for seed, one in there if one.strength is not None]
    if not kept:
        return None
    missed, errors = (
        (statistics.mean(one.before.of(of) for _, one in kept), statistics.mean(one.after.of(of) for _, one in kept))
        for of in ("missed", "errors")
    )
    change = [(seed, one.after.errors - one.before.errors) for seed, one in kept]
    fell = sum(one < 0 for _, one in change)
    return RoundMean(
        jobs=len(there), kept=len(kept), missed=missed, errors=errors, change=estimate_of(change), fell=fell
    )
