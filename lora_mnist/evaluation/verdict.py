"""Is it a repair? One kind, the numbers it rests on, and the sentences that say so.

The verdict rests on one split, normally `test`, and says no more than its images allow. McNemar's exact test on the
same images judges every change: false alarms, missed and false alarms together, and all errors at `LEVEL`; each of the
ten digits, one of which is the target's missed images, at `DIGIT_LEVEL`.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from lora_mnist.evaluation.results import Analysis, Comparison, Counts, Pair, PairedControl, PerDigit, ShiftedLogit
from lora_mnist.evaluation.significance import DIGIT_LEVEL, LEVEL, mcnemar
from lora_mnist.settings.document import Count, Digit, Document, Many

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
    """A network with one number added to its logit of the digit, which misses about as few images.

    Attributes:
        pair: all errors: `fixed` only the adapter gets right, `broken` only the other.
    """

    counts: Counts
    pair: Tested

    def is_worse_than(self, after: Counts) -> bool:
        """Whether it makes more errors, by more than chance."""
        return after.errors < self.counts.errors and self.pair.p <= LEVEL


class Facts(Document):
    """What a verdict rests on.

    Attributes:
        both: missed and false alarms together.
        digits: all ten.
        threshold: the network before with a shifted threshold; `control`: the control with one, if it was trained.
    """

    digit: Digit
    before: Counts
    after: Counts
    missed: Tested
    false_alarms: Tested
    both: Tested
    errors: Tested
    digits: Many[Tested]
    threshold: Baseline
    control: Baseline | None

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
        return _headline(self.kind, self.facts)

    @property
    def side_effects(self) -> str:
        """The second: what happened to the other nine digits."""
        return _side_effects(self.facts.digits, self.facts.others)

    @property
    def compared(self) -> str:
        """The rest: what a shifted threshold, and the control with one, would have done instead."""
        return _compared(self.facts)

    @property
    def outcome(self) -> Literal["good", "bad", "open"]:
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
    kind = _kind(facts)
    sentences = [_headline(kind, facts), _side_effects(facts.digits, facts.others), _compared(facts)]
    return Verdict(kind=kind, words=" ".join(filter(None, sentences)), facts=facts)


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


# Sentences ------------------------------------------------------------------------------------------------------------


def _headline(kind: Kind, facts: Facts) -> str:
    chance = f" ({p_in_words(facts.missed.p)}: may be chance)" if kind == "too few images" else ""
    missed = _more(facts.missed.change, f"missed {facts.digit}") + chance
    alarms, errors = _more(facts.false_alarms.change, "false alarm"), _more(facts.errors.change, "error")
    title = TITLES[kind].format(digit=facts.digit)
    # a title with a colon of its own is a sentence
    return f"{title}{'.' if ':' in title else ':'} {_capital(missed, ':' in title)}, {alarms}, {errors} in all."


def side_effects(comparison: Comparison) -> str:
    """One sentence on how the errors of any of the ten digits changed, as after several repairs."""
    return side_effects_of(comparison.by_digit)


def side_effects_of(by_digit: Sequence[Pair]) -> str:
    """`side_effects` of the images fixed and broken of each of the ten digits."""
    return _side_effects(tuple(map(tested, by_digit)), range(10))


def _side_effects(digits: Sequence[Tested], among: Sequence[int]) -> str:
    every = "Every other digit" if len(among) < 10 else "Every digit"
    if worse := worse_digits(digits, among):
        p = p_in_words(max(digits[one].p for one in worse))
        if len(worse) == 1:
            return f"Digit {worse[0]} has {_more(digits[worse[0]].change, 'error')}, significant ({p})."
        return f"Digits {listed([f'{one} (+{digits[one].change:,})' for one in worse])} have more errors ({p})."
    largest = max(among, key=lambda digit: digits[digit].change)
    change = digits[largest].change
    if change < 0:
        return f"{every} has fewer errors, too."
    if change == 0:
        return "No other digit has more errors." if len(among) < 10 else "No digit has more errors."
    plural, chance = "" if change == 1 else "s", p_in_words(digits[largest].p)
    return f"Largest side effect: digit {largest}, +{change:,} error{plural}, not significant ({chance})."


def _compared(facts: Facts) -> str:
    """With a shifted threshold, and with the control with one where there is a control."""
    if facts.missed.change >= 0:
        return ""
    without = f"Without any training, raising the {facts.digit}'s logit"
    sentence = _than(facts, facts.threshold, without)
    if not facts.control:
        return sentence
    return f"{sentence} {_than(facts, facts.control, 'The control with a shifted threshold')}"


def _than(facts: Facts, other: Baseline, name: str) -> str:
    ours, theirs = facts.after.errors, other.counts.errors
    same = "as many" if other.counts.missed == facts.after.missed else f"{other.counts.missed:,}"
    if ours == theirs:
        return f"{name} misses {same}, with just as many errors."
    share = f"{100 * abs(ours / theirs - 1):.0f} %" if theirs else f"{ours:,}"
    change = f"{share} {'fewer' if ours < theirs else 'more'}"
    return f"{name} misses {same}; the adapter makes {change} errors ({p_in_words(other.pair.p)})."


def listed(names: Sequence[object]) -> str:
    """As in a sentence: 1, 2 and 3."""
    *first, last = [*map(str, names)] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _more(change: int, noun: str) -> str:
    if not change:
        return f"as many {noun}s"
    return f"{abs(change):,} {'more' if change > 0 else 'fewer'} {noun}{'' if abs(change) == 1 else 's'}"


def _capital(text: str, wanted: bool = True) -> str:
    return text[:1].upper() + text[1:] if wanted else text


def p_in_words(p: float) -> str:
    """For a sentence."""
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def paired(pair: PairedControl, images: str) -> str:
    """One sentence on an adapter and its control: who alone is right about how many of the same images."""
    return (
        f"Of {images}, {pair.only_adapter_right} are right with the adapter only, {pair.only_control_right}"
        f" with the control only (McNemar, exact: {p_in_words(pair.p)})."
    )


# Lessons --------------------------------------------------------------------------------------------------------------

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
    """Drawings that are right before and after; each after with an adapter that has not seen it (cross-validation).

    Attributes:
        images: how many were tested.
        folds: the number of parts, each tested with an adapter that was trained on all the others.
        steps: that each of those was trained for.
    """

    images: Count
    before: Count
    after: Count
    folds: Count
    steps: Count


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
        return [broken - fixed for fixed, broken in zip(self.fixed, self.broken, strict=True)]

    @property
    def worse(self) -> list[int]:
        """The digits with more errors than chance allows."""
        return sorted(worse_digits([tested(pair) for pair in self.by_digit], range(10)))


class LessonVerdict(Document):
    """The verdict on a `LessonResult`.

    Attributes:
        kind: `learnt`: more of the drawings are right, by more than chance. `side effect`: but a digit of `val` is
            worse. `too few drawings`: that may be chance, or so few are wrong before that nothing can be told. `known
            already`: the base has all of them right. `not learnt`: no more are right. `no scale`: none met the guard.
        words: one sentence.
        side_effects: another, on the digits of `val`; empty without `val`.
        worse: the digits with more errors than chance allows.
    """

    kind: LessonKind
    words: str
    side_effects: str
    worse: Many[Digit]

    @property
    def outcome(self) -> Literal["good", "bad", "open"]:
        """Whether that is good news, bad news, or neither."""
        if self.kind == "learnt":
            return "good"
        return "bad" if self.worse or self.kind in ("not learnt", "no scale") else "open"


class LessonResult(Document):
    """What teaching a network some drawings did.

    Attributes:
        drawings: how many of each digit.
        before, after: how many of all drawings are right with the base, and with the adapter, which has seen them.
        unseen: with adapters that have not; None where there are too few drawings to set some aside.
        val: None in a run without.
        scale: that the guard selected; None if it allows none, and then all numbers are of the adapter as trained.
    """

    drawings: PerDigit
    before: Count
    after: Count
    unseen: Unseen | None
    val: OnVal | None
    scale: float | None

    @model_validator(mode="after")
    def _adds_up(self) -> "LessonResult":
        if not max(self.before, self.after) <= self.count or not self.count:
            raise ValueError("must count no more right drawings than there are, and at least one drawing")
        one = self.unseen
        gain = one.fixed - one.broken if one else 0
        if one and (one.images != self.count or one.before != self.before or one.after - one.before != gain):
            raise ValueError("must test every drawing once")
        return self

    @property
    def count(self) -> int:
        """Drawings of all digits."""
        return sum(self.drawings)

    @property
    def verdict(self) -> LessonVerdict:
        """Whether it learnt them, and at what side effects."""
        worse = self.val.worse if self.val else []
        kind, one = self._kind(worse), self.unseen
        title = LESSON_TITLES[kind]
        if one is None:
            counted = f"{self.before} → {self.after} of {self.count} drawings right, all seen in training"
        else:
            p = "" if one.fixed == one.broken == 0 else f" ({p_in_words(mcnemar(one.fixed, one.broken))})"
            counted = f"{one.before} → {one.after} of {one.images} drawings right, each tested unseen{p}"
        return LessonVerdict(
            kind=kind,
            words=f"{title}: {counted}.",
            side_effects=side_effects_of(self.val.by_digit) if self.val else "",
            worse=tuple(worse),
        )

    def _kind(self, worse: list[int]) -> LessonKind:
        one = self.unseen
        if self.scale is None:
            return "no scale"
        if self.before == self.count and (not one or one.after == self.count):
            return "known already"
        if one is None:
            return "too few drawings"
        gain = one.fixed - one.broken
        if mcnemar(one.fixed, one.broken) <= LEVEL:
            return ("side effect" if worse else "learnt") if gain > 0 else "not learnt"
        could_be_told = mcnemar(one.images - one.before, 0) <= LEVEL  # had every wrong one become right
        return "not learnt" if could_be_told and gain <= 0 else "too few drawings"
