"""The one lesson that the playground has at a time: how it stands, and what can be done with it now."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lora_mnist.errors import BusyError, LoraMnistError, RunError
from lora_mnist.play.protocol import LabelledDrawing, LessonState, Phase
from lora_mnist.play.worker import Finished, Heard, Kept, Opened, Worker
from lora_mnist.settings.request import Request
from lora_mnist.training.progress import Step

RUNNING: tuple[Phase, ...] = ("starting", "training", "keeping")
AS_BEFORE = "The run is as it was before."


class Teacher:
    """Used from the event loop alone; what the worker says comes in there too."""

    def __init__(self, request: Request):
        self.state = LessonState()
        self._request = replace(request, quiet=True)
        self._worker: Worker | None = None
        self._is_open = False  # whether the worker waits for drawings
        self._lesson: list[LabelledDrawing] = []
        self._changed = asyncio.Event()
        self._is_over = False

    @property
    def pid(self) -> int | None:
        """Of the worker, if there is one."""
        return self._worker.pid if self._worker else None

    def be_ready(self) -> None:
        """Start the worker, which takes seconds, before it is needed."""
        if self._worker is None and not self._is_over:
            loop = asyncio.get_running_loop()
            worker: Worker

            def pass_on(method: Any, what: Any) -> None:
                with suppress(RuntimeError):  # the loop has ended, and with it whoever would hear
                    loop.call_soon_threadsafe(lambda: method(what) if worker is self._worker else None)

            worker = self._worker = Worker(
                self._request, lambda heard: pass_on(self._hear, heard), lambda code: pass_on(self._end, code)
            )

    def start(self, drawings: list[LabelledDrawing]) -> None:
        """Teach. Raises BusyError if a lesson is running, or is over and neither kept nor discarded."""
        if self.state.phase in RUNNING:
            raise BusyError("A lesson is running already.", "Wait until it is done, or cancel it.")
        if self.state.phase == "taught":
            raise BusyError("The last lesson is waiting for a decision.", "Keep it or discard it first.")
        self._set(LessonState(phase="starting", drawings=len(drawings)))
        self._lesson = drawings
        self.be_ready()
        if self._is_open:
            self._send_lesson()

    def cancel(self) -> None:
        """End the training. Raises RunError if there is none."""
        if self.state.phase not in ("starting", "training"):
            raise RunError("There is no training to cancel.", "It is over, or was never begun.")
        self._leave("cancelled")

    def keep(self, name: str) -> None:
        """Save what was taught as an adapter of the run. Raises RunError if there is nothing to keep."""
        self._require_taught("keep")
        assert self._worker is not None  # it would have been `_end`ed
        self._worker.send(name)
        self._update(phase="keeping", name=name, problem=None)

    def discard(self) -> None:
        """Forget what was taught. Raises RunError if there is nothing."""
        self._require_taught("discard")
        self._leave("discarded")

    def close(self) -> None:
        """End the worker, and all streams of `states`."""
        self._is_over = True
        self._drop_worker()
        self._set(self.state)

    async def states(self) -> AsyncIterator[LessonState]:
        """How it stands now, and again whenever that changes, until `close`."""
        shown: LessonState | None = None
        while not self._is_over:
            changed = self._changed
            if self.state is not shown:
                shown = self.state
                yield shown
            else:
                await changed.wait()

    def _hear(self, heard: Heard) -> None:
        match heard:
            case Opened():
                self._is_open = True
                if self.state.phase == "starting":
                    self._send_lesson()
            case Step():
                told = {"step": heard.step, "steps": heard.steps, "loss": heard.loss}
                self._update(phase="training", seconds_left=heard.seconds_left, **told)
            case Finished():
                self._update(phase="taught", lesson=heard.lesson, verdict=heard.lesson.verdict)
            case Kept():
                self._leave("kept", name=heard.name, lesson=self.state.lesson)
            case LoraMnistError() if self.state.phase == "keeping":
                self._update(phase="taught", name=None, problem=f"It was not kept. {heard}")
            case LoraMnistError() if self.state.phase in RUNNING:
                self._leave("failed", problem=f"{heard} {AS_BEFORE}")

    def _end(self, code: int) -> None:
        """The worker has ended by itself, or somebody killed it."""
        doing = {"keeping": "while the adapter was being saved", "taught": "before the adapter was saved"}
        when = doing.get(self.state.phase, "in the middle of the training")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self.state.phase in (*RUNNING, "taught"):
            self._leave("failed", problem=f"The training process {how} {when}. {AS_BEFORE}")
        else:
            self._drop_worker()

    def _send_lesson(self) -> None:
        assert self._worker is not None  # it is open
        self._worker.send(self._lesson)
        self._lesson = []

    def _require_taught(self, action: str) -> None:
        if self.state.phase != "taught":
            raise RunError(f"There is nothing to {action}.", "Teach first.")

    def _leave(self, phase: Phase, **facts: Any) -> None:
        """A lesson is over, and with it its process."""
        self._drop_worker()
        self._set(LessonState(phase=phase, drawings=self.state.drawings, **facts))

    def _drop_worker(self) -> None:
        worker, self._worker, self._is_open = self._worker, None, False
        if worker:
            worker.end()

    def _update(self, **facts: Any) -> None:
        self._set(self.state.model_copy(update=facts))

    def _set(self, state: LessonState) -> None:
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
