"""The page's lessons, one at a time: what can be asked of them, how they stand, and the process that trains.

Training in another process lets Cancel (or the system) kill it without further damage. The process opens the run, waits
for drawings, trains, and sends what it taught. The server holds that until somebody keeps or discards it.
"""

import contextlib
import multiprocessing
import os
import pickle
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field

from lora_mnist.datasets.drawings import SIDE, Drawings
from lora_mnist.errors import BusyError, LoraMnistError, RunError
from lora_mnist.evaluation.verdict import LessonResult, LessonVerdict
from lora_mnist.pipeline.teach import TaughtAdapter, keep, teach
from lora_mnist.pipeline.workspace import open_workspace
from lora_mnist.settings.config import Digit, Document, Many, Name
from lora_mnist.settings.request import Request
from lora_mnist.training.device import without_interrupts
from lora_mnist.training.progress import Step

MAX_DRAWINGS = 500  # of one lesson; the page has the same limit
NICENESS = 10  # lower priority than the browser, in which the networks answer strokes

Phase = Literal["idle", "starting", "training", "taught", "keeping", "kept", "discarded", "cancelled", "failed"]


class LabelledDrawing(Document):
    """A drawing as the network saw it, 28 rows of 28 in hexadecimal digits, ff is ink; and the digit that it is."""

    model_config = ConfigDict(val_json_bytes="hex")

    pixels: Annotated[bytes, Field(min_length=SIDE * SIDE, max_length=SIDE * SIDE)]
    label: Digit


class TeachRequest(Document):
    """Train on these drawings, which a tab of the browser sends."""

    drawings: Annotated[Many[LabelledDrawing], Field(min_length=1, max_length=MAX_DRAWINGS)]
    tab: Name | None = None


class KeepRequest(Document):
    """Save the taught adapter under this name."""

    name: Name


class LessonState(Document):
    """How far a lesson is."""

    phase: Phase = "idle"
    tab: str | None = None  # that began it; others may follow it too
    progress: Step | None = None  # None before the first step
    lesson: LessonResult | None = None  # from the end of the training, and so is its verdict
    verdict: LessonVerdict | None = None
    name: str | None = None  # under which it is saved
    problem: str | None = None  # why it failed, or could not be saved


def start_process(request: Request) -> tuple[BaseProcess, Connection]:
    """A process that runs `train`, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=train, args=(request, theirs), daemon=True)
    with without_interrupts():
        process.start()
    theirs.close()  # so that the pipe ends with the process
    return process, pipe


def train(request: Request, pipe: Connection) -> None:
    """Train on the drawings that come, and send steps, then a `TaughtAdapter`, or a LoraMnistError if there is none."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the server has ended
        result: TaughtAdapter | LoraMnistError
        try:
            work = open_workspace(request)
            lesson: TeachRequest = pipe.recv()
            pixels = torch.frombuffer(bytearray(b"".join(one.pixels for one in lesson.drawings)), dtype=torch.uint8)
            images = pixels.view(-1, SIDE, SIDE)  # (K * 784) -> (K, 28, 28)
            labels = torch.tensor([one.label for one in lesson.drawings])
            result = teach(work, Drawings(images.to(work.device), labels.to(work.device)), pipe.send)
        except LoraMnistError as error:
            result = error
        pipe.send_bytes(pickle.dumps(result))  # `send` would share the tensors' memory, which ends with the process


class Teacher:
    """The current lesson and its process; used by many threads at once."""

    def __init__(self, request: Request):
        self.state = LessonState()
        self.taught: TaughtAdapter | None = None  # while nobody has decided on it
        self.process: BaseProcess | None = None
        self._request = replace(request, quiet=True)
        self._changed = threading.Condition()
        self._saving = threading.Lock()

    def state_after(self, seen: LessonState | None, seconds: float) -> LessonState:
        """The state, as soon as it is another than `seen`, or after `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self.state is not seen, seconds)
            return self.state

    def warm_up(self) -> None:
        """Start the process before it is needed, since opening the run takes seconds."""
        with self._changed:
            if self.process is None or not self.process.is_alive():
                self.process, self._pipe = start_process(self._request)

    def start(self, lesson: TeachRequest) -> None:
        """Train. Raises BusyError if a lesson is running, or is over and neither kept nor discarded."""
        with self._changed:
            if self.state.phase in ("starting", "training", "keeping"):
                raise BusyError("A lesson is running already.", "Wait until it is done, or cancel it.")
            if self.state.phase == "taught":
                raise BusyError("The last lesson is waiting for a decision.", "Keep it or discard it first.")
            self.warm_up()
            self._set(LessonState(phase="starting", tab=lesson.tab))
            follow = threading.Thread(target=self._follow, args=(self.process, self._pipe, lesson), daemon=True)
        follow.start()

    def keep(self, name: str) -> None:
        """Save the taught adapter in the run; the state says whether that worked. Raises RunError if there is none."""
        with self._changed:
            if self.state.phase != "taught" or self.taught is None:
                raise RunError("There is nothing to keep.", "Teach first.")
            taught = self.taught
            self._update(phase="keeping", name=name, problem=None)
        with self._saving:
            try:
                keep(open_workspace(self._request), taught, name)
                self._finish("kept", name=name)
            except Exception as error:  # the name is taken, or the disk is full
                self._update(phase="taught", name=None, problem=f"It was not kept. {error}")
                if not isinstance(error, LoraMnistError):
                    raise

    def discard(self) -> None:
        """End the training, or forget what it taught. Raises RunError if there is neither."""
        with self._changed:
            if self.state.phase not in ("starting", "training", "taught"):
                raise RunError("There is nothing to discard.", "Teach first.")
            self.close()
            self._finish("discarded" if self.taught else "cancelled")

    def close(self) -> None:
        """End the process, once what is being saved is saved."""
        with self._saving:
            if self.process:
                self.process.kill()
            self.process = None

    def _follow(self, process: BaseProcess, pipe: Connection, lesson: TeachRequest) -> None:
        """In a thread: hand over the drawings, and take what the process sends until it ends or is cancelled."""
        with contextlib.suppress(OSError):  # it has ended, and may have said why
            pipe.send(lesson)
        while process is self.process:  # or it was cancelled
            try:
                event = pipe.recv()
            except (EOFError, OSError):
                process.join()
                code = process.exitcode or 0
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                event = f"The training process {how} in the middle of the training."
            with self._changed:
                if process is not self.process:
                    break
                match event:
                    case Step():
                        self._update(phase="training", progress=event)
                    case TaughtAdapter():
                        self.process, self.taught = None, event  # it ends by itself; the next lesson has another
                        self._update(phase="taught", lesson=event.lesson, verdict=event.lesson.verdict)
                    case _:
                        self.process = None
                        self._finish("failed", problem=f"{event} The run is as it was before.")

    def _finish(self, phase: Phase, **fields: Any) -> None:
        self.taught = None
        self._set(LessonState(phase=phase, tab=self.state.tab, **fields))

    def _update(self, **fields: Any) -> None:
        self._set(self.state.model_copy(update=fields))

    def _set(self, state: LessonState) -> None:
        with self._changed:
            self.state = state
            self._changed.notify_all()
