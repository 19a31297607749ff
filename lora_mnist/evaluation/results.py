"""What is found out about a network, or about two on the same images: numbers with names. Imports no torch.

A split is `val` or `test`; every table by split has `test`, and `val` where the run has one.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, Strict, model_validator

from lora_mnist.settings.config import GuardRule
from lora_mnist.settings.document import Count, Digit, Document, Many, Maybe

T = TypeVar("T")

COUNTS = ("missed", "false_alarms", "errors")


def _require_test(splits: dict[str, T]) -> dict[str, T]:
    if "test" not in splits or splits.keys() - {"val", "test"}:
        raise ValueError("must hold test, may hold val, and nothing else")
    return splits


BySplit = Annotated[dict[str, T], AfterValidator(_require_test)]
ImageCount = Annotated[int, Field(ge=0, le=10_000_000)]  # far beyond use; statistics take long on more
PerDigit = Annotated[tuple[ImageCount, ...], Strict(False), Field(min_length=10, max_length=10)]
Matrix = Annotated[tuple[PerDigit, ...], Strict(False), Field(min_length=10, max_length=10)]  # rows true digit


class SplitResult(Document):
    """What a network does with one split.

    Attributes:
        wrong: by true digit.
        confusion: (10, 10), row true digit, column predicted digit.
    """

    count: ImageCount
    accuracy: float
    wrong: PerDigit
    confusion: Matrix

    @model_validator(mode="after")
    def _adds_up(self) -> "SplitResult":
        if not 0 < self.count == sum(self.images):
            raise ValueError("must count the images of its confusion matrix, and at least one")
        if self.wrong != tuple(sum(row) - row[digit] for digit, row in enumerate(self.confusion)):
            raise ValueError("must have as wrong what its confusion matrix has beside the diagonal")
        return self

    @property
    def errors(self) -> int:
        """Wrong images of all digits."""
        return sum(self.wrong)

    @property
    def images(self) -> list[int]:
        """Images of every digit."""
        return [sum(row) for row in self.confusion]


class WeakestDigit(Document):
    """The digit with the highest error rate on `val`.

    Attributes:
        wrong, images: how many of its images are wrong.
        low, high: Wilson's 95 % interval of their share.
    """

    digit: Digit
    wrong: ImageCount
    images: ImageCount
    low: float
    high: float


class Counts(Document):
    """What a repair of one digit is judged by.

    Attributes:
        missed: images of the digit taken for another.
        false_alarms: images of others taken for it.
        errors: all wrong images of all digits.
    """

    missed: ImageCount
    false_alarms: ImageCount
    errors: ImageCount

    def of(self, key: str) -> int:
        """The count of that name, one of `COUNTS`."""
        return {"missed": self.missed, "false_alarms": self.false_alarms, "errors": self.errors}[key]

    @property
    def numbers(self) -> tuple[int, int, int]:
        """missed, false_alarms, errors."""
        return self.missed, self.false_alarms, self.errors


class Pair(Document):
    """Images that are better (`fixed`) or worse (`broken`) than before; the others are as they were."""

    fixed: ImageCount
    broken: ImageCount


class Pairs(Document):
    """Of the images that each of the three counts looks at."""

    missed: Pair
    false_alarms: Pair
    errors: Pair

    def of(self, key: str) -> Pair:
        """The pair of that name, one of `COUNTS`."""
        return {"missed": self.missed, "false_alarms": self.false_alarms, "errors": self.errors}[key]


class Comparison(Document):
    """What changed from one network to another on the same images.

    Attributes:
        fixed: by true digit, images that were wrong before and are right after.
        broken: the reverse.
        came, went: images taken for a digit that they were not taken for before, and no longer taken for one.
    """

    before: Counts
    after: Counts
    fixed: PerDigit
    broken: PerDigit
    pairs: Pairs
    came: Matrix
    went: Matrix

    @property
    def by_digit(self) -> list[Pair]:
        """Images fixed and broken of every true digit."""
        return [Pair(fixed=fixed, broken=broken) for fixed, broken in zip(self.fixed, self.broken, strict=True)]


class _AtStrength(Document):
    strength: float


class StrengthPoint(Counts, _AtStrength):  # in this order, `strength` is written first
    """What an adapter does at one strength."""


class StrengthCurve(Document):
    """What an adapter does at several strengths.

    Attributes:
        measured_on: the split that recommends, `test` where there is no `val`.
        splits: points by rising strength.
    """

    measured_on: Literal["val", "test"]
    recommended: float
    splits: BySplit[Many[StrengthPoint]]


class _AtScale(Document):
    scale: float


class TriedScale(Counts, _AtScale):  # in this order, `scale` is written first
    """Counts at one scale of the trained update; `worse`: the digits with more errors than chance allows."""

    worse: Many[Digit] = ()


class GuardDecision(Document):
    """At which scale an adapter is kept, and why.

    Attributes:
        counted: the count on `val` that may not rise; None if there is no rule.
        gain: by how many images it had to fall, at the least.
        before: counts on `val` without the adapter.
        tried: what the trained update does on `val`, by scale from 1 downwards.
        scale: the factor by which the trained alpha was multiplied; None if none met the rule.
    """

    rule: GuardRule
    counted: Literal["errors", "missed"] | None
    gain: Count
    before: Counts | None
    tried: Many[TriedScale]
    scale: float | None


class _ByShift(Document):
    shift: float


class ShiftPoint(Counts, _ByShift):
    """What the base does with a number added to the digit's logit."""


class ShiftedLogit(Document):
    """The smallest shift of the digit's logit with which a network misses no more images than the repaired one.

    Attributes:
        pairs: by split, images that only the repaired network gets right (`fixed`), and only the shifted one
            (`broken`).
    """

    shift: float
    chosen_on: Literal["val", "test"]
    splits: BySplit[Counts]
    pairs: BySplit[Pair]


class Threshold(ShiftedLogit):
    """That of the network before the repair; `curve` is on `test`, from no shift to a quarter beyond this one."""

    curve: Many[ShiftPoint]


class PairedControl(Document):
    """Of the same images, how many only one of the two gets right, and McNemar's p of that."""

    only_adapter_right: ImageCount
    only_control_right: ImageCount
    p: float


class ControlCounts(Counts):
    """What the control does, and how it and the adapter differ on all images and on those of the digit."""

    all: PairedControl
    digit: PairedControl


class ControlResult(Document):
    """An adapter trained as long on uniformly sampled images: no focus, no hard-example sampling.

    Attributes:
        scale: that its guard selected; None if it selected none.
        threshold: the control with a shifted threshold, so that it misses no more images than the adapter.
    """

    scale: float | None
    splits: BySplit[ControlCounts]
    threshold: ShiftedLogit


class Guess(Document):
    """What an image is taken for, and the probability (softmax) of its true digit."""

    prediction: Digit
    probability: float


class Example(Document):
    """A test image that was fixed or broken."""

    index: Count
    kind: Literal["fixed", "broken"]
    label: Digit
    before: Guess
    after: Guess


class LayerEffect(Document):
    """One layer's update ΔW = scaling · B A.

    Attributes:
        relative_norm: ‖ΔW‖ / ‖W‖ (Frobenius) with W of the base.
        singular_values: of ΔW, largest first.
        missed_without: images of the digit on `test` that are missed with this layer's update off and all others on.
    """

    relative_norm: float
    singular_values: Many[float]
    missed_without: Count


class Analysis(Document):
    """What a repair did, and what it is compared with: analysis.json. Only adapters have a curve and layers."""

    schema_version: int
    splits: BySplit[Comparison]
    threshold: Threshold
    examples: Many[Example]
    control: Maybe[ControlResult] = None
    strength_curve: Maybe[StrengthCurve] = None
    layers: Maybe[dict[str, LayerEffect]] = None


class Frozen(Document):
    """Whether every byte of every base tensor is as before, and has the recorded fingerprint."""

    passed: bool
    tensors: Count
    bytes: Count
    changed_bytes: dict[str, int]
    first_difference: str | None
    fingerprint: str


class Off(Document):
    """Whether, with the adapter off, the logits are the base's, bit for bit."""

    passed: bool
    images: Count
    images_that_differ: Count


class On(Document):
    """Whether, with the adapter on, the weights are W + scaling · B A; both numbers are NaN where its logits are."""

    passed: bool
    layers_off_the_formula: Many[str]
    largest_difference: float = Field(allow_inf_nan=True)
    largest_logit: float = Field(allow_inf_nan=True)


class Proof(Document):
    """The three claims about an adapter."""

    passed: bool
    frozen: Frozen
    off: Off
    on: On
