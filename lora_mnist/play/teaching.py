"""Trains on the page's drawings, one lesson at a time, in a process of its own.

Training in another process keeps the page responsive, and lets Cancel (or the system) kill it without further damage.
The process opens the run, waits for drawings, trains, reports the result, then saves the adapter or is killed.
"""

import asyncio
import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch

from lora_mnist.datasets.drawings import Drawings
from lora_mnist.errors import BusyError, LoraMnistError, RunError
from lora_mnist.evaluation.verdict import LessonResult
from lora_mnist.pipeline.teach import NAME as TAUGHT
from lora_mnist.pipeline.teach import keep, teach
from lora_mnist.pipeline.workspace import open_workspace
from lora_mnist.play.one_file import pack_adapter
from lora_mnist.play.protocol import SIDE, LabelledDrawing, LessonState, Phase
from lora_mnist.settings.request import Request
from lora_mnist.training.device import without_interrupts
from lora_mnist.training.progress import Step

NICENESS = 10  # lower priority than the browser, in which the networks answer strokes
REPORT_INTERVAL = 0.1  # seconds between two training steps that are reported
RUNNING: tuple[Phase, ...] = ("starting", "training", "keeping")
UNCHANGED = "The run is as it was before."
UNKEPT = "this lesson"  # what the page calls an adapter that is not kept yet; no kept one can have a space in its name


# In this order: steps, the adapter for the page, unless the guard allows none, the result, "saved"; an error whenever a
# request cannot be met; at last the exit code.
WorkerEvent = Literal["saved"] | Step | dict[str, Any] | LessonResult | LoraMnistError | int


class Worker:
    """The training process, as the server sees it.

    Args:
        on_event: called in a thread of its own with everything that the process sends, and at last with its exit code.
    """

    def __init__(self, request: Request, on_event: Callable[[WorkerEvent], None]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_worker, args=(request, theirs), daemon=True)
        with without_interrupts():
            self.process.start()
        theirs.close()  # so that the pipe ends with the process
        threading.Thread(target=self._listen, args=(on_event,), daemon=True).start()

    def send(self, message: Sequence[LabelledDrawing] | str) -> None:
        """Drawings to train on, or the name to save the adapter under.

        A pipe holds less than a lesson, and the process may not read yet, so a thread waits for it.
        """

        def send() -> None:
            with contextlib.suppress(OSError):  # it has ended, which its exit code reports
                self._pipe.send(message)

        threading.Thread(target=send, daemon=True).start()

    def kill(self) -> None:
        self.process.kill()

    def _listen(self, on_event: Callable[[WorkerEvent], None]) -> None:
        try:
            while True:
                on_event(self._pipe.recv())
        except (EOFError, OSError):
            self.process.join()
            on_event(self.process.exitcode or 0)


def run_worker(request: Request, pipe: Connection) -> None:
    """Runs in the process: trains on one lesson, then tries to save it under each name it receives, until one works."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    last_report = 0.0

    def report(step: Step) -> None:
        nonlocal last_report
        now = time.monotonic()
        if now - last_report >= REPORT_INTERVAL or step.step == step.steps:
            last_report = now
            pipe.send(step)

    with contextlib.suppress(EOFError, BrokenPipeError):  # the server has ended
        try:
            work = open_workspace(request)
            lesson: Sequence[LabelledDrawing] = pipe.recv()
            pixels = torch.frombuffer(bytearray(b"".join(one.pixels for one in lesson)), dtype=torch.uint8)
            images = pixels.view(len(lesson), SIDE, SIDE)  # (K * 784) -> (K, 28, 28)
            labels = torch.tensor([one.label for one in lesson])
            taught = teach(work, Drawings(images.to(work.device), labels.to(work.device)), report)
            if taught.lesson.scale is not None:
                packed = pack_adapter(taught.on(work.base), TAUGHT)
                pipe.send(packed | {"name": UNKEPT, "summary": "not kept yet"})
            pipe.send(taught.lesson)
        except LoraMnistError as error:
            pipe.send(error)
            return
        while True:
            name = pipe.recv()
            try:
                keep(work, taught, name)
                pipe.send("saved")
                return
            except LoraMnistError as error:  # the name is taken, or the disk is full
                pipe.send(error)


class Teacher:
    """The current lesson and its process, which `start_worker` starts.

    Used from the event loop alone, to which the process's events come too. `adapter` is what it taught, for the page to
    try, while nobody has decided.
    """

    def __init__(self, request: Request, start_worker: Callable[..., Worker] = Worker):
        self.state = LessonState()
        self.adapter: dict[str, Any] | None = None
        self._request = replace(request, quiet=True)
        self._start_worker = start_worker
        self.worker: Worker | None = None
        self._changed = asyncio.Event()
        self._is_closed = False

    def warm_up(self) -> None:
        """Start the worker before it is needed, since opening the run takes seconds."""
        if self.worker is not None or self._is_closed:
            return
        loop = asyncio.get_running_loop()
        worker: Worker

        def on_event(event: WorkerEvent) -> None:  # in the worker's thread
            with contextlib.suppress(RuntimeError):  # the loop has ended
                # what a cancelled worker had sent before it was killed is dropped
                loop.call_soon_threadsafe(lambda: self._handle(event) if worker is self.worker else None)

        worker = self.worker = self._start_worker(self._request, on_event)

    def start(self, drawings: Sequence[LabelledDrawing], tab: str | None = None) -> None:
        """Train. Raises BusyError if a lesson is running, or is over and neither kept nor discarded."""
        if self.state.phase in RUNNING:
            raise BusyError("A lesson is running already.", "Wait until it is done, or cancel it.")
        if self.state.phase == "taught":
            raise BusyError("The last lesson is waiting for a decision.", "Keep it or discard it first.")
        self._set(LessonState(phase="starting", tab=tab, drawings=len(drawings)))
        self.warm_up()
        if self.worker:  # the server may be about to end
            self.worker.send(drawings)

    def cancel(self) -> None:
        """End the training. Raises RunError if there is none."""
        if self.state.phase not in ("starting", "training"):
            raise RunError("There is no training to cancel.", "It is over, or was never begun.")
        self._finish("cancelled")

    def keep(self, name: str) -> None:
        """Save the taught adapter in the run. Raises RunError if there is none."""
        if self.state.phase != "taught" or self.worker is None:
            raise RunError("There is nothing to keep.", "Teach first.")
        self.worker.send(name)
        self._update(phase="keeping", name=name, problem=None)

    def discard(self) -> None:
        """Forget the taught adapter. Raises RunError if there is none."""
        if self.state.phase != "taught":
            raise RunError("There is nothing to discard.", "Teach first.")
        self._finish("discarded")

    def close(self) -> None:
        """End the worker, and all iterators of `states`."""
        self._is_closed = True
        self._kill_worker()
        self._set(self.state)

    async def states(self) -> AsyncIterator[LessonState]:
        """The current state, then each new one, until `close`. A slow reader misses those in between."""
        while not self._is_closed:
            changed = self._changed  # taken first: what changes while the reader is busy ends the waiting
            yield self.state
            await changed.wait()

    def _handle(self, event: WorkerEvent) -> None:
        phase = self.state.phase
        match event:
            case Step():
                self._update(phase="training", **asdict(event))
            case dict():
                self.adapter = event
            case LessonResult():
                self._update(phase="taught", lesson=event, verdict=event.verdict)
            case "saved":
                self._finish("kept", name=self.state.name, lesson=self.state.lesson)
            case LoraMnistError() if phase == "keeping":  # another name may work
                self._update(phase="taught", name=None, problem=f"It was not kept. {event}")
            case LoraMnistError() if phase in RUNNING:
                self._finish("failed", problem=f"{event} {UNCHANGED}")
            case int(code) if phase in (*RUNNING, "taught"):
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                doing = {"keeping": "while the adapter was being saved", "taught": "before the adapter was saved"}
                when = doing.get(phase, "in the middle of the training")
                self._finish("failed", problem=f"The training process {how} {when}. {UNCHANGED}")
            case int():
                self._kill_worker()

    def _finish(self, phase: Phase, **fields: Any) -> None:
        self._kill_worker()
        self.adapter = None
        self._set(LessonState(phase=phase, tab=self.state.tab, drawings=self.state.drawings, **fields))

    def _kill_worker(self) -> None:
        if self.worker:
            self.worker.kill()
        self.worker = None

    def _update(self, **fields: Any) -> None:
        self._set(self.state.model_copy(update=fields))

    def _set(self, state: LessonState) -> None:
        """Show a new state to all iterators of `states`; each waits for the event that was current when it looked."""
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
