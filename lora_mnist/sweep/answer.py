"""What the rows of a sweep say: one typed document, which the terminal prints and a page can draw. Imports no torch.

Two things are told apart. A *case* is what happens to be repaired: a digit, of the base of a seed. A *variant* is a
setting that one chooses: a rank, and whatever else was varied. Every mean is over cases, and how sure it is comes from
the seeds alone: digits of one base are not independent of each other.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast

from lora_mnist.errors import UsageError, shown
from lora_mnist.evaluation.findings import COUNTS
from lora_mnist.evaluation.significance import LEVEL
from lora_mnist.settings.config import KnownDataset
from lora_mnist.settings.strict import Count, Digit, Document, Many
from lora_mnist.sweep.rows import Row

Metric = Literal["missed", "claimed", "errors"]
SplitName = Literal["val", "test"]
OF_A_CASE = {"digit", "name"}  # settings that no variant is made of
FULL = "all weights"


class Estimate(Document):
    """A mean, half the width of its 95 % interval (Student's t over seeds), and of how many seeds it is.

    Attributes:
        half: None where there is but one seed.
    """

    mean: float
    half: float | None
    seeds: Count


class Variant(Document):
    """One setting: what its adapters do, a mean over digits and seeds for each count.

    Attributes:
        name: what tells it from the others, such as `rank 4, focus 0.2`.
        by: its value of the setting that the answer is ordered by; None for all weights.
        series: the rest of its name.
        parameters: how many numbers it trains.
        kept: of how many jobs something was kept, out of `jobs`.
        verdicts: how many of each kind.
        threshold: the base with one shifted logit, at as many missed images.
        worst: by how many points the error rate of that other digit rose that lost most.
    """

    name: str
    by: str | None
    series: str
    parameters: Count
    jobs: Count
    kept: Count
    verdicts: dict[str, Count]
    after: dict[Metric, Estimate]
    threshold: dict[Metric, Estimate]
    worst: Estimate


class Cell(Document):
    """What one variant does for one digit, a mean over seeds."""

    digit: Digit
    variant: str
    value: float
    change: float


class Enough(Document):
    """The smallest variant that is not significantly worse than the best, for one digit or (None) over all.

    Attributes:
        best: the variant with the lowest mean.
        enough: the one with the fewest numbers of those that are not worse than it by more than chance: one-sided
            paired t-test over seeds, p of no more than `LEVEL`. None where there is but one seed, which cannot tell.
        helps: whether the best is better than the base by more than chance, by the same test; None if that cannot tell.
        next_smaller: the one before it, which is not enough, by how much it is `worse` than the best, and `p` of that.
            None if there is no smaller one.
    """

    digit: Digit | None
    best: str
    enough: str | None
    helps: bool | None
    next_smaller: str | None
    worse: float | None
    p: float | None


class Answer(Document):
    """What a sweep says of one count on one split.

    Attributes:
        by: the setting that the variants are ordered by.
        base: the base's counts.
        variants: ordered by that setting, all weights last.
        cells: digit by digit and variant by variant.
        enough: of every digit, then of all together.
    """

    dataset: KnownDataset
    split: SplitName
    metric: Metric
    by: str
    digits: Many[Digit]
    seeds: Many[Count]
    base: dict[Metric, Estimate]
    variants: Many[Variant]
    cells: Many[Cell]
    enough: Many[Enough]


def answer(rows: Sequence[Row], by: str = "rank", metric: Metric = "errors", split: SplitName = "test") -> Answer:
    """What `rows`, of one data set, say.

    Args:
        by: a setting of [finetune] that was varied; `rank` always may be.

    Raises:
        UsageError: there is no row, or `by` or the split is not to be had.
    """
    if not rows:
        raise UsageError("No job of this sweep is done.", "See why they failed, or wait for the first.")
    if split not in rows[0].after:
        raise UsageError(f"`split` (={split!r}) is none that these jobs were judged on.", "Use --split test.")
    varied = _varied(rows)
    by = by.removeprefix("finetune.")
    if by not in {*varied, "rank"}:
        raise UsageError(f"`by` (={shown(by)}) was not varied.", f"Varied were {', '.join(varied) or 'none'}.")
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: _place(row, by)):
        groups.setdefault(_name(row, varied, by), []).append(row)
    digits, seeds = sorted({row.digit for row in rows}), sorted({row.seed for row in rows})
    return Answer(
        dataset=rows[0].dataset,
        split=split,
        metric=metric,
        by=by,
        digits=tuple(digits),
        seeds=tuple(seeds),
        base={name: _estimate([(r.seed, r.before[split].of(name)) for r in _cases(rows)]) for name in _METRICS},
        variants=tuple(_variant(name, group, by, split) for name, group in groups.items()),
        cells=tuple(_cells(groups, metric, split)),
        enough=tuple(_enough(groups, digit, metric, split) for digit in (*digits, None)),
    )


def view_of(by: str, metric: str, split: str, varied: Iterable[str]) -> tuple[str, Metric, SplitName]:
    """What is to be shown, typed, before anything is trained for it.

    Args:
        varied: names of settings.

    Raises:
        UsageError: one of the three is none.
    """
    names = [name.removeprefix("finetune.") for name in varied]
    by = by.removeprefix("finetune.")
    if by not in {*names, "rank"} - OF_A_CASE - {"seed"}:
        raise UsageError(f"`by` (={shown(by)}) was not varied.", f"Varied are {', '.join(names)}.")
    for name, value, known in (("metric", metric, _METRICS), ("split", split, ("test", "val"))):
        if value not in known:
            raise UsageError(f"`{name}` (={shown(value)}) is none of {', '.join(known)}.", "Choose one of these.")
    return cast(tuple[str, Metric, SplitName], (by, metric, split))


_METRICS: tuple[Metric, ...] = ("missed", "claimed", "errors")
assert _METRICS == COUNTS


def _varied(rows: Sequence[Row]) -> list[str]:
    """Settings of which there are several values among the adapters, without those of a case."""
    settings = [row.settings.model_dump(mode="json", exclude=OF_A_CASE) for row in rows if row.method == "lora"]
    names = settings[0] if settings else {}
    return [name for name in names if len({_text(one[name]) for one in settings}) > 1]


def _name(row: Row, varied: Iterable[str], by: str) -> str:
    own = [name for name in dict.fromkeys((by, *varied)) if row.method == "lora" or name != "rank"]
    parts = [f"{name.replace('_', ' ')} {_text(_value(row, name))}" for name in own]
    return ", ".join([FULL, *(part for part in parts if part)] if row.method == "full" else parts)


def _place(row: Row, by: str) -> tuple[bool, float, str, int]:
    """Where its variant stands: by that setting, numbers by their size; all weights last."""
    value = _value(row, by)
    number = float(value) if isinstance(value, int | float) else math.inf
    return row.method == "full", number, _text(value), row.parameters


def _value(row: Row, name: str) -> object:
    return row.settings.model_dump(mode="json").get(name)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cases(rows: Iterable[Row]) -> list[Row]:
    """One row for each base and digit."""
    return list({(row.base, row.digit): row for row in rows}.values())


def _variant(name: str, rows: Sequence[Row], by: str, split: str) -> Variant:
    verdicts = [row.verdict or "not kept" for row in rows]
    counts: dict[str, int] = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    return Variant(
        name=name,
        by=None if rows[0].method == "full" else _text(_value(rows[0], by)),
        series=name.partition(", ")[2],
        parameters=max(row.parameters for row in rows),
        jobs=len(rows),
        kept=sum(row.strength is not None for row in rows),
        verdicts=counts,
        after={one: _estimate([(row.seed, row.after[split].of(one)) for row in rows]) for one in _METRICS},
        threshold={one: _estimate([(row.seed, row.threshold[split].of(one)) for row in rows]) for one in _METRICS},
        worst=_estimate([(row.seed, _worst_other(row, split)) for row in rows]),
    )


def _worst_other(row: Row, split: str) -> float:
    before, after = row.before[split], row.after[split]
    more = zip(after.wrong, before.wrong, after.images, strict=True)
    points = [100 * (now - then) / max(1, images) for now, then, images in more]
    return max(one for digit, one in enumerate(points) if digit != row.digit)


def _cells(groups: Mapping[str, Sequence[Row]], metric: Metric, split: str) -> Iterable[Cell]:
    for name, rows in groups.items():
        for digit in sorted({row.digit for row in rows}):
            own = [row for row in rows if row.digit == digit]
            value = statistics.mean(row.after[split].of(metric) for row in own)
            before = statistics.mean(row.before[split].of(metric) for row in own)
            yield Cell(digit=digit, variant=name, value=value, change=value - before)


def _enough(groups: Mapping[str, Sequence[Row]], digit: int | None, metric: Metric, split: str) -> Enough:
    means = {
        name: _by_seed([(row.seed, row.after[split].of(metric)) for row in rows if digit in (None, row.digit)])
        for name, rows in groups.items()
    }
    means = {name: by_seed for name, by_seed in means.items() if by_seed}
    mean = {name: statistics.mean(by_seed.values()) for name, by_seed in means.items()}
    best = min(mean, key=lambda name: mean[name])
    tests = {name: _worse(means[name], means[best]) for name in means if name != best}
    order = sorted(means, key=lambda name: (groups[name][0].parameters, mean[name]))  # of as many numbers, the better
    good = [name for name in order if name == best or (name in tests and _is_as_good(tests[name]))]
    enough = good[0] if any(p is not None for _, p in tests.values()) else None
    smaller = order[order.index(enough) - 1] if enough is not None and order.index(enough) > 0 else None
    worse, p = tests[smaller] if smaller is not None else (None, None)
    cases = _cases(row for rows in groups.values() for row in rows if digit in (None, row.digit))
    base = _by_seed([(row.seed, row.before[split].of(metric)) for row in cases])
    _, p_of_base = _worse(base, means[best])
    helps = None if p_of_base is None else p_of_base <= LEVEL
    return Enough(digit=digit, best=best, enough=enough, helps=helps, next_smaller=smaller, worse=worse, p=p)


def _is_as_good(test: tuple[float | None, float | None]) -> bool:
    return test[1] is not None and test[1] > LEVEL


def _worse(one: Mapping[int, float], best: Mapping[int, float]) -> tuple[float | None, float | None]:
    """By how much, on the seeds that both have, and p of a one-sided paired t-test; None where there is no telling."""
    differences = [one[seed] - best[seed] for seed in one if seed in best]
    if len(differences) < 2:
        return None, None
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    if not deviation:
        return mean, 0.0 if mean > 0 else 1.0
    from scipy.special import stdtr  # takes a while to import, and only answers ask

    t = mean / (deviation / math.sqrt(len(differences)))
    return mean, float(stdtr(len(differences) - 1, -t))


def _by_seed(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """The mean of each seed."""
    found: dict[int, list[float]] = {}
    for seed, value in values:
        found.setdefault(seed, []).append(value)
    return {seed: statistics.mean(own) for seed, own in found.items()}


def _estimate(values: Iterable[tuple[int, float]]) -> Estimate:
    means = list(_by_seed(values).values())
    half = None
    if len(means) > 1:
        from scipy.special import stdtrit

        half = float(stdtrit(len(means) - 1, 0.975)) * statistics.stdev(means) / math.sqrt(len(means))
    return Estimate(mean=statistics.mean(means), half=half, seeds=len(means))
