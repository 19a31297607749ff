"""The process that trains on drawings, so that the page stays responsive and a kill ends nothing else.

It opens the run, waits for drawings, trains, says what that came to, and then keeps the adapter or is ended.
"""

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from lora_mnist.datasets.drawings import Drawings
from lora_mnist.errors import LoraMnistError
from lora_mnist.evaluation.verdict import LessonResult
from lora_mnist.pipeline.teach import keep, teach
from lora_mnist.pipeline.workspace import Workspace, open_workspace
from lora_mnist.play.protocol import SIDE, LabelledDrawing
from lora_mnist.settings.request import Request
from lora_mnist.training.processes import without_interrupts
from lora_mnist.training.progress import Step

NICENESS = 10  # a stroke is answered first
BETWEEN_STEPS = 0.1  # seconds between two steps that are told


@dataclass(frozen=True)
class Opened:
    """It waits for drawings now."""


@dataclass(frozen=True)
class Finished:
    """The training is over."""

    lesson: LessonResult


@dataclass(frozen=True)
class Kept:
    """The adapter lies in the run."""

    name: str


Heard = Opened | Step | Finished | Kept | LoraMnistError  # the last: what was asked cannot be done


class Worker:
    """The process, as the server sees it.

    Args:
        heard: called with whatever it says, `ended` with its exit code when it has ended, both in a thread of their
            own.
    """

    def __init__(self, request: Request, heard: Callable[[Heard], None], ended: Callable[[int], None]):
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=work_for, args=(request, theirs), daemon=True)
        with without_interrupts():
            self._process.start()
        theirs.close()  # so that the pipe ends with the process
        threading.Thread(target=self._listen, args=(heard, ended), daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None  # it was started
        return self._process.pid

    def send(self, what: list[LabelledDrawing] | str) -> None:
        """Drawings to learn from, or the name to keep the adapter under. If it has ended, `ended` is what one hears."""
        with contextlib.suppress(OSError):
            self._ours.send(what)

    def end(self) -> None:
        """At once, whatever it does."""
        self._process.kill()

    def _listen(self, heard: Callable[[Heard], None], ended: Callable[[int], None]) -> None:
        try:
            while True:
                heard(self._ours.recv())
        except (EOFError, OSError):
            self._process.join()
            ended(self._process.exitcode or 0)


def work_for(request: Request, pipe: Connection) -> None:
    """What the process does: one lesson, then as many tries to keep it as it takes."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the server has ended
        try:
            work = open_workspace(request)
            pipe.send(Opened())
            taught = teach(work, _drawings(pipe.recv(), work), report=_told(pipe))
            pipe.send(Finished(taught.lesson))
        except LoraMnistError as error:
            pipe.send(error)
            return
        while True:
            name = pipe.recv()
            try:
                keep(work, taught, name)
                pipe.send(Kept(name))
                return
            except LoraMnistError as error:
                pipe.send(error)


def _drawings(lesson: list[LabelledDrawing], work: Workspace) -> Drawings:
    import torch

    pixels = torch.frombuffer(bytearray(b"".join(one.pixels for one in lesson)), dtype=torch.uint8)
    labels = torch.tensor([one.label for one in lesson])
    images = pixels.view(len(lesson), SIDE, SIDE)  # (K * 784) -> (K, 28, 28)
    return Drawings(images.to(work.device), labels.to(work.device))


def _told(pipe: Connection) -> Callable[[Step], None]:
    """Tells the server of a step now and then, and of the last one."""
    last = 0.0

    def tell(step: Step) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= BETWEEN_STEPS or step.step == step.steps:
            last = now
            pipe.send(step)

    return tell
