"""What the rows of a sweep say: one typed document, and the same in words. Imports no torch.

A *case* is a base and a digit to repair; a *variant* is a setting that one chooses: a rank, and whatever else was
varied. Every mean is over cases, and its interval comes from the seeds alone: digits of one base are not independent.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from lora_mnist.errors import UsageError, shown
from lora_mnist.evaluation.results import Counts
from lora_mnist.evaluation.significance import LEVEL, format_p, holm, mean_interval, paired_t_test
from lora_mnist.settings.config import Count, Digit, Document, KnownDataset, Many, Maybe
from lora_mnist.sweep.grid import Axes
from lora_mnist.sweep.rows import Row

Metric = Literal["missed", "false_alarms", "errors"]
SplitName = Literal["val", "test"]
METRIC_NAMES: dict[Metric, str] = {"missed": "missed", "false_alarms": "false alarms", "errors": "all errors"}
OF_A_CASE = {"digit", "name"}  # settings that no variant is made of

FULL = "all weights"
BASE = "the base"
ON_TEST = "shifted threshold, as many missed (chosen on `test`)"
ON_VAL = "shifted threshold (chosen on `val`)"
HARD = "hard examples at the natural share"
CONTROL_NAMES = {  # by method: its name, and with a shifted threshold of its own
    "control": ("control: uniform sampling", "control + shifted threshold (chosen on `val`)"),
    "hard control": (HARD, f"{HARD} + shifted threshold (chosen on `val`)"),
}


class Estimate(Document):
    """A mean over `seeds`, and half the width of its 95 % interval (Student's t; None for one seed)."""

    mean: float
    half: float | None
    seeds: Count

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.half is None else f" ± {self.half:.1f}")

    def signed(self, decimals: int) -> str:
        """As a change, with its sign."""
        text = f"{self.mean:+.{decimals}f}" + ("" if self.half is None else f" ± {self.half:.{decimals}f}")
        return text.replace("-", "−")


class BaselineMean(Document):
    """What could explain an adapter away, or what it could reach: means over the same digits and seeds."""

    name: str
    jobs: Count
    counts: dict[Metric, Estimate]
    more: Estimate  # by how many more errors than the adapter, case by case


class RoundMean(Document):
    """One round of repairs on top of each other."""

    jobs: Count  # that began it
    kept: Count  # of these; what follows is of those that were kept
    missed: tuple[float, float]  # before and after
    errors: tuple[float, float]
    change: Estimate  # of all errors
    fell: Count  # in how many of them there were fewer errors


class RoundsSummary(Document):
    """All rounds, and what there is at their end."""

    rounds: Many[RoundMean]
    errors: Estimate
    worst: Estimate  # by how many points the error rate changed of that digit which fares worst against the base
    most: float  # the largest of these


class Variant(Document):
    """One setting: what its adapters do, a mean over digits and seeds for each count."""

    name: str  # what tells it from the others, such as `rank 4, focus 0.2`; of a single one, what the sweep set
    by: str | None  # its value of the setting that the variants are ordered by; None for all weights
    series: str  # the rest of its name
    parameters: Count
    jobs: Count
    kept: Count  # of the jobs, those of which the guard kept something
    verdicts: dict[str, Count]
    after: dict[Metric, Estimate]
    threshold: dict[Metric, Estimate]  # the base with one shifted logit, at as many missed images
    worst: Estimate  # by how many points the error rate rose of that other digit that lost most
    references: Many[BaselineMean]  # what else an adapter is compared with


class Cell(Document):
    """What one variant does for one digit, a mean over seeds, and the change from the base."""

    digit: Digit
    variant: str
    value: float
    change: float


class Recommendation(Document):
    """The smallest variant that is not significantly worse than the best, for one digit or (None) over all.

    Significant is p of no more than `LEVEL` in a one-sided paired t-test over seeds. One seed cannot tell.
    """

    digit: Digit | None
    among: Count
    best: str
    enough: str | None  # the one with the fewest parameters of those not worse than the best; None: no telling
    smallest: bool  # whether all others have more parameters than that
    helps: bool | None  # whether the best is better than the base; None: no telling
    next_smaller: str | None  # the one before `enough`, which is
    worse: float | None  # by so much than the best
    p: float | None  # of that

    def __str__(self) -> str:
        whom = "all digits together" if self.digit is None else f"the {self.digit}"
        if self.among == 1:
            if self.helps is None:
                return f"These seeds do not say whether {self.best} is better than the base for {whom}."
            better = "better" if self.helps else "not better"
            return f"{capital(self.best)} is {better} than the base for {whom} by more than chance."
        if self.enough is None:
            return f"For {whom}, {self.best} is best; these seeds do not say what is enough."
        if self.helps is False:
            return f"None is better than the base for {whom} by more than chance; {self.best} comes nearest."
        if self.next_smaller is None or self.p is None:
            best = "" if self.enough == self.best else f"; {self.best} is best, by what may be chance"
            smallest = ", the smallest," if self.smallest else ""
            return f"{capital(self.enough)}{smallest} is enough for {whom}{best}."
        worse = f"{self.next_smaller} is not: {self.worse:.1f} more ({format_p(self.p)})"
        return f"{capital(self.enough)} is enough for {whom}; {worse}."


class Summary(Document):
    """What a sweep says of one count on one split."""

    dataset: KnownDataset
    split: SplitName
    held_out: bool  # whether these are the images that a search held out, not those of the split itself
    metric: Metric
    by: str  # the setting that the variants are ordered by; all weights come last
    accuracy: tuple[float, float]  # the lowest and the highest of the bases
    digits: Many[Digit]
    seeds: Many[Count]
    base: dict[Metric, Estimate]
    variants: Many[Variant]
    cells: Many[Cell]
    enough: Many[Recommendation]  # for every digit, then for all together
    rounds: Maybe[RoundsSummary] = None

    @property
    def images(self) -> str:
        """On which it is counted."""
        return f"{self.split}, held out of the training images" if self.held_out else self.split

    @property
    def scope(self) -> str:
        """Of what the means are."""
        digits, seeds = len(self.digits), len(self.seeds)
        return f"{self.images}: means over {digits} digit{'s'[: digits > 1]} and {seeds} seed{'s'[: seeds > 1]}"

    @property
    def sentences(self) -> list[str]:
        """What is enough, of every digit and then of all together."""
        if all(one.enough is None and one.helps is None for one in self.enough):
            return ["One seed does not say which is enough: how sure it is comes from several."]
        return [str(one) for one in self.enough]

    @property
    def rule(self) -> str:
        """How it was found out, if something was."""
        if all(one.enough is None for one in self.enough):
            return ""
        return "Enough is the smallest that is not worse than the best by more than chance (paired t-test over seeds)."


def check_view(by: str, metric: str, split: str, axes: Axes) -> tuple[str, Metric, SplitName]:
    """What is to be shown, typed, before anything is trained for it; `by` as the rows name it.

    Raises UsageError if one of the three is none. `rank` is always a setting to order by.
    """
    names = [name.removeprefix("finetune.") for name, values in axes.items() if len(values) > 1]
    varied, by = [name for name in names if name not in OF_A_CASE | {"seed"}], by.removeprefix("finetune.")
    if by not in {*varied, "rank"}:
        raise UsageError(f"`by` (={shown(by)}) was not varied.", f"Varied: {', '.join(varied) or 'none'}.")
    for name, value, known in (("metric", metric, METRIC_NAMES), ("split", split, ("test", "val"))):
        if value not in known:
            raise UsageError(f"`{name}` (={shown(value)}) is none of {', '.join(known)}.", "Choose one of these.")
    return cast(tuple[str, Metric, SplitName], (by, metric, split))


def summarise(
    rows: Sequence[Row], by: str = "rank", metric: Metric = "errors", split: SplitName = "test", label: str = "adapter"
) -> Summary | None:
    """What `rows`, of one data set, say; None if none of them is of a variant.

    Args:
        by: the setting to order by (see `check_view`).
        label: what to call the adapters if nothing is varied.

    Raises UsageError if the split is not to be had.
    """
    own = [row for row in rows if row.method in ("lora", "full")]  # others are what the variants are compared with
    if not own:
        return None
    if split not in rows[0].after:
        raise UsageError(f"`split` (={split!r}) is none that these jobs were judged on.", "Use --split test.")
    settings = [row.all_settings for row in rows if row.method == "lora"]
    names = [name for name in settings[0] if name not in OF_A_CASE] if settings else []
    varied = [name for name in names if len({_text(one[name]) for one in settings}) > 1]

    def place(row: Row) -> tuple[bool, float, str, int]:  # numbers by their size; all weights last
        value = row.all_settings.get(by)
        number = float(value) if isinstance(value, int | float) else math.inf
        return row.method == "full", number, _text(value), row.parameters

    groups: dict[str, list[Row]] = {}  # by variant
    for row in sorted(own, key=place):
        groups.setdefault(", ".join(_name_parts(row, (by, *varied) if varied else ())) or label, []).append(row)
    digits = sorted({row.digit for row in own})
    cells = []
    for name, group in groups.items():
        for digit in sorted({row.digit for row in group}):
            of_digit = [row for row in group if row.digit == digit]
            value = statistics.mean(row.after[split].of(metric) for row in of_digit)
            before = statistics.mean(row.before[split].of(metric) for row in of_digit)
            cells.append(Cell(digit=digit, variant=name, value=value, change=value - before))
    cases = list({(row.base, row.digit): row for row in rows}.values())
    accuracies = [1 - row.before[split].errors / sum(row.before[split].images) for row in rows]
    return Summary(
        dataset=rows[0].dataset,
        split=split,
        held_out=rows[0].held_out,
        metric=metric,
        by=by,
        accuracy=(min(accuracies), max(accuracies)),
        digits=tuple(digits),
        seeds=tuple(sorted({row.seed for row in own})),
        base=_means(cases, [row.before[split] for row in cases]),
        variants=tuple(_variant(name, group, (by, *varied), split, rows) for name, group in groups.items()),
        cells=tuple(cells),
        enough=tuple(_recommendations(groups, digits, metric, split)),
        rounds=_rounds([row for row in rows if row.method == "rounds"], split),
    )


def _name_parts(row: Row, names: Iterable[str]) -> list[str]:
    """What tells its variant from others, each setting once; none if nothing does."""
    own = [name for name in dict.fromkeys(names) if row.method == "lora" or name != "rank"]
    parts = [f"{spelled(name)} {_text(row.all_settings.get(name))}" for name in own]
    return [FULL, *parts] if row.method == "full" else parts


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _variant(name: str, rows: Sequence[Row], settings: Sequence[str], split: str, others: Sequence[Row]) -> Variant:
    """Args: settings: the one to order by, and all that are varied."""
    is_adapter = rows[0].method == "lora"
    return Variant(
        name=name,
        by=_text(rows[0].all_settings.get(settings[0])) if is_adapter else None,
        series=", ".join(_name_parts(rows[0], settings)[1:]),
        parameters=max(row.parameters for row in rows),
        jobs=len(rows),
        kept=sum(row.scale is not None for row in rows),
        verdicts=dict(Counter(row.verdict or "not kept" for row in rows)),
        after=_means(rows, [row.after[split] for row in rows]),
        threshold=_means(rows, [row.threshold[split] for row in rows]),
        worst=estimate_of((row.seed, max(_point_changes(row, split, but=row.digit))) for row in rows),
        references=tuple(_references(rows, others, split)) if is_adapter else (),
    )


def _references(adapters: Sequence[Row], others: Sequence[Row], split: str) -> Iterator[BaselineMean]:
    """Those of the adapters of one variant. `others` are all rows, among them those that belong to these adapters."""
    found: dict[str, Sequence[Counts]] = {}
    if split == "test":
        found[ON_TEST] = [row.threshold_on_test for row in adapters]
    if "val" in adapters[0].after:
        found[ON_VAL] = [row.threshold[split] for row in adapters]
    for method, (name, shifted_name) in CONTROL_NAMES.items():
        controls = _partners(adapters, others, method)
        found[name] = [control.after[split] for control in controls]
        if split == "test":  # with the threshold with which it misses no more images on `val` than the adapter
            found[shifted_name] = [
                control.shifted[min(row.after["val"].missed, len(control.shifted) - 1)]
                for row, control in zip(adapters, controls, strict=False)
                if control.shifted
            ]
    found[FULL] = [row.after[split] for row in _partners(adapters, others, "full")]
    for name, counts in found.items():
        if counts:
            more = [(row.seed, one.errors - row.after[split].errors) for row, one in zip(adapters, counts, strict=True)]
            yield BaselineMean(name=name, jobs=len(adapters), counts=_means(adapters, counts), more=estimate_of(more))


def _partners(adapters: Sequence[Row], others: Sequence[Row], method: str) -> list[Row]:
    """For each adapter the row by `method` of its base, seed and settings; none if one is missing."""

    free = {"name", "rank"} if method == "full" else {"name"}  # all weights belong to every rank

    def case(row: Row) -> tuple[str, int, str]:
        return row.base, row.seed, row.settings.model_dump_json(exclude=free)

    there = {case(row): row for row in others if row.method == method}
    found = [there[case(row)] for row in adapters if case(row) in there]
    return found if len(found) == len(adapters) else []


def _rounds(rows: Sequence[Row], split: str) -> RoundsSummary | None:
    if not rows:
        return None
    rounds = []
    for number in range(max(len(row.rounds) for row in rows)):
        began = [(row.seed, row.rounds[number]) for row in rows if number < len(row.rounds)]
        kept = [(seed, one) for seed, one in began if one.scale is not None]
        if not kept:
            break
        before, after = [one.before for _, one in kept], [one.after for _, one in kept]
        mean = RoundMean(
            jobs=len(began),
            kept=len(kept),
            missed=(statistics.mean(one.missed for one in before), statistics.mean(one.missed for one in after)),
            errors=(statistics.mean(one.errors for one in before), statistics.mean(one.errors for one in after)),
            change=estimate_of((seed, one.after.errors - one.before.errors) for seed, one in kept),
            fell=sum(one.after.errors < one.before.errors for _, one in kept),
        )
        rounds.append(mean)
    worst = [(row.seed, max(_point_changes(row, split))) for row in rows]
    return RoundsSummary(
        rounds=tuple(rounds),
        errors=estimate_of((row.seed, row.after[split].errors) for row in rows),
        worst=estimate_of(worst),
        most=max(points for _, points in worst),
    )


def _point_changes(row: Row, split: str, but: int | None = None) -> list[float]:
    """By how many points the error rate of each digit changed, `but` for one."""
    before, after = row.before[split], row.after[split]
    changes = zip(after.wrong, before.wrong, after.images, strict=True)
    return [100 * (now - then) / max(1, images) for digit, (now, then, images) in enumerate(changes) if digit != but]


def _recommendations(
    groups: Mapping[str, Sequence[Row]], digits: Sequence[int], metric: Metric, split: str
) -> Iterator[Recommendation]:
    """For every digit, whose p are corrected for being asked together (Holm), then for all together."""
    found = {digit: _compare(groups, digit, metric, split) for digit in (*digits, None)}
    for name in (BASE, *groups):
        asked = {digit: p for digit in digits if (p := found[digit].ps.get(name)) is not None}
        for one_digit, corrected in zip(asked, holm(list(asked.values())), strict=True):
            found[one_digit].ps[name] = corrected
    for digit, one in found.items():
        enough = None
        if any(one.ps[name] is not None for name in one.order if name != one.best):
            enough = next(name for name in one.order if (p := one.ps[name]) is not None and p > LEVEL)
        chosen, p_of_base = enough or one.best, one.ps[BASE]
        others = [groups[name][0].parameters for name in one.order if name != chosen]
        smaller = one.order[: one.order.index(enough)] if enough else []
        next_smaller = smaller[-1] if smaller else None
        yield Recommendation(
            digit=digit,
            among=len(one.order),
            best=one.best,
            enough=enough,
            smallest=all(parameters > groups[chosen][0].parameters for parameters in others),
            helps=None if p_of_base is None else p_of_base <= LEVEL,
            next_smaller=next_smaller,
            worse=one.worse[next_smaller] if next_smaller else None,
            p=one.ps[next_smaller] if next_smaller else None,
        )


@dataclass(frozen=True)
class _Comparison:
    """The variants for a digit, by rising size: by how much each, and the base, is worse than the best; and p."""

    best: str
    order: list[str]
    worse: dict[str, float | None]
    ps: dict[str, float | None]


def _compare(groups: Mapping[str, Sequence[Row]], digit: int | None, metric: Metric, split: str) -> _Comparison:
    rows = {name: [row for row in group if digit in (None, row.digit)] for name, group in groups.items()}
    seeds = {name: _by_seed((row.seed, row.after[split].of(metric)) for row in own) for name, own in rows.items()}
    mean = {name: statistics.mean(values.values()) for name, values in seeds.items() if values}
    best = min(mean, key=lambda name: mean[name])
    order = sorted(mean, key=lambda name: (groups[name][0].parameters, mean[name]))  # of as many numbers, the better
    seeds[BASE] = _by_seed((row.seed, row.before[split].of(metric)) for row in rows[best])
    tests = {name: _by_how_much(seeds[name], seeds[best]) for name in (BASE, *order)}  # p of the best itself is 1
    worse, ps = ({name: test[i] for name, test in tests.items()} for i in (0, 1))
    return _Comparison(best, order, worse, ps)


def estimate_of(values: Iterable[tuple[int, float]]) -> Estimate:
    """Of values with their seeds; each seed counts as one mean."""
    means = list(_by_seed(values).values())
    return Estimate(mean=statistics.mean(means), half=mean_interval(means), seeds=len(means))


def _means(rows: Sequence[Row], counts: Sequence[Counts]) -> dict[Metric, Estimate]:
    pairs = list(zip(rows, counts, strict=True))
    return {metric: estimate_of((row.seed, one.of(metric)) for row, one in pairs) for metric in METRIC_NAMES}


def _by_seed(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """The mean of each seed."""
    found: dict[int, list[float]] = {}
    for seed, value in values:
        found.setdefault(seed, []).append(value)
    return {seed: statistics.mean(own) for seed, own in found.items()}


def _by_how_much(one: Mapping[int, float], best: Mapping[int, float]) -> tuple[float | None, float | None]:
    """By how much it is worse, on the seeds that both have, and one-sided p of that; None where there is no telling."""
    differences = [one[seed] - best[seed] for seed in one if seed in best]
    return (statistics.mean(differences), paired_t_test(differences)) if len(differences) > 1 else (None, None)


def capital(text: str) -> str:
    """With a capital at its beginning, as a sentence has."""
    return text[:1].upper() + text[1:]


def spelled(setting: str) -> str:
    """Its name as words: `pretrain epochs`."""
    return setting.replace("_", " ").replace(".", " ")
