"""What the page and the server send each other, as JSON, and how strokes become a picture.

Everything that comes in has a largest size here, in numbers; `server` limits the bytes of a request.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import ConfigDict, Field, model_validator

from lora_mnist.evaluation.verdict import LessonResult, LessonVerdict
from lora_mnist.settings.config import Count, Digit, Document, Many, Maybe, Name

# The page has the same limits; tests/play/test_protocol.py compares them.
SIDE = 28
CANVAS = 1000  # coordinates of a stroke go from 0 to this, right and down
MAX_STROKES, MAX_POINTS = 100, 5000  # of one drawing
MAX_DRAWINGS = 500  # of one lesson
MAX_ADAPTERS = 16
MAX_STRENGTH = 1.5

RASTER = 280  # pixels a side of a drawing: ten for each pixel that the network sees
PEN = 84  # width in units of the canvas; two to three pixels of a digit that fills it, as in MNIST

Coordinate = Annotated[int, Field(ge=0, le=CANVAS)]
Stroke = Annotated[Many[tuple[Coordinate, Coordinate]], Field(min_length=1, max_length=MAX_POINTS)]
Pixels = Annotated[bytes, Field(min_length=SIDE * SIDE, max_length=SIDE * SIDE)]  # 28 rows of 28, 255 is ink


class Message(Document):
    """Base of all requests and responses; bytes are sent as hexadecimal digits."""

    model_config = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")


class AdapterSelection(Message):
    """Which adapters are on, and how strongly."""

    adapters: Annotated[Many[Name], Field(max_length=MAX_ADAPTERS)] = ()
    strength: float = Field(default=1.0, ge=0, le=MAX_STRENGTH)


class PredictRequest(AdapterSelection):
    """Classify a drawing, or the test image of an index."""

    strokes: Annotated[Many[Stroke], Field(max_length=MAX_STROKES)] | None = None
    index: Count | None = None

    @model_validator(mode="after")
    def _one_picture(self) -> "PredictRequest":
        if (self.strokes is None) == (self.index is None):
            raise ValueError("must have either strokes or an index")
        if sum(map(len, self.strokes or ())) > MAX_POINTS:
            raise ValueError(f"must have no more than {MAX_POINTS} points")
        return self


class SearchRequest(AdapterSelection):
    """Find the next test image, going round after `after`, that the base gets wrong or the adapters break."""

    which: Literal["base-wrong", "adapters-break"]
    after: int = Field(default=-1, ge=-1, lt=2**31)


class LabelledDrawing(Message):
    """A drawing as the network saw it, and the digit that it is."""

    pixels: Pixels
    label: Digit


class TeachRequest(Message):
    """Train on these drawings."""

    drawings: Annotated[Many[LabelledDrawing], Field(min_length=1, max_length=MAX_DRAWINGS)]


class KeepRequest(Message):
    """Save the taught adapter under this name."""

    name: Name


class Prediction(Message):
    """The likeliest digit, and the probability of each."""

    digit: Digit
    probabilities: tuple[float, ...]


class PredictResponse(Message):
    """What the networks predict for one picture."""

    pixels: Pixels | None = None  # the networks' input; None if the drawing is no digit, and `problem` says why
    problem: str | None = None
    index: Count | None = None  # of a test image, and so is its label
    label: Digit | None = None
    base: Prediction | None = None
    adapted: Prediction | None = None  # None if no adapter is on


class AdapterInfo(Message):
    """An adapter that can be chosen; or one that cannot, and `problem` says why."""

    name: str
    summary: str = ""
    on_top_of: Many[str] = ()
    problem: Maybe[str] = None


class RunInfo(Message):
    """What the page shows before anything is drawn."""

    run: str
    dataset: str
    test: Count  # number of test images
    base_errors: Count
    rare: str | None  # what the base saw of its rare digit, if it has one
    adapters: Many[AdapterInfo]
    taught: str  # a free name for the next taught adapter


Phase = Literal["idle", "starting", "training", "taught", "keeping", "kept", "discarded", "cancelled", "failed"]


class LessonState(Message):
    """How far a lesson is."""

    phase: Phase = "idle"
    drawings: Count = 0
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    seconds_left: float | None = None  # None until it can be estimated
    lesson: LessonResult | None = None  # from the end of the training, and so is its verdict
    verdict: LessonVerdict | None = None
    name: str | None = None  # under which it is saved
    problem: str | None = None  # why it failed, or could not be saved


def rasterize(strokes: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """uint8 (280, 280), ink 255 on 0, of strokes of points (right, down) from 0 to 1000. A single point is a dot."""
    image = Image.new("L", (RASTER, RASTER))
    pen, scale = ImageDraw.Draw(image), RASTER / CANVAS
    radius = PEN * scale / 2
    for stroke in strokes:
        points = [(x * scale, y * scale) for x, y in stroke]
        pen.line(points, fill=255, width=round(2 * radius), joint="curve")
        for x, y in (points[0], points[-1]):  # round ends
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(image)
