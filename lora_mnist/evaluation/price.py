"""What it came to to teach a network some drawings: what they gained, what the data set's own images paid.

Every change is judged by McNemar's exact test on the same images, as in `verdict`.
"""

from typing import Literal

from pydantic import model_validator

from lora_mnist.evaluation.results import Pair, PerDigit
from lora_mnist.evaluation.significance import DIGIT_LEVEL, LEVEL, mcnemar
from lora_mnist.evaluation.verdict import digits_that_paid, listed, p_in_words, tested
from lora_mnist.settings.strict import Count, Digit, Document, Many

PriceKind = Literal["learnt", "paid for", "too few drawings", "known already", "not learnt", "too dear"]


class Judged(Pair):
    """Drawings that are right before and after; each after by an adapter that was trained without it.

    Attributes:
        images: how many were judged.
        folds: in so many parts, each judged by an adapter that was trained on all the others.
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
    def payers(self) -> list[int]:
        """The digits of which more images are wrong than chance allows."""
        return [digit for digit, pair in enumerate(map(tested, self.by_digit)) if pair.is_up(DIGIT_LEVEL)]


class PriceVerdict(Document):
    """The sum of a `Price`.

    Attributes:
        kind: `learnt`: more of the drawings are right, by more than chance. `paid for`: but a digit of `val` is worse.
            `too few drawings`: that may be chance, or so few are wrong before that nothing can be told.
            `known already`: the base has all of them right. `not learnt`: no more are right. `too dear`: no strength
            met the guard.
        words: the one sentence.
        paid: another, on the digits of `val` that lost; none without `val`.
        lost: those that lost by more than chance.
    """

    kind: PriceKind
    words: str
    paid: str
    lost: Many[Digit]

    @property
    def outcome(self) -> Literal["good", "bad", "open"]:
        """Whether that is good news, bad news, or neither."""
        if self.kind == "learnt":
            return "good"
        return "bad" if self.lost or self.kind in ("not learnt", "too dear") else "open"


class Price(Document):
    """What teaching gained and cost.

    Attributes:
        drawings: how many of each digit.
        before, after: how many of all drawings are right with the base, and with the adapter, which has seen them.
        judged: by adapters that have not; None where there are too few drawings to set some aside.
        val: None in a run without.
        strength: at which the adapter is kept; None if the guard allows none, and then all is said of it as trained.
    """

    drawings: PerDigit
    before: Count
    after: Count
    judged: Judged | None
    val: OnVal | None
    strength: float | None

    @model_validator(mode="after")
    def _adds_up(self) -> "Price":
        if not max(self.before, self.after) <= self.count or not self.count:
            raise ValueError("must count no more right drawings than there are, and at least one drawing")
        one = self.judged
        if one and (one.images != self.count or one.before != self.before or one.after - one.before != _gain(one)):
            raise ValueError("must judge every drawing once")
        return self

    @property
    def count(self) -> int:
        """Drawings of all digits."""
        return sum(self.drawings)

    @property
    def verdict(self) -> PriceVerdict:
        """What all of it comes to."""
        lost = self.val.payers if self.val else []
        kind = self._kind(lost)
        paid = digits_that_paid(self.val.by_digit) if self.val else ""
        return PriceVerdict(kind=kind, words=_words(kind, self, lost), paid=paid, lost=tuple(lost))

    def _kind(self, lost: list[int]) -> PriceKind:
        one = self.judged
        if self.strength is None:
            return "too dear"
        if self.before == self.count and (not one or one.after == self.count):
            return "known already"
        if one is None:
            return "too few drawings"
        if mcnemar(one.fixed, one.broken) <= LEVEL:
            return ("paid for" if lost else "learnt") if _gain(one) > 0 else "not learnt"
        could_be_told = mcnemar(one.images - one.before, 0) <= LEVEL  # had every wrong one become right
        return "not learnt" if could_be_told and _gain(one) <= 0 else "too few drawings"


def _gain(one: Judged) -> int:
    return one.fixed - one.broken


def _words(kind: PriceKind, price: Price, lost: list[int]) -> str:
    title = {
        "learnt": "Learnt",
        "paid for": "Learnt",
        "too few drawings": "Too few drawings to tell",
        "known already": "Nothing to learn",
        "not learnt": "Not learnt",
        "too dear": "Too dear at any strength",
    }[kind]
    if lost:
        title += f", and {listed(lost)} {'pay' if len(lost) > 1 else 'pays'} for it"
    one = price.judged
    if one is None:
        counted = f"{price.before} → {price.after} of {price.count} drawings right, judged by those it was trained on"
        return f"{title}: {counted}."
    p = "" if one.fixed == one.broken == 0 else f" ({p_in_words(mcnemar(one.fixed, one.broken))})"
    unseen = f"each judged by an adapter that was trained without it{p}"
    return f"{title}: {one.before} → {one.after} of {one.images} drawings right, {unseen}."
