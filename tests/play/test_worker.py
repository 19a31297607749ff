"""What the training process does, run in a thread of this one."""

import os
import threading
from multiprocessing import Pipe

import pytest

from lora_mnist.errors import RunError
from lora_mnist.evaluation.verdict import LessonResult
from lora_mnist.pipeline import Request
from lora_mnist.play.protocol import LabelledDrawing
from lora_mnist.play.worker import Finished, Kept, Opened, work_for
from lora_mnist.training.progress import Step

LESSON = [LabelledDrawing(pixels=bytes([40 * i] * 784), label=i) for i in range(6)]


@pytest.fixture
def worker(monkeypatch):
    """The other end of the pipe of a worker for a request; it has ended when the test has."""
    monkeypatch.setattr(os, "nice", lambda more: None)
    started = []

    def start(request):
        ours, theirs = Pipe()
        thread = threading.Thread(target=work_for, args=(request, theirs))
        thread.start()
        started.append((thread, ours, theirs))
        return ours

    yield start
    for thread, ours, theirs in started:
        ours.close()
        thread.join()
        theirs.close()


def test_a_lesson_is_told_and_kept_at_the_second_try(worker, run_copy, adapter):
    pipe = worker(Request(run=run_copy))
    assert pipe.recv() == Opened()
    pipe.send(LESSON)
    heard = []
    while not heard or not isinstance(heard[-1], Finished):
        heard.append(pipe.recv())
    *steps, finished = heard
    assert all(isinstance(step, Step) for step in steps)
    assert steps[-1].step == steps[-1].steps
    assert isinstance(finished.lesson, LessonResult)
    assert finished.lesson.drawings == (1,) * 6 + (0,) * 4
    pipe.send(adapter.name)
    assert isinstance(pipe.recv(), RunError)  # there is one of that name
    pipe.send("mine")
    assert pipe.recv() == Kept("mine")
    assert (run_copy / "adapters" / "mine" / "manifest.json").is_file()


def test_what_cannot_be_opened_is_told(worker, tmp_path):
    error = worker(Request(run=tmp_path)).recv()
    assert isinstance(error, RunError)
    assert "There is no base" in str(error)


def test_it_ends_when_nobody_listens_any_more(worker, run_copy):
    pipe = worker(Request(run=run_copy))
    assert pipe.recv() == Opened()
    pipe.send(LESSON)
    pipe.close()  # and the fixture waits for its end
