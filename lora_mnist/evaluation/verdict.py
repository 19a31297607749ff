"""What a repair comes to: one kind, the facts it rests on, and the sentence that says so.

It rests on one split, as a rule `test`, and says no more than its images allow. Every change is judged by McNemar's
exact test on the same images: false_alarms, missed and false_alarms together, and all errors at `LEVEL`; each of the ten digits,
of which the target's missed images are one, at `DIGIT_LEVEL`.
"""

from collections.abc import Sequence
from typing import Literal

from lora_mnist.evaluation.results import Analysis, Comparison, Counts, Pair, PairedControl, ShiftedLogit
from lora_mnist.evaluation.significance import DIGIT_LEVEL, LEVEL, mcnemar
from lora_mnist.settings.strict import Digit, Document, Many

Kind = Literal[
    "repair",
    "paid for",
    "forgot others",
    "guessed more often",
    "shifted threshold",
    "shifted control",
    "too few images",
    "not repaired",
]

TITLES: dict[Kind, str] = {
    "repair": "A repair",
    "paid for": "A repair that {payers} {verb} for",
    "forgot others": "Fixed one digit and forgot others",
    "guessed more often": "Guessed more often rather than repaired",
    "shifted threshold": "No better than a shifted threshold",
    "shifted control": "No better than its control with a shifted threshold",
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


class Excuse(Document):
    """A network with one number on its logit of the digit, which misses about as few images.

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
        both: missed and false_alarms together.
        digits: all ten.
        threshold: the network before with one number on its logit; `control`: the control with one, if it was trained.
    """

    digit: Digit
    before: Counts
    after: Counts
    missed: Tested
    false_alarms: Tested
    both: Tested
    errors: Tested
    digits: Many[Tested]
    threshold: Excuse
    control: Excuse | None

    @property
    def payers(self) -> list[int]:
        """The other digits with more wrong images than chance allows, the one hit worst first."""
        return _payers(self.digits, self.others)

    @property
    def worst(self) -> int:
        """The other digit that lost most, or won least."""
        return _worst(self.digits, self.others)

    @property
    def others(self) -> list[int]:
        """All digits but the target."""
        return [digit for digit in range(10) if digit != self.digit]


class Verdict(Document):
    """What became of the target digit, at whose expense, and whether one shifted logit would have done as well.

    Attributes:
        kind: `repair`: the digit is missed less, missed and false_alarms together are fewer, neither false_alarms images nor all
            errors nor those of another digit are up, and a shifted threshold does worse, all beyond chance. `paid for`:
            but other digits are worse. `forgot others`: but all errors are up. `guessed more often`: but false_alarms images
            are up, or missed and false_alarms together not down. `shifted threshold`, `shifted control`: but one number on the
            logit of the base, or of the control, does as well. `too few images`: missed images are fewer, which may be
            chance. `not repaired`: they are not fewer, or that may be chance while others are worse.
        words: two or three sentences.
    """

    kind: Kind
    words: str
    facts: Facts

    @property
    def title(self) -> str:
        """The kind in words."""
        return _title(self.kind, self.facts)

    @property
    def headline(self) -> str:
        """The first sentence of `words`: the kind and the three counts."""
        return _headline(self.kind, self.facts)

    @property
    def price(self) -> str:
        """Its second: which digits lost."""
        return _who_paid(self.facts.digits, self.facts.others)

    @property
    def beside(self) -> str:
        """What is left of `words`: what a shifted threshold, and the control with one, would have done instead."""
        return _against(self.facts)

    @property
    def outcome(self) -> Literal["good", "bad", "open"]:
        """Whether that is good news, bad news, or neither."""
        if self.kind == "repair":
            return "good"
        return "bad" if self.kind in ("paid for", "forgot others", "not repaired") else "open"


def verdict_of(analysis: Analysis, digit: int, split: Literal["val", "test"] = "test") -> Verdict:
    """The verdict on a repair of `digit`, from what was found on one split."""
    compared, control = analysis.splits[split], analysis.control and analysis.control.threshold
    facts = Facts(
        digit=digit,
        before=compared.before,
        after=compared.after,
        missed=tested(compared.pairs.missed),
        false_alarms=tested(compared.pairs.false_alarms),
        both=tested(compared.pairs.missed, compared.pairs.false_alarms),
        errors=tested(compared.pairs.errors),
        digits=tuple(map(tested, compared.by_digit)),
        threshold=_excuse(analysis.threshold, split),
        control=_excuse(control, split) if control else None,
    )
    kind = _kind(facts)
    return Verdict(kind=kind, words=_words(kind, facts), facts=facts)


def tested(*pairs: Pair) -> Tested:
    """The pairs together."""
    fixed, broken = sum(pair.fixed for pair in pairs), sum(pair.broken for pair in pairs)
    return Tested(fixed=fixed, broken=broken, p=mcnemar(fixed, broken))


def _excuse(shifted: ShiftedLogit, split: str) -> Excuse:
    return Excuse(counts=shifted.splits[split], pair=tested(shifted.pairs[split]))


def _kind(facts: Facts) -> Kind:
    harm = facts.errors.is_up(LEVEL)
    if facts.missed.change >= 0:
        return "not repaired"
    if not facts.missed.is_down(DIGIT_LEVEL):
        return "not repaired" if harm or facts.payers else "too few images"
    if harm:
        return "forgot others"
    if facts.payers:
        return "paid for"
    if facts.false_alarms.is_up(LEVEL) or not facts.both.is_down(LEVEL):
        return "guessed more often"
    if not facts.threshold.is_worse_than(facts.after):
        return "shifted threshold"
    if facts.control and not facts.control.is_worse_than(facts.after):
        return "shifted control"
    return "repair"


# Words ----------------------------------------------------------------------------------------------------------------


def _words(kind: Kind, facts: Facts) -> str:
    return " ".join(filter(None, [_headline(kind, facts), _who_paid(facts.digits, facts.others), _against(facts)]))


def _headline(kind: Kind, facts: Facts) -> str:
    return f"{_title(kind, facts)}: {_counted(kind, facts)}."


def _title(kind: Kind, facts: Facts) -> str:
    return TITLES[kind].format(payers=listed(facts.payers), verb="pay" if len(facts.payers) > 1 else "pays")


def _counted(kind: Kind, facts: Facts) -> str:
    chance = f" ({p_in_words(facts.missed.p)}: may be chance)" if kind == "too few images" else ""
    missed = _more(facts.missed.change, f"missed {facts.digit}") + chance
    return f"{missed}, {_more(facts.false_alarms.change, 'false_alarms', '')}, {_more(facts.errors.change, 'error')} in all"


def who_paid(comparison: Comparison) -> str:
    """One sentence on the digits that lost, any of the ten, as after several repairs."""
    return digits_that_paid(comparison.by_digit)


def digits_that_paid(by_digit: Sequence[Pair]) -> str:
    """`who_paid`, of the images fixed and broken of each of the ten."""
    return _who_paid(tuple(map(tested, by_digit)), range(10))


def _who_paid(digits: Sequence[Tested], among: Sequence[int]) -> str:
    if payers := _payers(digits, among):
        p = max(digits[one].p for one in payers)
        more = [f"{digits[one].change:,} more {one}{'' if digits[one].change == 1 else 's'}" for one in payers]
        return f"{listed(more)} are wrong, which is more than chance ({p_in_words(p)})."
    worst = _worst(digits, among)
    change = digits[worst].change
    if change <= 0:
        return "No digit lost."
    return f"The digit hit worst is {worst} ({change:,} more wrong), within chance ({p_in_words(digits[worst].p)})."


def _worst(digits: Sequence[Tested], among: Sequence[int]) -> int:
    return max(among, key=lambda digit: digits[digit].change)


def _payers(digits: Sequence[Tested], among: Sequence[int]) -> list[int]:
    up = [digit for digit in among if digits[digit].is_up(DIGIT_LEVEL)]
    return sorted(up, key=lambda digit: -digits[digit].change)


def _against(facts: Facts) -> str:
    """Beside one shifted logit, and beside the control with one where there is a control."""
    if facts.missed.change >= 0:
        return ""
    sentence = _beside(facts, facts.threshold, "a shifted threshold")
    return f"{sentence} {_beside(facts, facts.control, 'its control with one')}" if facts.control else sentence


def _beside(facts: Facts, other: Excuse, name: str) -> str:
    same = "as many" if other.counts.missed == facts.after.missed else f"{other.counts.missed:,}"
    made, theirs = facts.after.errors, other.counts.errors
    if made == theirs:
        change = "just as many errors as"
    elif not theirs:
        change = f"{made:,} more errors than"
    else:
        change = f"{100 * abs(made / theirs - 1):.0f} % {'fewer' if made < theirs else 'more'} errors than"
    chance = f" ({p_in_words(other.pair.p)})" if made != theirs else ""
    return f"It makes {change} {name}, which misses {same}{chance}."


def listed(names: Sequence[object]) -> str:
    """As in a sentence: 1, 2 and 3."""
    *first, last = [*map(str, names)] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _more(change: int, noun: str, plural: str = "s") -> str:
    if not change:
        return f"as many {noun}{plural}"
    return f"{abs(change):,} {'more' if change > 0 else 'fewer'} {noun}{'' if abs(change) == 1 else plural}"


def p_in_words(p: float) -> str:
    """As it stands in a sentence."""
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def paired(pair: PairedControl, images: str) -> str:
    """One sentence on an adapter and its control: who alone is right about how many of the same images."""
    return (
        f"Of {images}, {pair.only_adapter_right} are right with the adapter only, {pair.only_control_right}"
        f" with the control only (McNemar, exact: {p_in_words(pair.p)})."
    )
