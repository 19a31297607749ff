"""A lesson: what can be done with it in which phase, and what its process does."""

import os
import pickle
import threading
from multiprocessing import Pipe

import pytest

from lora_mnist.datasets.drawings import Drawings
from lora_mnist.errors import BusyError, RunError, UsageError
from lora_mnist.pipeline import Request, open_workspace
from lora_mnist.pipeline.teach import teach
from lora_mnist.play import teaching
from lora_mnist.play.server import run_now
from lora_mnist.play.teaching import LabelledDrawing, Teacher, TeachRequest, train
from lora_mnist.training.progress import Step

DRAWING = LabelledDrawing(pixels=bytes(784), label=7)
LESSON = TeachRequest(drawings=(DRAWING,), tab="tab1")
STEP = Step(step=3, steps=80, loss=1.25, seconds_left=2.0)
KILLED = -9  # by SIGKILL


class FakeProcess:
    """Sends what the test makes it send."""

    def __init__(self):
        self.ours, self.pipe = Pipe()
        self.exitcode, self.is_killed = None, False

    def is_alive(self):
        return self.exitcode is None

    def end(self, exitcode):
        self.exitcode = exitcode
        self.pipe.close()

    def kill(self):
        self.is_killed = True

    def join(self):
        pass


class Lesson:
    """A teacher, and all processes that it has started."""

    def __init__(self, request):
        self.processes, self.teacher = [], Teacher(request)

    def start_process(self, request):
        self.processes.append(FakeProcess())
        return self.processes[-1], self.processes[-1].ours

    def after(self, *events):
        """The state when the latest process has sent these: one ends it by a number."""
        for event in events:
            before, process = self.teacher.state, self.processes[-1]
            process.end(event) if isinstance(event, int) else process.pipe.send_bytes(pickle.dumps(event))
            self.teacher.state_after(before, 20)
        return self.teacher.state


@pytest.fixture
def lesson(monkeypatch, run_copy):
    lesson = Lesson(Request(run=run_copy))
    monkeypatch.setattr(teaching, "start_process", lesson.start_process)
    return lesson


@pytest.fixture
def teacher(lesson):
    return lesson.teacher


@pytest.fixture(scope="module")
def taught(finished_run):
    """What a process sends at last."""
    work = open_workspace(Request(run=finished_run, options={"teach": {"steps": 2, "guard": "none"}}))
    test = work.dataset.test
    return teach(work, Drawings(test.images[:3].cpu(), test.labels[:3].cpu()))


@pytest.mark.parametrize("is_warm", [True, False])
def test_from_drawings_to_an_adapter(lesson, teacher, taught, adapter, is_warm):
    if is_warm:
        teacher.warm_up()
        teacher.warm_up()
    teacher.start(LESSON)
    assert (teacher.state.phase, teacher.state.tab) == ("starting", "tab1")
    (process,) = lesson.processes
    assert process.pipe.recv() == LESSON
    state = lesson.after(STEP)
    assert (state.phase, state.progress) == ("training", STEP)
    state = lesson.after(taught)
    assert (state.phase, state.lesson, state.verdict) == ("taught", taught.lesson, taught.lesson.verdict)
    work = open_workspace(Request(run=adapter.parents[1]))
    assert run_now(work, teacher.taught)["adapters"][-1]["name"] == "this lesson"  # to be tried before it is kept
    teacher.keep(adapter.name)
    assert (teacher.state.phase, teacher.state.name) == ("taught", None)  # there is one of that name
    assert teacher.state.problem.startswith("It was not kept. ")
    teacher.keep("mine")
    assert (teacher.state.phase, teacher.state.name, teacher.state.tab) == ("kept", "mine", "tab1")
    assert teacher.taught is None
    assert (adapter.parent / "mine" / "manifest.json").is_file()


@pytest.mark.parametrize("phase", ["starting", "training", "taught"])
def test_a_second_lesson_has_to_wait_for_the_end_of_the_first(lesson, teacher, taught, phase):
    teacher.start(LESSON)
    before = lesson.after(*{"starting": [], "training": [STEP], "taught": [STEP, taught]}[phase])
    assert before.phase == phase
    with pytest.raises(BusyError):
        teacher.start(LESSON)
    assert teacher.state is before
    if phase != "taught":
        with pytest.raises(RunError):
            teacher.keep("mine")
    teacher.discard()
    if phase != "taught":
        assert lesson.processes[0].is_killed
        lesson.processes[0].pipe.send_bytes(pickle.dumps(taught))  # it was on its way
    assert teacher.state.phase == ("discarded" if phase == "taught" else "cancelled")
    with pytest.raises(RunError):
        teacher.keep("mine")
    teacher.start(LESSON)
    assert len(lesson.processes) == 2
    assert teacher.state.phase == "starting"


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([KILLED], "The training process was killed by signal 9 in the middle of the training."),
        ([STEP, 1], "The training process ended with exit code 1 in the middle of the training."),
        ([UsageError("Two drawings are too few.", "Draw more.")], "Two drawings are too few. Draw more."),
    ],
)
def test_a_failure_is_reported_and_another_lesson_may_begin(lesson, teacher, events, problem):
    teacher.start(LESSON)
    state = lesson.after(*events)
    assert (state.phase, state.problem) == ("failed", f"{problem} The run is as it was before.")
    teacher.start(LESSON)
    assert len(lesson.processes) == 2


def test_a_process_killed_before_the_lesson_is_replaced(lesson, teacher):
    teacher.warm_up()
    lesson.processes[0].end(KILLED)
    teacher.start(LESSON)
    assert len(lesson.processes) == 2
    teacher.close()
    assert lesson.processes[1].is_killed


def test_the_end_waits_for_an_adapter_that_is_being_saved(lesson, teacher, taught, monkeypatch):
    order = []
    ending = threading.Thread(target=lambda: (teacher.close(), order.append("ended")))

    def save(*_):
        ending.start()
        ending.join(0.2)
        order.append("saved")

    monkeypatch.setattr(teaching, "keep", save)
    teacher.start(LESSON)
    lesson.after(taught)
    teacher.keep("mine")
    ending.join()
    assert order == ["saved", "ended"]


def test_a_reader_gets_the_current_state_and_waits_for_the_next(teacher):
    idle = teacher.state_after(None, 20)
    assert idle.phase == "idle"
    assert teacher.state_after(idle, 0) is idle
    found = []
    reader = threading.Thread(target=lambda: found.append(teacher.state_after(idle, 20).phase))
    reader.start()
    teacher.start(LESSON)
    reader.join()
    assert found == ["starting"]


@pytest.fixture
def process(monkeypatch):
    """Runs the process's work in a thread, and returns the other end of its pipe; the thread ends with the test."""
    monkeypatch.setattr(os, "nice", lambda more: None)
    started = []

    def start(request):
        ours, theirs = Pipe()
        thread = threading.Thread(target=train, args=(request, theirs))
        thread.start()
        started.append((thread, ours, theirs))
        return ours

    yield start
    for thread, ours, theirs in started:
        ours.close()
        thread.join()
        theirs.close()


def test_the_process_reports_its_steps_and_what_it_taught(process, finished_run):
    pipe = process(Request(run=finished_run))
    drawings = [LabelledDrawing(pixels=bytes([40 * i] * 784), label=i) for i in range(6)]
    pipe.send(TeachRequest(drawings=drawings))
    steps = []
    while isinstance(event := pipe.recv(), Step):
        steps.append(event)
    assert steps[-1].step == steps[-1].steps
    assert event.lesson.drawings == (1,) * 6 + (0,) * 4


def test_the_process_reports_a_run_that_it_cannot_open(process, tmp_path):
    error = process(Request(run=tmp_path)).recv()
    assert isinstance(error, RunError)
    assert "There is no base" in str(error)


def test_the_process_ends_when_the_server_has_ended(process, finished_run):
    pipe = process(Request(run=finished_run))
    pipe.send(LESSON)
    pipe.close()  # and the fixture waits for its end
