"""The report as one document, report.json. Counts are of `test` unless a field says otherwise, shares are 0 to 1, and
intervals (`low`, `high`) are Wilson's, 95 %."""

from typing import Generic, Literal, TypeVar

from lora_mnist.evaluation.results import (
    ControlResult,
    Counts,
    GuardDecision,
    Guess,
    LayerEffect,
    Matrix,
    Pair,
    Proof,
    ShiftPoint,
    SplitResult,
    StrengthPoint,
)
from lora_mnist.evaluation.significance import DIGIT_LEVEL, wilson
from lora_mnist.evaluation.verdict import LessonResult, LessonVerdict, Verdict
from lora_mnist.report.provenance import BaseMade, Made
from lora_mnist.runs.listing import AdapterLine
from lora_mnist.runs.schemas import AdapterParameters, DatasetFacts, Method
from lora_mnist.settings.strict import Count, Digit, Document, Many, Maybe

T = TypeVar("T")


class Share(Document):
    """`count` of `of`, and the interval of their ratio."""

    count: Count
    of: Count
    share: float
    low: float
    high: float

    @classmethod
    def of_images(cls, count: int, of: int) -> "Share":
        """With its interval."""
        low, high = wilson(count, of)
        return Share(count=count, of=of, share=count / of, low=low, high=high)

    @classmethod
    def accuracy(cls, split: SplitResult) -> "Share":
        """The right ones of all images."""
        return cls.of_images(split.count - split.errors, split.count)


class BeforeAfter(Document, Generic[T]):
    """Something without the adapter, and with it."""

    before: T
    after: T


# The base -------------------------------------------------------------------------------------------------------------


class _OfDigit(Document):
    digit: Digit


class DigitShare(Share, _OfDigit):  # in this order, `digit` is written first
    """Wrong images of one digit."""


class BaseSection(Document):
    """What the base does."""

    fingerprint: str
    accuracy: Share
    errors: Share
    digits: Many[DigitShare]
    confusion: Matrix


# An adapter -----------------------------------------------------------------------------------------------------------


class _Change(Document):
    before: Share
    after: Share
    change: int


class Change(Pair, _Change):
    """What became of one count: before and after; images fixed and broken, and McNemar's p of that."""

    p: float


class Headline(Document):
    """The three counts that a repair is judged by."""

    missed: Change
    false_alarms: Change
    errors: Change

    @property
    def before(self) -> Counts:
        return Counts(
            missed=self.missed.before.count,
            false_alarms=self.false_alarms.before.count,
            errors=self.errors.before.count,
        )

    @property
    def after(self) -> Counts:
        return Counts(
            missed=self.missed.after.count, false_alarms=self.false_alarms.after.count, errors=self.errors.after.count
        )


class _Shift(Document):
    shift: float
    chosen_on: Literal["val", "test"]


class ShiftedThreshold(Counts, _Shift):
    """What one number added to the digit's logit does."""


class _Beside(Document):
    method: Literal["control", "control and threshold", "full"]
    name: str
    kept: bool


class Yardstick(Counts, _Beside):
    """What else was trained: the control, without and with a shifted threshold, or all weights. `kept`: by a guard."""


class DigitRow(Document):
    """Wrong images of one digit; `net` is after − before, `low` and `high` are the interval of `net` / `images` (see
    `significance.paired_interval`), and `p` is McNemar's."""

    digit: Digit
    images: Count
    before: Count
    fixed: Count
    broken: Count
    after: Count
    net: int
    low: float
    high: float
    p: float

    @property
    def is_chance(self) -> bool:
        """Whether the change may be chance, ten digits being looked at."""
        return self.p > DIGIT_LEVEL


class Flow(Document):
    """How many more images of one digit are taken for another, by more than chance: McNemar's `p` of the images that
    are taken for it only before or only after, at a level corrected for the 90 pairs of digits."""

    true: Digit
    predicted: Digit
    change: int
    p: float


class Trade(Document):
    """Counts along the two ways that start at the base: a number added to the logit, and the adapter's strength."""

    threshold: Many[ShiftPoint]
    strength: Many[StrengthPoint]


class DialPoint(StrengthPoint):
    """What an adapter does at one strength, as shares: recall is that of the digit."""

    accuracy: float
    recall: float
    recall_of_others: float


class DialSection(Document):
    """Points on `measured_on` by rising strength, and what the recommended one does on `test`."""

    measured_on: Literal["val", "test"]
    recommended: float
    points: Many[DialPoint]
    test: StrengthPoint


class _OfLayer(Document):
    layer: str


class LayerRow(LayerEffect, _OfLayer):
    """One layer's update."""


class SureGuess(Guess):
    """`confidence` is the probability of what it is taken for, `probability` that of the true digit."""

    confidence: float


class WrongImage(Document):
    """A test image that is wrong before or after.

    Attributes:
        kind: `wrong` is wrong before and after.
        agreed: of five people, how many saw what its label says, where that is in doubt.
    """

    index: Count
    kind: Literal["fixed", "broken", "wrong"]
    label: Digit
    before: SureGuess
    after: SureGuess
    agreed: int | None


class AdapterSection(Document):
    """Everything about one adapter.

    Attributes:
        examples: images that changed, those first whose true digit's probability changed most; 24 of a kind.
        wrong_images: those wrong before or after, up to 2,000; adapters from before they were stored have None.
        price: of one that was taught drawings.
    """

    name: str
    digit: Digit
    weakest_on_val: bool
    on_top_of: Many[str]
    method: Method
    rank: int
    verdict: Verdict
    headline: Headline
    accuracy: BeforeAfter[Share]
    parameters: AdapterParameters
    proof: Proof
    threshold: ShiftedThreshold
    yardsticks: Many[Yardstick]
    control: ControlResult | None
    digits: Many[DigitRow]
    confusion: BeforeAfter[Matrix]
    flows: Many[Flow]
    trade: Trade
    strength_curve: DialSection
    layers: Many[LayerRow]
    examples: Many[WrongImage]
    wrong_images: Many[WrongImage] | None
    guard: GuardDecision | None
    lesson: Maybe[LessonResult] = None
    provenance: Made

    @property
    def sum(self) -> Verdict | LessonVerdict:
        """What it comes to: a repair, or drawings that were taught."""
        return self.lesson.verdict if self.lesson else self.verdict

    @property
    def purpose(self) -> str:
        """What it was trained for."""
        return f"{self.lesson.count:,} drawings" if self.lesson else f"digit {self.digit}"


# All of it ------------------------------------------------------------------------------------------------------------


class CheckpointSection(Document):
    """A checkpoint with all weights trained."""

    name: str
    digit: Digit
    provenance: Made


class Line(AdapterLine):
    """One of `side_by_side`; `change` is that of all errors."""

    change: int


class Report(Document):
    """A run in numbers.

    Attributes:
        version: of lora-mnist, that wrote it.
        run_digest: of the run that it was made from (see `Run.digest`).
        normalised: whether the page has shares of each true digit in its confusion matrices.
        adapters: the newest first.
        side_by_side: adapters from the oldest on, then checkpoints.
        made: the base.
    """

    schema_version: int
    version: str
    run_digest: str
    normalised: bool
    dataset: DatasetFacts
    base: BaseSection
    adapters: Many[AdapterSection]
    checkpoints: Many[CheckpointSection]
    side_by_side: Many[Line]
    provenance: BaseMade


def label(one: Line | Yardstick) -> str:
    """A name for a plot: an adapter and a checkpoint may have the same."""
    return one.name + (" (all weights)" if one.method == "full" else "")
