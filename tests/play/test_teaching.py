"""A lesson: what can be done with it in which phase, and what its process does."""

import asyncio
import functools
import os
import threading
from multiprocessing import Pipe

import pytest

from lora_mnist.errors import BusyError, DiskError, RunError, UsageError
from lora_mnist.evaluation.verdict import LessonResult, OnVal, Unseen
from lora_mnist.pipeline import Request
from lora_mnist.play.protocol import LabelledDrawing
from lora_mnist.play.teaching import Teacher, run_worker
from lora_mnist.training.progress import Step

DRAWING = LabelledDrawing(pixels=bytes(784), label=7)
STEP = Step(step=3, steps=80, loss=1.25, seconds_left=2.0)
RESULT = LessonResult(
    drawings=(2,) * 10,
    before=14,
    after=20,
    unseen=Unseen(images=20, before=14, after=19, fixed=6, broken=1, folds=3, steps=10),
    val=OnVal(images=500, before=20, after=23, fixed=(0,) * 10, broken=(3, *(0,) * 9)),
    scale=0.8,
)
PACKED = {"name": "this lesson"}
KILLED = -9  # by SIGKILL


class FakeWorker:
    """Notes what it receives, and sends what the test makes it send."""

    def __init__(self, request, on_event):
        self.on_event, self.received, self.is_killed = on_event, [], False

    def send(self, message):
        self.received.append(message)

    def kill(self):
        self.is_killed = True


class Lesson:
    """A teacher, and all workers that it has started."""

    def __init__(self):
        self.workers = []
        self.teacher = Teacher(Request(), self._start_worker)

    def _start_worker(self, *arguments):
        self.workers.append(FakeWorker(*arguments))
        return self.workers[-1]

    async def after(self, *events):
        """The state when the latest worker has sent these."""
        for event in events:
            self.workers[-1].on_event(event)
        await asyncio.sleep(0)
        return self.teacher.state


@pytest.fixture
def lesson():
    return Lesson()


@pytest.fixture
def teacher(lesson):
    return lesson.teacher


def in_loop(test):
    """The test, run in an event loop."""

    @functools.wraps(test)
    def run(**arguments):
        asyncio.run(test(**arguments))

    return run


@pytest.mark.parametrize("is_warm", [True, False])
@in_loop
async def test_from_drawings_to_an_adapter(lesson, teacher, is_warm):
    if is_warm:
        teacher.warm_up()
        teacher.warm_up()
    teacher.start([DRAWING], "tab1")
    assert (teacher.state.phase, teacher.state.tab) == ("starting", "tab1")
    (worker,) = lesson.workers
    assert worker.received == [[DRAWING]]
    state = await lesson.after(STEP)
    assert (state.phase, state.step, state.steps, state.loss) == ("training", STEP.step, STEP.steps, STEP.loss)
    state = await lesson.after(PACKED, RESULT)
    assert (state.phase, state.lesson, state.verdict) == ("taught", RESULT, RESULT.verdict)
    assert teacher.adapter == PACKED
    teacher.keep("mine")
    assert teacher.state.phase == "keeping"
    state = await lesson.after("saved")
    assert (state.phase, state.name, state.lesson, state.tab) == ("kept", "mine", RESULT, "tab1")
    assert teacher.adapter is None
    assert (worker.received, worker.is_killed) == ([[DRAWING], "mine"], True)


@pytest.mark.parametrize("events", [[], [STEP], [STEP, RESULT]])
@in_loop
async def test_a_second_lesson_has_to_wait_for_the_end_of_the_first(lesson, teacher, events):
    teacher.start([DRAWING])
    before = await lesson.after(*events)
    with pytest.raises(BusyError):
        teacher.start([DRAWING, DRAWING])
    assert teacher.state is before
    end, phase = (teacher.discard, "discarded") if RESULT in events else (teacher.cancel, "cancelled")
    end()
    assert lesson.workers[0].is_killed
    state = await lesson.after(STEP, RESULT, KILLED)  # sent before it was killed
    assert (state.phase, state.lesson) == (phase, None)
    with pytest.raises(RunError):
        teacher.keep("mine")
    teacher.start([DRAWING])
    assert len(lesson.workers) == 2


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([KILLED], "The training process was killed by signal 9 in the middle of the training."),
        ([STEP, RESULT, KILLED], "The training process was killed by signal 9 before the adapter was saved."),
        ([UsageError("Two drawings are too few.", "Draw more.")], "Two drawings are too few. Draw more."),
    ],
)
@in_loop
async def test_a_failure_is_reported_and_another_lesson_may_begin(lesson, teacher, events, problem):
    teacher.start([DRAWING])
    state = await lesson.after(*events)
    assert (state.phase, state.problem) == ("failed", f"{problem} The run is as it was before.")
    teacher.start([DRAWING])
    assert len(lesson.workers) == 2


@in_loop
async def test_a_worker_killed_before_the_lesson_is_replaced(lesson, teacher):
    teacher.warm_up()
    assert (await lesson.after(KILLED)).phase == "idle"
    teacher.start([DRAWING])
    assert len(lesson.workers) == 2


@in_loop
async def test_an_adapter_that_cannot_be_saved_can_be_saved_under_another_name(lesson, teacher):
    teacher.start([DRAWING])
    await lesson.after(RESULT)
    teacher.keep("mine")
    state = await lesson.after(DiskError("Cannot write.", "Make room."))
    assert (state.phase, state.lesson, state.name) == ("taught", RESULT, None)
    assert state.problem == "It was not kept. Cannot write. Make room."
    teacher.keep("other")
    assert (await lesson.after("saved")).name == "other"


@in_loop
async def test_a_reader_gets_the_current_state_and_every_change_until_the_end(lesson, teacher):
    phases = []

    async def read():
        async for state in teacher.states():
            phases.append(state.phase)

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    teacher.start([DRAWING])
    await asyncio.sleep(0)
    await lesson.after(STEP)
    await asyncio.sleep(0)
    teacher.close()
    await asyncio.wait_for(reader, 5)
    assert phases == ["idle", "starting", "training"]
    assert lesson.workers[0].is_killed
    teacher.warm_up()
    assert len(lesson.workers) == 1


@pytest.fixture
def worker(monkeypatch):
    """Runs the process's work in a thread, and returns the other end of its pipe; the thread ends with the test."""
    monkeypatch.setattr(os, "nice", lambda more: None)
    started = []

    def start(request):
        ours, theirs = Pipe()
        thread = threading.Thread(target=run_worker, args=(request, theirs))
        thread.start()
        started.append((thread, ours, theirs))
        return ours

    yield start
    for thread, ours, theirs in started:
        ours.close()
        thread.join()
        theirs.close()


def test_the_process_reports_its_steps_and_saves_at_the_second_try(worker, run_copy, adapter):
    pipe = worker(Request(run=run_copy))
    pipe.send([LabelledDrawing(pixels=bytes([40 * i] * 784), label=i) for i in range(6)])
    steps = []
    while isinstance(event := pipe.recv(), Step):
        steps.append(event)
    assert steps[-1].step == steps[-1].steps
    assert event["name"] == "this lesson"  # to be tried before it is kept
    event = pipe.recv()
    assert isinstance(event, LessonResult)
    assert event.drawings == (1,) * 6 + (0,) * 4
    pipe.send(adapter.name)
    assert isinstance(pipe.recv(), RunError)  # there is one of that name
    pipe.send("mine")
    assert pipe.recv() == "saved"
    assert (run_copy / "adapters" / "mine" / "manifest.json").is_file()


def test_the_process_reports_a_run_that_it_cannot_open(worker, tmp_path):
    error = worker(Request(run=tmp_path)).recv()
    assert isinstance(error, RunError)
    assert "There is no base" in str(error)


def test_the_process_ends_when_the_server_has_ended(worker, run_copy):
    pipe = worker(Request(run=run_copy))
    pipe.send([DRAWING, DRAWING])
    pipe.close()  # and the fixture waits for its end
