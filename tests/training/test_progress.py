"""What is seen of a training: a bar on a terminal, a line every tenth in a log, or nothing."""

import io
import re
from dataclasses import replace

import pytest
import torch

from lora_mnist.training.progress import SILENT, CallbackProgress, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_in(monkeypatch):
    """In place of standard error; called by the test itself, since pytest sets its own after the fixtures."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    return terminal


def test_a_log_has_a_line_every_tenth_with_the_loss(caplog):
    caplog.set_level("INFO")
    losses = torch.full((1000,), float("nan"))
    with Progress(quiet=False, stage="2/4 ").counting("fine-tuning 9", len(losses), losses) as show:
        for step in range(1000):
            losses[step] = 0.5
            show(step + 1)
    first, *lines = caplog.messages
    assert first == "2/4 fine-tuning 9: 1,000 steps"
    assert [re.match(r"2/4 fine-tuning 9: (\d+) %, loss 0\.500", line)[1] for line in lines] == [
        str(tenth) for tenth in range(10, 101, 10)
    ]


@pytest.mark.parametrize("steps", [1, 3, 7, 11, 25])
def test_a_short_training_has_no_more_lines_than_steps_and_ends_at_100(steps, caplog):
    caplog.set_level("INFO")
    with Progress(quiet=False).counting("x", steps, torch.ones(steps)) as show:
        for step in range(steps):
            show(step + 1)
    assert len(caplog.messages) == 1 + min(10, steps)
    assert caplog.messages[-1] == "x: 100 %, loss 1.000"


def test_jobs_are_counted_in_a_log_by_the_tenth(caplog):
    with caplog.at_level("INFO"), Progress(quiet=False).counting("20 jobs", 20) as show:
        for done in (0.5, 1, 2, 2.5, 10, 20):
            show(done)
    lines = [line.partition(",")[0] for line in caplog.messages]
    assert lines == ["20 jobs", "20 jobs: 10 %", "20 jobs: 50 %", "20 jobs: 100 %"]


def test_quiet_shows_nothing(monkeypatch, caplog):
    terminal = terminal_in(monkeypatch)
    caplog.set_level("INFO")
    with SILENT.counting("x", 3, torch.ones(3)) as show, SILENT.waiting("y"):
        show(3)
    assert (terminal.getvalue(), caplog.messages) == ("", [])


def test_a_terminal_has_a_bar_that_vanishes(monkeypatch, caplog):
    terminal = terminal_in(monkeypatch)
    caplog.set_level("INFO")
    with Progress(quiet=False, stage="2/4 ").counting("fine-tuning 9", 100, torch.ones(100)) as show:
        for step in range(100):
            show(step + 1)
    assert "2/4 fine-tuning 9" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")
    with Progress(quiet=False).counting("150 jobs", 150) as show:
        for done in (0.5, 75.2, 150):
            show(done)
    assert "150 jobs" in terminal.getvalue()
    assert caplog.messages == []


def test_what_is_waited_for_is_named_as_long_as_it_lasts(monkeypatch):
    terminal = terminal_in(monkeypatch)
    with Progress(quiet=False, stage="3/4 ").waiting("verifying"):
        assert terminal.getvalue().strip("\r") == "3/4 verifying …"
    assert terminal.getvalue().endswith("\r")


def test_several_trainings_are_reported_as_one(monkeypatch):
    now = 5.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    steps, losses = [], torch.tensor([4.0, 2.0, 3.0])
    first = CallbackProgress(tell=steps.append, steps=6, started=now)
    for progress in (first, replace(first, before=3)):
        with progress.counting("teaching", len(losses), losses) as show:
            for done in (1, 2, 3):
                now += 2.0
                show(done)
    assert [(one.step, one.steps) for one in steps] == [(i, 6) for i in range(1, 7)]
    assert [one.loss for one in steps[:3]] == [4.0, 3.0, 3.0]  # the mean of those so far
    assert [one.seconds_left for one in steps] == pytest.approx([10.0, 8.0, 6.0, 4.0, 2.0, 0.0])


def test_what_a_listener_raises_comes_through():
    def refuse(step):
        raise InterruptedError

    progress = CallbackProgress(tell=refuse, steps=1)
    with pytest.raises(InterruptedError), progress.counting("teaching", 1, torch.zeros(1)) as show:
        show(1)
