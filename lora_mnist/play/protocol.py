"""What the page and the server say to each other. What comes in is capped here, in numbers; `safety` caps its bytes."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from lora_mnist.evaluation.verdict import LessonResult, LessonVerdict
from lora_mnist.settings.config import Name
from lora_mnist.settings.strict import Count, Digit, Document, Many, Maybe

SIDE = 28
CANVAS = 1000  # coordinates of a stroke go from 0 to this, right and down
MOST_STROKES, MOST_POINTS = 100, 5000  # of one drawing
MOST_DRAWINGS = 500  # of one lesson
MOST_ADAPTERS = 16
STRONGEST = 1.5

Place = Annotated[int, Field(ge=0, le=CANVAS)]
Stroke = Annotated[Many[tuple[Place, Place]], Field(min_length=1, max_length=MOST_POINTS)]


class Message(Document):
    """Base of what goes over the wire; bytes go as hexadecimal digits."""

    model_config = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")


Pixels = Annotated[bytes, Field(min_length=SIDE * SIDE, max_length=SIDE * SIDE)]  # 28 rows of 28, 255 is ink


# Asked ----------------------------------------------------------------------------------------------------------------


class Choice(Message):
    """Which adapters are on, and how strongly."""

    adapters: Annotated[Many[Name], Field(max_length=MOST_ADAPTERS)] = ()
    strength: float = Field(default=1.0, ge=0, le=STRONGEST)


class Question(Choice):
    """What do the networks see? A drawing, or the test image of an index."""

    strokes: Annotated[Many[Stroke], Field(max_length=MOST_STROKES)] | None = None
    index: Count | None = None

    @model_validator(mode="after")
    def _one_picture(self) -> "Question":
        if (self.strokes is None) == (self.index is None):
            raise ValueError("must have either strokes or an index")
        if sum(map(len, self.strokes or ())) > MOST_POINTS:
            raise ValueError(f"must have no more than {MOST_POINTS} points")
        return self


class Search(Choice):
    """The first test image after `after`, and again from the start, that the base gets wrong or the adapters break."""

    which: Literal["base-wrong", "adapters-break"]
    after: int = Field(default=-1, ge=-1, lt=2**31)


class LabelledDrawing(Message):
    """A drawing as the network saw it, and the digit that it is."""

    pixels: Pixels
    label: Digit


class Lesson(Message):
    """Drawings to learn from."""

    drawings: Annotated[Many[LabelledDrawing], Field(min_length=1, max_length=MOST_DRAWINGS)]


class Keeping(Message):
    """The name under which a taught adapter is to be kept."""

    name: Name


# Answered -------------------------------------------------------------------------------------------------------------


class Sight(Message):
    """What one network sees: the likeliest digit, and the probability of each."""

    digit: Digit
    probabilities: tuple[float, ...]


class Answer(Message):
    """What the networks see in one picture.

    Attributes:
        pixels: what they were shown; None if the drawing is none, and `problem` says why.
        index, label: of a test image.
        adapted: None if no adapter is on.
    """

    pixels: Pixels | None = None
    problem: str | None = None
    index: Count | None = None
    label: Digit | None = None
    base: Sight | None = None
    adapted: Sight | None = None


class Found(Message):
    """The index of a test image, None if there is no such one."""

    index: Count | None


class AdapterFacts(Message):
    """An adapter that can be chosen; or that cannot, and `problem` says why."""

    name: str
    summary: str = ""
    on_top_of: Many[str] = ()
    problem: Maybe[str] = None


class RunFacts(Message):
    """What the page has to know before anything is drawn.

    Attributes:
        test: how many test images there are.
        taught: a name that is free for the next taught adapter.
    """

    run: str
    dataset: str
    test: Count
    base_errors: Count
    adapters: Many[AdapterFacts]
    taught: str


Phase = Literal["idle", "starting", "training", "taught", "keeping", "kept", "discarded", "cancelled", "failed"]


class LessonState(Message):
    """How a lesson stands.

    Attributes:
        seconds_left: None as long as nothing is known.
        lesson, verdict: as soon as the training is over.
        name: under which it was kept.
        problem: why it failed, or could not be kept.
    """

    phase: Phase = "idle"
    drawings: Count = 0
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    seconds_left: float | None = None
    lesson: LessonResult | None = None
    verdict: LessonVerdict | None = None
    name: str | None = None
    problem: str | None = None
