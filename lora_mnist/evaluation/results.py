"""What is found out about a network, or about two on the same images: numbers with names. Imports no torch.

A split is `val` or `test`; every table by split has `test`, and `val` where the run has one.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, Strict, model_validator

from lora_mnist.settings.config import Count, Digit, Document, GuardRule, Many, Maybe

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


class Scores(Document):
    """Of a digit, or the mean over the ten digits (macro average). What has no image to divide by is 0."""

    precision: float  # of the images taken for the digit, the share that show it
    recall: float  # of the images that show the digit, the share taken for it
    f1: float  # harmonic mean of the two


class ScoreTable(Document):
    """The scores of every digit, and their means."""

    digits: Annotated[tuple[Scores, ...], Strict(False), Field(min_length=10, max_length=10)]
    macro: Scores

    @property
    def rows(self) -> dict[str, Scores]:
        """By digit, the means last."""
        return {**{str(digit): one for digit, one in enumerate(self.digits)}, "mean": self.macro}


class SplitResult(Document):
    """What a network does with one split."""

    count: ImageCount
    accuracy: float
    wrong: PerDigit  # by true digit
    confusion: Matrix
    scores: ScoreTable

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
    """The digit with the highest error rate on `val`."""

    digit: Digit
    wrong: ImageCount
    images: ImageCount
    low: float  # Wilson's 95 % interval of wrong / images
    high: float


class Counts(Document):
    """What a repair of one digit is judged by."""

    missed: ImageCount  # images of the digit taken for another
    false_alarms: ImageCount  # images of others taken for it
    errors: ImageCount  # all wrong images of all digits

    def of(self, key: str) -> int:
        """The count of that name, one of `COUNTS`."""
        return int(getattr(self, key))

    @property
    def numbers(self) -> tuple[int, int, int]:
        """missed, false_alarms, errors."""
        return self.missed, self.false_alarms, self.errors


class Pair(Document):
    """Images that are better (`fixed`) or worse (`broken`) than before; the others are as they were."""

    fixed: ImageCount
    broken: ImageCount


class Pairs(Document):
    """The images that each of the three counts looks at."""

    missed: Pair
    false_alarms: Pair
    errors: Pair


class Comparison(Document):
    """What changed from one network to another on the same images."""

    before: Counts
    after: Counts
    fixed: PerDigit  # by true digit: wrong before, right after
    broken: PerDigit  # the reverse
    pairs: Pairs
    scores_before: ScoreTable  # those after are in the evaluation
    came: Matrix  # images by the digit that they are taken for only after
    went: Matrix  # and by the digit that they are taken for only before


class StrengthPoint(Counts):
    """What an adapter does at one strength."""

    strength: float
    wrong: PerDigit  # by true digit


class TriedScale(Counts):
    """What the trained update does at one scale."""

    scale: float
    worse: Many[Digit] = ()  # digits with more errors than chance allows


class ShiftPoint(Counts):
    """What the base does with a number added to the digit's logit."""

    shift: float


class StrengthCurve(Document):
    """What an adapter does at several strengths, from the lowest upwards."""

    measured_on: Literal["val", "test"]  # the split that recommends: test where there is no val
    recommended: float
    splits: BySplit[Many[StrengthPoint]]


class GuardDecision(Document):
    """At which scale an adapter is kept, and why."""

    rule: GuardRule
    counted: Literal["errors", "missed"] | None  # what may not rise on val; None without a rule
    gain: Count  # by how many images it had to fall, at the least
    before: Counts | None  # on val without the adapter
    tried: Many[TriedScale]  # on val, from scale 1 downwards
    scale: float | None  # factor of the trained alpha; None if none met the rule


class ShiftedLogit(Document):
    """The smallest shift of the digit's logit with which a network misses no more images than the repaired one."""

    shift: float
    chosen_on: Literal["val", "test"]
    splits: BySplit[Counts]
    pairs: BySplit[Pair]  # fixed: only the repaired network gets them right; broken: only the shifted one


class Threshold(ShiftedLogit):
    """The one of the network before the repair."""

    curve: Many[ShiftPoint]  # on test, from no shift to a quarter beyond this one


class PairedControl(Document):
    """How many of the same images only one of the two gets right, and McNemar's p of that."""

    only_adapter_right: ImageCount
    only_control_right: ImageCount
    p: float


class ControlCounts(Counts):
    """What the control does, and how it and the adapter differ on all images and on those of the digit."""

    all: PairedControl
    digit: PairedControl


class ControlResult(Document):
    """An adapter trained as long on uniformly sampled images: no focus, no hard-example sampling."""

    scale: float | None  # None if its guard selected none
    splits: BySplit[ControlCounts]
    threshold: ShiftedLogit  # the control shifted so that it misses no more images than the adapter
    threshold_on_test: ShiftedLogit  # likewise, chosen on `test`


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
    """One layer's update ΔW = scaling · B A."""

    relative_norm: float  # ‖ΔW‖ / ‖W‖ (Frobenius), W of the base
    singular_values: Many[float]  # of ΔW, largest first
    missed_without: Count  # images of the digit on test, with only this layer's update off


class Analysis(Document):
    """What a repair did, and what it is compared with: analysis.json. Only adapters have a curve and layers."""

    schema_version: int
    splits: BySplit[Comparison]
    threshold: Threshold  # of the network before, chosen on `val`, where there is one: what anybody could use
    threshold_on_test: ShiftedLogit  # chosen on `test` itself, which favours it: what the verdict compares with
    examples: Many[Example]
    control: Maybe[ControlResult] = None
    strength_curve: Maybe[StrengthCurve] = None
    layers: Maybe[dict[str, LayerEffect]] = None


class FrozenClaim(Document):
    """Whether every byte of every base tensor is as before, and has the recorded fingerprint."""

    passed: bool
    tensors: Count
    bytes: Count
    changed_bytes: dict[str, int]
    first_difference: str | None
    fingerprint: str


class OffClaim(Document):
    """Whether, with the adapter off, the logits are the base's, bit for bit."""

    passed: bool
    images: Count
    images_that_differ: Count


class OnClaim(Document):
    """Whether, with the adapter on, the weights are W + scaling · B A; both numbers are NaN where its logits are."""

    passed: bool
    layers_off_the_formula: Many[str]
    largest_difference: float = Field(allow_inf_nan=True)
    largest_logit: float = Field(allow_inf_nan=True)


class Proof(Document):
    """The three claims about an adapter."""

    passed: bool
    frozen: FrozenClaim
    off: OffClaim
    on: OnClaim
