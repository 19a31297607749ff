"""Is it a repair? One kind, the numbers it rests on, and the sentences that say so.

The verdict rests on one split, normally `test`, and says no more than its images allow. McNemar's exact test on the
same images judges every change: false alarms, missed and false alarms together, and all errors at `LEVEL`; each of the
ten digits, one of which is the target's missed images, at `DIGIT_LEVEL`.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from lora_mnist.evaluation.results import Analysis, Comparison, Counts, Pair, PairedControl, PerDigit, ShiftedLogit
from lora_mnist.evaluation.significance import DIGIT_LEVEL, LEVEL, format_p, mcnemar
from lora_mnist.settings.config import Count, Digit, Document, Many

Outcome = Literal["good", "bad", "open"]
Kind = Literal[
    "repair",
    "side effect",
    "forgot others",
    "answers more often",
    "shifted threshold",
    "shifted control",
    "too few images",
    "not repaired",
]

TITLES: dict[Kind, str] = {
    "repair": "A repair",
    "side effect": "A repair with a side effect",
    "forgot others": "Fixed one digit and forgot others",
    "answers more often": "Not a repair: it only answers {digit} more often",
    "shifted threshold": "Not a repair: raising the {digit}'s logit does as well",
    "shifted control": "Not a repair of its own: the control with a shifted threshold does as well",
    "too few images": "Too few images to tell",
    "not repaired": "Not repaired",
}


class Tested(Pair):
    """Images fixed and broken, and McNemar's exact p of that."""

    p: float

    @property
    def change(self) -> int:
        """How many more are wrong than before."""
        return self.broken - self.fixed

    def is_up(self, level: float) -> bool:
        """Whether more are wrong by more than chance."""
        return self.change > 0 and self.p <= level

    def is_down(self, level: float) -> bool:
        """Whether fewer are wrong by more than chance."""
        return self.change < 0 and self.p <= level


class Baseline(Document):
    """A network with one number added to its logit of the digit, which misses about as few images."""

    counts: Counts
    pair: Tested  # of all images; fixed: only the adapter gets them right, broken: only this network

    def is_worse_than(self, after: Counts) -> bool:
        """Whether it makes more errors, by more than chance."""
        return after.errors < self.counts.errors and self.pair.p <= LEVEL


class Facts(Document):
    """What a verdict rests on."""

    digit: Digit
    before: Counts
    after: Counts
    missed: Tested
    false_alarms: Tested
    both: Tested  # missed and false alarms together
    errors: Tested
    digits: Many[Tested]  # all ten
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

    @property
    def largest_side_effect(self) -> int:
        """The other digit whose errors rose most, or fell least."""
        return max(self.others, key=lambda digit: self.digits[digit].change)


class Verdict(Document):
    """What became of the target digit and of the others, and whether a shifted threshold would have done as well.

    Attributes:
        kind: `repair`: fewer missed; missed and false alarms together fewer; false alarms, all errors and every other
            digit's errors not more; a shifted threshold does worse; all beyond chance. `side effect`: but other digits
            are worse. `forgot others`: but there are more errors in all. `answers more often`: but false alarms are
            more, or missed and false alarms together not fewer. `shifted threshold`, `shifted control`: but one number
            on the logit of the base, or of the control, does as well. `too few images`: missed are fewer, maybe by
            chance. `not repaired`: they are not fewer, or maybe by chance while others are worse.
        words: two or three sentences.
    """

    kind: Kind
    words: str
    facts: Facts

    @property
    def title(self) -> str:
        """The kind in words."""
        return TITLES[self.kind].format(digit=self.facts.digit)

    @property
    def headline(self) -> str:
        """The first sentence of `words`: the kind and the three counts."""
        facts = self.facts
        chance = f" ({format_p(facts.missed.p)}: may be chance)" if self.kind == "too few images" else ""
        missed = _more(facts.missed.change, f"missed {facts.digit}") + chance
        begin = f"{self.title}. {missed.capitalize()}" if ":" in self.title else f"{self.title}: {missed}"
        alarms, errors = _more(facts.false_alarms.change, "false alarm"), _more(facts.errors.change, "error")
        return f"{begin}, {alarms}, {errors} in all."

    @property
    def side_effects(self) -> str:
        """The second: what happened to the other nine digits."""
        return _side_effects(self.facts.digits, self.facts.others)

    @property
    def compared(self) -> str:
        """The rest: what a shifted threshold, and the control with one, would have done instead."""
        facts = self.facts
        if facts.missed.change >= 0:
            return ""
        sentence = _than(facts.after, facts.threshold, f"Without any training, raising the {facts.digit}'s logit")
        if not facts.control:
            return sentence
        return f"{sentence} {_than(facts.after, facts.control, 'The control with a shifted threshold')}"

    @property
    def outcome(self) -> Outcome:
        """Whether that is good news, bad news, or neither."""
        if self.kind == "repair":
            return "good"
        return "bad" if self.kind in ("side effect", "forgot others", "not repaired") else "open"


def verdict_of(analysis: Analysis, digit: int, split: Literal["val", "test"] = "test") -> Verdict:
    """The verdict on a repair of `digit`, from what was found on one split."""
    compared, control = analysis.splits[split], analysis.control and analysis.control.threshold

    def baseline(shifted: ShiftedLogit) -> Baseline:
        return Baseline(counts=shifted.splits[split], pair=tested(shifted.pairs[split]))

    facts = Facts(
        digit=digit,
        before=compared.before,
        after=compared.after,
        missed=tested(compared.pairs.missed),
        false_alarms=tested(compared.pairs.false_alarms),
        both=tested(compared.pairs.missed, compared.pairs.false_alarms),
        errors=tested(compared.pairs.errors),
        digits=tuple(map(tested, compared.by_digit)),
        threshold=baseline(analysis.threshold),
        control=baseline(control) if control else None,
    )
    verdict = Verdict(kind=_kind(facts), words="", facts=facts)
    sentences = [verdict.headline, verdict.side_effects, verdict.compared]
    return verdict.model_copy(update={"words": " ".join(filter(None, sentences))})


def tested(*pairs: Pair) -> Tested:
    """The pairs together, with their p."""
    fixed, broken = sum(pair.fixed for pair in pairs), sum(pair.broken for pair in pairs)
    return Tested(fixed=fixed, broken=broken, p=mcnemar(fixed, broken))


def worse_digits(digits: Sequence[Tested], among: Sequence[int]) -> list[int]:
    """Those of `among` with more errors than chance allows, the largest rise first."""
    up = [digit for digit in among if digits[digit].is_up(DIGIT_LEVEL)]
    return sorted(up, key=lambda digit: -digits[digit].change)


def _kind(facts: Facts) -> Kind:
    more_errors = facts.errors.is_up(LEVEL)
    if facts.missed.change >= 0:
        return "not repaired"
    if not facts.missed.is_down(DIGIT_LEVEL):
        return "not repaired" if more_errors or facts.worse else "too few images"
    if more_errors:
        return "forgot others"
    if facts.worse:
        return "side effect"
    if facts.false_alarms.is_up(LEVEL) or not facts.both.is_down(LEVEL):
        return "answers more often"
    if not facts.threshold.is_worse_than(facts.after):
        return "shifted threshold"
    if facts.control and not facts.control.is_worse_than(facts.after):
        return "shifted control"
    return "repair"


def side_effects(compared: "Comparison | OnVal") -> str:
    """One sentence on how the errors of any of the ten digits changed, as after several repairs."""
    return _side_effects(tuple(map(tested, compared.by_digit)), range(10))


def _side_effects(digits: Sequence[Tested], among: Sequence[int]) -> str:
    other = "other " if len(among) < 10 else ""
    if worse := worse_digits(digits, among):
        p = format_p(max(digits[one].p for one in worse))
        if len(worse) == 1:
            return f"Digit {worse[0]} has {_more(digits[worse[0]].change, 'error')}, significant ({p})."
        return f"Digits {listed([f'{one} (+{digits[one].change:,})' for one in worse])} have more errors ({p})."
    largest = max(among, key=lambda digit: digits[digit].change)
    change, p = digits[largest].change, format_p(digits[largest].p)
    if change < 0:
        return f"Every {other}digit has fewer errors, too."
    if change == 0:
        return f"No {other}digit has more errors."
    return (
        f"Largest side effect: digit {largest}, +{change:,} error{'' if change == 1 else 's'}, not significant ({p})."
    )


def _than(after: Counts, other: Baseline, name: str) -> str:
    ours, theirs = after.errors, other.counts.errors
    same = "as many" if other.counts.missed == after.missed else f"{other.counts.missed:,}"
    if ours == theirs:
        return f"{name} misses {same}, with just as many errors."
    share = f"{100 * abs(ours / theirs - 1):.0f} %" if theirs else f"{ours:,}"
    change = f"{share} {'fewer' if ours < theirs else 'more'}"
    return f"{name} misses {same}; the adapter makes {change} errors ({format_p(other.pair.p)})."


def listed(names: Sequence[object]) -> str:
    """As in a sentence: 1, 2 and 3."""
    *first, last = [*map(str, names)] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _more(change: int, noun: str) -> str:
    if not change:
        return f"as many {noun}s"
    return f"{abs(change):,} {'more' if change > 0 else 'fewer'} {noun}{'' if abs(change) == 1 else 's'}"


def paired(pair: PairedControl, images: str) -> str:
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
    "known already": "Nothing to learn",
    "not learnt": "Not learnt",
    "no scale": "Not kept: the guard allows no scale",
}


class Unseen(Pair):
    """Drawings that are right before and after; each after with an adapter that has not seen it (cross-validation)."""

    images: Count
    before: Count
    after: Count
    folds: Count  # parts, each tested with an adapter that was trained on all the others
    steps: Count  # of the training of each of those


class OnVal(Document):
    """Wrong images of `val` before and after; `fixed` and `broken` of every digit."""

    images: Count
    before: Count
    after: Count
    fixed: PerDigit
    broken: PerDigit

    @property
    def by_digit(self) -> list[Pair]:
        """Images fixed and broken of every digit."""
        return [Pair(fixed=fixed, broken=broken) for fixed, broken in zip(self.fixed, self.broken, strict=True)]

    @property
    def change(self) -> list[int]:
        """How many more images of every digit are wrong."""
        return [pair.broken - pair.fixed for pair in self.by_digit]


class LessonVerdict(Document):
    """The verdict on a `LessonResult`.

    Attributes:
        kind: `learnt`: more of the drawings are right, by more than chance. `side effect`: but a digit of `val` is
            worse. `too few drawings`: that may be chance, or so few are wrong before that nothing can be told. `known
            already`: the base has all of them right. `not learnt`: no more are right. `no scale`: none met the guard.
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
        return "bad" if self.worse or self.kind in ("not learnt", "no scale") else "open"


class LessonResult(Document):
    """What teaching a network some drawings did."""

    drawings: PerDigit
    before: Count  # drawings that are right with the base
    after: Count  # and with the adapter, which has seen them
    unseen: Unseen | None  # None if there are too few drawings to set some aside
    val: OnVal | None
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
        digits = [tested(pair) for pair in self.val.by_digit] if self.val else []
        worse = sorted(worse_digits(digits, range(len(digits))))
        kind, one = self._kind(bool(worse)), self.unseen
        if one is None:
            counted = f"{self.before} → {self.after} of {self.count} drawings right, all seen in training"
        else:
            p = f" ({format_p(tested(one).p)})" if one.fixed or one.broken else ""
            counted = f"{one.before} → {one.after} of {one.images} drawings right, each tested unseen{p}"
        return LessonVerdict(
            kind=kind,
            words=f"{LESSON_TITLES[kind]}: {counted}.",
            side_effects=side_effects(self.val) if self.val else "",
            worse=tuple(worse),
        )

    def _kind(self, has_side_effect: bool) -> LessonKind:
        one = self.unseen
        if self.scale is None:
            return "no scale"
        if self.before == self.count and (not one or one.after == self.count):
            return "known already"
        if one is None:
            return "too few drawings"
        found = tested(one)
        if found.is_down(LEVEL):
            return "side effect" if has_side_effect else "learnt"
        could_be_told = mcnemar(one.images - one.before, 0) <= LEVEL  # had every wrong one become right
        not_learnt = found.is_up(LEVEL) or (could_be_told and found.change >= 0)
        return "not learnt" if not_learnt else "too few drawings"
