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
from lora_mnist.evaluation.significance import LEVEL
from lora_mnist.settings.config import KnownDataset
from lora_mnist.settings.strict import Count, Digit, Document, Many, Maybe
from lora_mnist.sweep.estimates import METRICS, Estimate, Metric, by_seed, estimate_of
from lora_mnist.sweep.grid import Axes
from lora_mnist.sweep.references import FULL, Reference, Rounds, references_of, rounds_of, worst_other
from lora_mnist.sweep.rows import Row

SplitName = Literal["val", "test"]
OF_A_CASE = {"digit", "name"}  # settings that no variant is made of


class Variant(Document):
    """One setting: what its adapters do, a mean over digits and seeds for each count.

    Attributes:
        name: what tells it from the others, such as `rank 4, focus 0.2`; of a single one, what the sweep set.
        by: its value of the setting that the answer is ordered by; None for all weights.
        series: the rest of its name.
        parameters: how many numbers it trains.
        kept: of how many jobs something was kept, out of `jobs`.
        verdicts: how many of each kind.
        threshold: the base with one shifted logit, at as many missed images.
        references: what else it is compared with, of an adapter.
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
    references: Many[Reference]


class Cell(Document):
    """What one variant does for one digit, a mean over seeds."""

    digit: Digit
    variant: str
    value: float
    change: float


class Enough(Document):
    """The smallest variant that is not significantly worse than the best, for one digit or (None) over all.

    Attributes:
        among: so many.
        best: the variant with the lowest mean.
        enough: the one with the fewest numbers of those that are not worse than it by more than chance: one-sided
            paired t-test over seeds, p of no more than `LEVEL`. None where there is but one seed, which cannot tell.
        smallest: whether all others train more numbers than that.
        helps: whether the best is better than the base by more than chance, by the same test; None if that cannot tell.
        next_smaller: the one before it, which is not enough, by how much it is `worse` than the best, and `p` of that.
            None if there is no smaller one.
    """

    digit: Digit | None
    among: Count
    best: str
    enough: str | None
    smallest: bool
    helps: bool | None
    next_smaller: str | None
    worse: float | None
    p: float | None


class Answer(Document):
    """What a sweep says of one count on one split.

    Attributes:
        held_out: whether these are the images that a search held out, not those of the split itself.
        by: the setting that the variants are ordered by.
        accuracy: the lowest and the highest of the bases.
        base: the base's counts.
        variants: ordered by that setting, all weights last.
        cells: digit by digit and variant by variant.
        enough: of every digit, then of all together.
        rounds: repairs on top of each other, if there are any.
    """

    dataset: KnownDataset
    split: SplitName
    held_out: bool
    metric: Metric
    by: str
    accuracy: tuple[float, float]
    digits: Many[Digit]
    seeds: Many[Count]
    base: dict[Metric, Estimate]
    variants: Many[Variant]
    cells: Many[Cell]
    enough: Many[Enough]
    rounds: Maybe[Rounds] = None


def answer(
    rows: Sequence[Row],
    by: str = "rank",
    metric: Metric = "errors",
    split: SplitName = "test",
    only: str = "the adapter",
) -> Answer:
    """What `rows`, of one data set, say.

    Args:
        only: what to call the adapters if nothing is varied.
        by: a setting of [finetune] that was varied; `rank` always may be.

    Raises:
        UsageError: there is no row, or `by` or the split is not to be had.
    """
    judged = judged_of(rows)
    if not judged:
        raise UsageError("No job of this sweep is done.", "See why they failed, or wait for the first.")
    if split not in rows[0].after:
        raise UsageError(f"`split` (={split!r}) is none that these jobs were judged on.", "Use --split test.")
    varied = _varied(rows)
    by = _require_varied(by, varied)
    groups = _groups(judged, by, varied, only)
    digits, seeds = sorted({row.digit for row in judged}), sorted({row.seed for row in judged})
    accuracies = [1 - row.before[split].errors / sum(row.before[split].images) for row in rows]
    return Answer(
        dataset=rows[0].dataset,
        split=split,
        held_out=rows[0].held_out,
        metric=metric,
        by=by,
        accuracy=(min(accuracies), max(accuracies)),
        digits=tuple(digits),
        seeds=tuple(seeds),
        base={name: estimate_of([(r.seed, r.before[split].of(name)) for r in _cases(rows)]) for name in METRICS},
        variants=tuple(_variant(name, group, (by, *varied), split, rows) for name, group in groups.items()),
        cells=tuple(_cells(groups, metric, split)),
        enough=tuple(_enough(groups, digit, metric, split) for digit in (*digits, None)),
        rounds=rounds_of([row for row in rows if row.method == "rounds"], split),
    )


def judged_of(rows: Iterable[Row]) -> list[Row]:
    """Those that an answer compares; the others are what these are compared with."""
    return [row for row in rows if row.method in ("lora", "full")]


def view_of(by: str, metric: str, split: str, axes: Axes) -> tuple[str, Metric, SplitName]:
    """What is to be shown, typed, before anything is trained for it.

    Raises:
        UsageError: one of the three is none.
    """
    names = [name.removeprefix("finetune.") for name, values in axes.items() if len(values) > 1]
    by = _require_varied(by, [name for name in names if name not in OF_A_CASE | {"seed"}])
    for name, value, known in (("metric", metric, METRICS), ("split", split, ("test", "val"))):
        if value not in known:
            raise UsageError(f"`{name}` (={shown(value)}) is none of {', '.join(known)}.", "Choose one of these.")
    return cast(tuple[str, Metric, SplitName], (by, metric, split))


def _require_varied(by: str, varied: Sequence[str]) -> str:
    """The setting to order by, as the rows name it. Raises UsageError."""
    by = by.removeprefix("finetune.")
    if by not in {*varied, "rank"}:
        raise UsageError(f"`by` (={shown(by)}) was not varied.", f"Varied: {', '.join(varied) or 'none'}.")
    return by


def _varied(rows: Sequence[Row]) -> list[str]:
    """Settings of which there are several values among the adapters, without those of a case."""
    settings = [row.all_settings for row in rows if row.method == "lora"]
    names = [name for name in settings[0] if name not in OF_A_CASE] if settings else []
    return [name for name in names if len({_text(one[name]) for one in settings}) > 1]


def _groups(rows: Iterable[Row], by: str, varied: Sequence[str], only: str) -> dict[str, list[Row]]:
    """By variant, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: _place(row, by)):
        groups.setdefault(", ".join(_parts(row, (by, *varied) if varied else ())) or only, []).append(row)
    return groups


def _parts(row: Row, names: Iterable[str]) -> list[str]:
    """What tells it from others, each setting once; none if nothing does."""
    own = [name for name in dict.fromkeys(names) if row.method == "lora" or name != "rank"]
    parts = [f"{spelled(name)} {_text(_value(row, name))}" for name in own]
    return [FULL, *parts] if row.method == "full" else parts


def spelled(setting: str) -> str:
    """Its name as words: `pretrain epochs`."""
    return setting.replace("_", " ").replace(".", " ")


def _place(row: Row, by: str) -> tuple[bool, float, str, int]:
    """Where its variant stands: by that setting, numbers by their size; all weights last."""
    value = _value(row, by)
    number = float(value) if isinstance(value, int | float) else math.inf
    return row.method == "full", number, _text(value), row.parameters


def _value(row: Row, name: str) -> object:
    return row.all_settings.get(name)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cases(rows: Iterable[Row]) -> list[Row]:
    """One row for each base and digit."""
    return list({(row.base, row.digit): row for row in rows}.values())


def _variant(name: str, rows: Sequence[Row], names: Sequence[str], split: str, others: Sequence[Row]) -> Variant:
    """Args: names: of the setting to order by, and of all that are varied."""
    verdicts = [row.verdict or "not kept" for row in rows]
    counts: dict[str, int] = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    return Variant(
        name=name,
        by=None if rows[0].method == "full" else _text(_value(rows[0], names[0])),
        series=", ".join(_parts(rows[0], names)[1:]),
        parameters=max(row.parameters for row in rows),
        jobs=len(rows),
        kept=sum(row.strength is not None for row in rows),
        verdicts=counts,
        after={one: estimate_of([(row.seed, row.after[split].of(one)) for row in rows]) for one in METRICS},
        threshold={one: estimate_of([(row.seed, row.threshold[split].of(one)) for row in rows]) for one in METRICS},
        worst=estimate_of([(row.seed, worst_other(row, split)) for row in rows]),
        references=tuple(references_of(rows, others, split)) if rows[0].method == "lora" else (),
    )


def _cells(groups: Mapping[str, Sequence[Row]], metric: Metric, split: str) -> Iterable[Cell]:
    for name, rows in groups.items():
        for digit in sorted({row.digit for row in rows}):
            own = [row for row in rows if row.digit == digit]
            value = statistics.mean(row.after[split].of(metric) for row in own)
            before = statistics.mean(row.before[split].of(metric) for row in own)
            yield Cell(digit=digit, variant=name, value=value, change=value - before)


def _enough(groups: Mapping[str, Sequence[Row]], digit: int | None, metric: Metric, split: str) -> Enough:
    means = {
        name: by_seed([(row.seed, row.after[split].of(metric)) for row in rows if digit in (None, row.digit)])
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
    base = [(row.seed, row.before[split].of(metric)) for row in groups[best] if digit in (None, row.digit)]
    _, p_of_base = _worse(by_seed(base), means[best])
    helps = None if p_of_base is None else p_of_base <= LEVEL
    numbers = {name: groups[name][0].parameters for name in means}
    smallest = all(numbers[name] > numbers[enough or best] for name in means if name != (enough or best))
    found = {"digit": digit, "among": len(means), "best": best, "enough": enough, "smallest": smallest, "helps": helps}
    return Enough.model_validate(found | {"next_smaller": smaller, "worse": worse, "p": p})


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
