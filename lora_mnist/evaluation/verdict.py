"""Is it a repair? One kind, the numbers it rests on, and the sentences that say so.

The verdict rests on `test` and says no more than its images allow. McNemar's exact test on the same images judges every
change, at `LEVEL`. The ten digits are asked together, so their p are corrected (Holm); the target's is its missed
images. *Before* is the network that the adapter was trained on.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from lora_mnist.errors import listed
from lora_mnist.evaluation.results import Analysis, Comparison, Counts, Pair, PairedControl, PerDigit, ShiftedLogit
from lora_mnist.evaluation.significance import LEVEL, format_p, holm, mcnemar
from lora_mnist.settings.config import Count, Digit, Document, Many

Outcome = Literal["good", "bad", "open"]
Kind = Literal[
    "repair",
    "side effect",
    "forgot others",
    "answers more often",
    "shifted threshold",
    "too few for threshold",
    "too few images",
    "not repaired",
]

TITLES: dict[Kind, str] = {
    "repair": "A repair",
    "side effect": "A repair with a side effect",
    "forgot others": "Fixed one digit and forgot others",
    "answers more often": "Not a repair: it only answers {digit} more often",
    "shifted threshold": "Not a repair: raising the {digit}'s logit does as well",
    "too few for threshold": "Too few images to tell it from a shifted threshold",
    "too few images": "Too few images to tell",
    "not repaired": "Not repaired",
}


class McNemarResult(Pair):
    """Images fixed and broken, and McNemar's exact p of that."""

    p: float  # of one digit of ten, corrected

    @property
    def change(self) -> int:
        """How many more are wrong than before."""
        return self.broken - self.fixed

    @property
    def is_more(self) -> bool:
        """Whether more are wrong, by more than chance."""
        return self.change > 0 and self.p <= LEVEL

    @property
    def is_fewer(self) -> bool:
        """Whether fewer are wrong, by more than chance."""
        return self.change < 0 and self.p <= LEVEL


class Baseline(Document):
    """A network with one number added to its logit of the digit, which misses no more images than the adapter."""

    counts: Counts
    pair: McNemarResult  # of all images; fixed: only the adapter gets them right, broken: only this network


class Facts(Document):
    """What a verdict rests on."""

    digit: Digit
    before: Counts
    after: Counts
    missed: McNemarResult  # one of `digits`
    false_alarms: McNemarResult
    both: McNemarResult  # missed and false alarms together
    errors: McNemarResult
    digits: Many[McNemarResult]  # all ten
    threshold: Baseline  # the network before, shifted
    control: Baseline | None  # the control, shifted

    @property
    def others(self) -> list[int]:
        """All digits but the target."""
        return [digit for digit in range(10) if digit != self.digit]

    @property
    def worse(self) -> list[int]:
        """The other digits with more errors than chance allows, the largest side effect first."""
        return worse_digits(self.digits, self.others)


class Verdict(Document):
    """What became of the target digit and of the others, and whether a shifted threshold would have done as well.

    Attributes:
        kind: the first of these that holds. `not repaired`: missed are not fewer; or maybe by chance, while all errors
            are more or another digit is worse. `too few images`: missed are fewer, maybe by chance. `forgot others`:
            all errors are more. `shifted threshold`: the smallest shift of the digit's logit that misses no more makes
            no more errors. `too few for threshold`: it makes more, maybe by chance. `answers more often`: missed and
            false alarms together are not fewer, and false alarms are more. `too few images`: they are not fewer.
            `side effect`: another digit is worse. `repair`: all else. The control changes nothing.
        words: two or three sentences.
    """

    kind: Kind
    words: str
    facts: Facts

    @property
    def title(self) -> str:
        """The kind in words."""
        title = TITLES[self.kind].format(digit=self.facts.digit)
        if self.kind != "side effect":
            return title
        many = len(self.facts.worse) > 1
        return f"{title}{'s' * many}: {_more_errors_of(self.facts.worse, self.facts.digits)}"

    @property
    def headline(self) -> str:
        """The first sentence of `words`: the kind and the three counts."""
        facts = self.facts
        maybe = self.kind == "too few images"
        missed = _more(facts.missed.change, f"missed {facts.digit}")
        if maybe and not facts.missed.is_fewer:
            missed += f" ({format_p(facts.missed.p)}: may be chance)"
        alarms, errors = _more(facts.false_alarms.change, "false alarm"), _more(facts.errors.change, "error")
        if maybe and facts.missed.is_fewer:
            alarms += f" (of both, {_more(facts.both.change, 'error')}, {format_p(facts.both.p)}: may be chance)"
        begin = f"{self.title}. {missed.capitalize()}" if ":" in self.title else f"{self.title}: {missed}"
        return f"{begin}, {alarms}, {errors} in all."

    @property
    def side_effects(self) -> str:
        """The second: what happened to the other nine digits."""
        return side_effects(self.facts.digits, self.facts.others)

    @property
    def compared(self) -> str:
        """The rest: what a shifted threshold, and the control with one, would have done instead."""
        facts = self.facts
        if facts.missed.change >= 0:
            return ""
        raised = f"Without any training, raising the {facts.digit}'s logit"
        sentence = _beside(facts, facts.threshold, raised)
        if not facts.control:
            return sentence
        beside = _beside(facts, facts.control, "The control with a threshold shifted")
        as_well = not facts.control.pair.is_fewer
        return f"{sentence} {beside}{' So uniform sampling with a threshold does as well.' * as_well}"

    @property
    def is_repair(self) -> bool:
        """With a side effect or without."""
        return self.kind in ("repair", "side effect")

    @property
    def outcome(self) -> Outcome:
        """Whether that is good news, bad news, or neither."""
        if self.kind == "repair":
            return "good"
        return "bad" if self.kind in ("side effect", "forgot others", "not repaired") else "open"


def verdict_of(analysis: Analysis, digit: int) -> Verdict:
    """The verdict on a repair of `digit`."""
    compared, control = analysis.splits["test"], analysis.control and analysis.control.threshold_on_test

    def baseline(shifted: ShiftedLogit) -> Baseline:
        return Baseline(counts=shifted.splits["test"], pair=mcnemar_test(shifted.pairs["test"]))

    digits = changes_by_digit(compared)
    facts = Facts(
        digit=digit,
        before=compared.before,
        after=compared.after,
        missed=digits[digit],
        false_alarms=mcnemar_test(compared.pairs.false_alarms),
        both=mcnemar_test(compared.pairs.missed, compared.pairs.false_alarms),
        errors=mcnemar_test(compared.pairs.errors),
        digits=digits,
        threshold=baseline(analysis.threshold_on_test),
        control=baseline(control) if control else None,
    )
    verdict = Verdict(kind=_kind(facts), words="", facts=facts)
    sentences = [verdict.headline, verdict.side_effects, verdict.compared]
    return verdict.model_copy(update={"words": " ".join(filter(None, sentences))})


def mcnemar_test(*pairs: Pair) -> McNemarResult:
    """The pairs together, with their p."""
    fixed, broken = sum(pair.fixed for pair in pairs), sum(pair.broken for pair in pairs)
    return McNemarResult(fixed=fixed, broken=broken, p=mcnemar(fixed, broken))


def changes_by_digit(compared: "Comparison | LessonErrors") -> tuple[McNemarResult, ...]:
    """What changed of each of the ten digits, with their p corrected for being asked together."""
    pairs = list(zip(compared.fixed, compared.broken, strict=True))
    corrected = holm([mcnemar(fixed, broken) for fixed, broken in pairs])
    return tuple(
        McNemarResult(fixed=fixed, broken=broken, p=p) for (fixed, broken), p in zip(pairs, corrected, strict=True)
    )


def worse_digits(digits: Sequence[McNemarResult], among: Sequence[int]) -> list[int]:
    """Those of `among` with more errors than chance allows, the largest rise first."""
    return sorted((digit for digit in among if digits[digit].is_more), key=lambda digit: -digits[digit].change)


def _kind(facts: Facts) -> Kind:
    if facts.missed.change >= 0:
        return "not repaired"
    if not facts.missed.is_fewer:
        return "not repaired" if facts.errors.is_more or facts.worse else "too few images"
    if facts.errors.is_more:
        return "forgot others"
    if facts.threshold.counts.errors <= facts.after.errors:
        return "shifted threshold"
    if not facts.threshold.pair.is_fewer:
        return "too few for threshold"
    if not facts.both.is_fewer:
        return "answers more often" if facts.false_alarms.is_more else "too few images"
    return "side effect" if facts.worse else "repair"


def side_effects(digits: Sequence[McNemarResult], among: Sequence[int] = range(10)) -> str:
    """One sentence on how the errors of some of the ten digits changed; of all of them, as after several repairs."""
    other = "other " if len(among) < 10 else ""
    if worse := worse_digits(digits, among):
        p = format_p(max(digits[one].p for one in worse))
        return f"{'Digit ' * (len(worse) == 1)}{_more_errors_of(worse, digits)}, significant ({p})."
    largest = max(among, key=lambda digit: digits[digit].change)
    change, p = digits[largest].change, format_p(digits[largest].p)
    if change < 0:
        return f"Every {other}digit has fewer errors, too."
    if change == 0:
        return f"No {other}digit has more errors."
    return (
        f"Largest side effect: digit {largest}, +{change:,} error{'' if change == 1 else 's'}, not significant ({p})."
    )


def _beside(facts: Facts, other: Baseline, shifting: str) -> str:
    """How many errors the adapter makes, and a baseline with which no more of the digit's images are missed."""
    missed, errors = other.counts.missed, other.counts.errors
    until = f"as few {facts.digit}s are missed" if missed == facts.after.missed else f"only {missed:,} are missed"
    makes = f"makes {errors:,} error{'' if errors == 1 else 's'}; the adapter makes {facts.after.errors:,}"
    return f"{shifting} until {until} {makes} ({format_p(other.pair.p)})."


def _more_errors_of(worse: Sequence[int], digits: Sequence[McNemarResult]) -> str:
    """`4 has 23 more errors`, `4 has 23 and 7 has 12 more errors`."""
    changes = [f"{digits[one].change:,}" for one in worse[:-1]] + [_more(digits[worse[-1]].change, "error")]
    return listed([f"{digit} has {change}" for digit, change in zip(worse, changes, strict=True)])


def _more(change: int, noun: str) -> str:
    if not change:
        return f"as many {noun}s"
    return f"{abs(change):,} {'more' if change > 0 else 'fewer'} {noun}{'' if abs(change) == 1 else 's'}"


def control_sentence(pair: PairedControl, images: str) -> str:
    """One sentence on an adapter and its control: who alone is right about how many of the same images."""
    return (
        f"Of {images}, {pair.only_adapter_right} are right with the adapter only, {pair.only_control_right}"
        f" with the control only (McNemar, exact: {format_p(pair.p)})."
    )


LessonKind = Literal["learnt", "side effect", "too few drawings", "known already", "not learnt", "no scale"]

LESSON_TITLES: dict[LessonKind, str] = {
    "learnt": "Learnt",
    "side effect": "Learnt, with a side effect",
    "too few drawings": "Too few drawings to tell",
    "known already": "All drawings right already",
    "not learnt": "Not learnt",
    "no scale": "Not kept: the guard allows no scale",
}


class UnseenDrawings(Pair):
    """Drawings that are right before and after; each after with an adapter that has not seen it (cross-validation)."""

    images: Count
    before: Count
    after: Count
    folds: Count  # parts, each tested with an adapter that was trained on all the others
    steps: Count  # of the training of each of those


class LessonErrors(Document):
    """Wrong images of `val` before and after a lesson; `fixed` and `broken` of every digit."""

    images: Count
    before: Count
    after: Count
    fixed: PerDigit
    broken: PerDigit


class LessonVerdict(Document):
    """The verdict on a `LessonResult`.

    Attributes:
        kind: `learnt`: more of the drawings are right, by more than chance. `side effect`: but on `val` a digit, or
            all errors together, are worse. `too few drawings`: that may be chance, or so few are wrong before that
            nothing can be told. `known already`: the base has all of them right. `not learnt`: no more are right. `no
            scale`: none met the guard.
    """

    kind: LessonKind
    words: str  # one sentence
    side_effects: str  # another, on the digits of val; empty without val
    worse: Many[Digit]

    @property
    def outcome(self) -> Outcome:
        """Whether that is good news, bad news, or neither."""
        if self.kind == "learnt":
            return "good"
        return "bad" if self.worse or self.kind in ("side effect", "not learnt", "no scale") else "open"


class LessonResult(Document):
    """What teaching a network some drawings did."""

    drawings: PerDigit
    before: Count  # drawings that are right with the base
    after: Count  # and with the adapter, which has seen them
    unseen: UnseenDrawings | None  # None if there are too few drawings to set some aside
    val: LessonErrors | None
    scale: float | None  # None if the guard allows none; then all numbers are of the adapter as trained

    @model_validator(mode="after")
    def _adds_up(self) -> "LessonResult":
        if not max(self.before, self.after) <= self.count or not self.count:
            raise ValueError("must count no more right drawings than there are, and at least one drawing")
        one = self.unseen
        counted = one and (one.images, one.before, one.after)
        if one and counted != (self.count, self.before, self.before + one.fixed - one.broken):
            raise ValueError("must test every drawing once")
        return self

    @property
    def count(self) -> int:
        """Drawings of all digits."""
        return sum(self.drawings)

    @property
    def verdict(self) -> LessonVerdict:
        """Whether it learnt them, and at what side effects."""
        one, digits = self.unseen, changes_by_digit(self.val) if self.val else ()
        worse = tuple(digit for digit, change in enumerate(digits) if change.is_more)
        kind = self._kind(bool(worse) or mcnemar_test(*digits).is_more)
        if one is None:
            counted = f"{self.before} → {self.after} of {self.count} drawings right, all seen in training"
        else:
            p = f" ({format_p(mcnemar_test(one).p)})" if one.fixed or one.broken else ""
            counted = f"{one.before} → {one.after} of {one.images} drawings right, each tested unseen{p}"
        return LessonVerdict(
            kind=kind,
            words=f"{LESSON_TITLES[kind]}: {counted}.",
            side_effects=side_effects(digits) if digits else "",
            worse=worse,
        )

    def _kind(self, has_side_effect: bool) -> LessonKind:
        one = self.unseen
        if self.scale is None:
            return "no scale"
        if self.before == self.count and (not one or one.after == self.count):
            return "known already"
        if one is None:
            return "too few drawings"
        found = mcnemar_test(one)
        if found.is_fewer:
            return "side effect" if has_side_effect else "learnt"
        could_be_told = mcnemar(one.images - one.before, 0) <= LEVEL  # had every wrong one become right
        not_learnt = found.is_more or (could_be_told and found.change >= 0)
        return "not learnt" if not_learnt else "too few drawings"
