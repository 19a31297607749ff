"""What the page and the server send each other, as JSON; `one_file` says what an adapter is in it.

Everything that comes in has a largest size here, in numbers; `server` limits the bytes of a request.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from lora_mnist.evaluation.verdict import LessonResult, LessonVerdict
from lora_mnist.settings.config import Count, Digit, Document, Many, Name

# The page has the same limits; tests/play/test_protocol.py compares them.
SIDE = 28
MAX_DRAWINGS = 500  # of one lesson

Pixels = Annotated[bytes, Field(min_length=SIDE * SIDE, max_length=SIDE * SIDE)]  # 28 rows of 28, 255 is ink


class Message(Document):
    """Base of all requests and responses; bytes are sent as hexadecimal digits."""

    model_config = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")


class LabelledDrawing(Message):
    """A drawing as the network saw it, and the digit that it is."""

    pixels: Pixels
    label: Digit


class TeachRequest(Message):
    """Train on these drawings, which a tab of the browser sends."""

    drawings: Annotated[Many[LabelledDrawing], Field(min_length=1, max_length=MAX_DRAWINGS)]
    tab: Name | None = None


class KeepRequest(Message):
    """Save the taught adapter under this name."""

    name: Name


Phase = Literal["idle", "starting", "training", "taught", "keeping", "kept", "discarded", "cancelled", "failed"]


class LessonState(Message):
    """How far a lesson is."""

    phase: Phase = "idle"
    tab: str | None = None  # that began it; others may follow it too
    drawings: Count = 0
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    seconds_left: float | None = None  # None until it can be estimated
    lesson: LessonResult | None = None  # from the end of the training, and so is its verdict
    verdict: LessonVerdict | None = None
    name: str | None = None  # under which it is saved
    problem: str | None = None  # why it failed, or could not be saved
