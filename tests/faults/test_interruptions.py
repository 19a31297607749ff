"""A file operation that fails, or a kill, at every place of every command that writes."""

import random
import signal
import time

import pytest

from lora_mnist.cli.errors import LINES

from .disk import ERRORS, READ, Fault
from .processes import Ended, command, commands, interrupted_after, killed_after
from .stages import STAGES, TINY, VERIFY, Stage, States, said
from .tally import ALL, some
from .trees import facts, is_whole, remains

RANDOM_KILLS = 200
FAILS = "an open, a write, a sync, a rename, a mkdir or a remove fails, anywhere in any stage"
KILLED = "killed at a file operation, anywhere in any stage"
KILLED_AT_RANDOM = "killed at a random time"
RANDOM_SIGNALS = 40  # to each of the commands below
INTERRUPTED = "Ctrl-C or SIGTERM at a random time from the start of Python on"
INTERRUPTIBLE = {  # command: (the state that it starts from, about how many seconds it takes)
    ("run", *TINY): ("nothing", 4.0),
    ("verify", "--quiet"): ("run", 2.0),
    ("report", "--quiet"): ("run", 2.0),
    ("play", "--port", "0", "--quiet"): ("run", 3.0),
    ("sweep", "--rank", "1", "--seed", "0", "--engine", "local", "--threads", "2", "--quiet"): ("run", 6.0),
}
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


def operations_of(stage: Stage, states: States) -> tuple[str, ...]:
    """What the command does to the disk when nothing is in its way."""
    with states.copy(stage.start) as run:
        return command(*stage.words, "--run", run, folder=run.parent).operations


@each_stage
def test_an_operation_that_fails_is_told_and_costs_nothing(stage, states, tally):
    operations = operations_of(stage, states)

    def survive(number: int) -> None:
        with states.copy(stage.start) as run:
            fault = Fault(number, ERRORS[number % len(ERRORS)])
            ended = command(*stage.words, "--run", run, folder=run.parent, fault=fault)
            assert len(ended.operations) > number, "it was not reached"
            is_read = operations[number].startswith(READ)
            assert ended.code in ((0, 4, 6) if is_read else (0, 6)), f"{ended} at {operations[number]}"
            require_one_error(ended)
            if ended.code == 0:
                assert facts(run) == states.facts(stage.name), operations[number]
            require_old_or_new_and_then_new(stage, states, run)

    tally.attack(FAILS, stage.name, some(range(0, len(operations), stage.strides[0]), 3), survive)


@each_stage
def test_a_kill_at_any_operation_costs_nothing(stage, states, tally):
    changing = [i for i, one in enumerate(operations_of(stage, states)) if not one.startswith(READ)]

    def survive(number: int) -> None:
        with states.copy(stage.start) as run:
            ended = command(*stage.words, "--run", run, folder=run.parent, fault=Fault(number))
            assert ended.code == -9
            require_old_or_new_and_then_new(stage, states, run)

    tally.attack(KILLED, stage.name, some(changing[:: stage.strides[1]], 3), survive)


def test_a_kill_at_any_time_costs_nothing(states, tally):
    stage = next(stage for stage in STAGES if stage.name == "run")
    moments = random.Random(0)
    with states.copy(stage.start) as run:
        began = time.monotonic()
        command(*stage.words, "--run", run)
        whole = time.monotonic() - began

    def survive(seconds: float) -> None:
        with states.copy(stage.start) as run:
            ended = killed_after(seconds, *stage.words, "--run", run)
            if ended.code != -9:  # it was through already, and not killed: once more, and sooner
                return survive(0.8 * seconds)
            require_old_or_new_and_then_new(stage, states, run)

    times = [moments.uniform(0, whole) for _ in range(RANDOM_KILLS)]
    tally.attack(KILLED_AT_RANDOM, stage.name, some(times, 3), survive)


@pytest.mark.parametrize("words", INTERRUPTIBLE, ids=lambda words: words[0])
def test_an_interruption_at_any_time_is_one_line(words, states, tally):
    state, whole = INTERRUPTIBLE[words]
    stage = next(stage for stage in STAGES if stage.name == "run")
    moments = random.Random(0)

    def survive(case: tuple[float, signal.Signals]) -> None:
        with states.copy(state) as run:
            more = ("--out", run.parent / "sweep") if words[0] == "sweep" else ()
            ended = interrupted_after(*case, *words, "--run", run, *more)
            require_one_line(ended, case[1])
            if state == "nothing":
                require_old_or_new_and_then_new(stage, states, run)
            elif words[0] != "report":
                assert facts(run) == states.facts(state)

    cases = [
        (moments.uniform(0.1, whole), moments.choice([signal.SIGINT, signal.SIGTERM])) for _ in range(RANDOM_SIGNALS)
    ]
    tally.attack(INTERRUPTED, words[0], some(cases, 1), survive)


@pytest.mark.skipif(not ALL, reason="`make faults` tries them all")
def test_there_were_a_thousand_kills(tally):
    assert sum(tried for name in (KILLED, KILLED_AT_RANDOM) for tried, _ in tally.rows[name].values()) >= 1000


def require_one_line(ended: Ended, number: signal.Signals) -> None:
    """What the signal says, and nothing else; or nothing at all, where the command was through, or Python not begun."""
    if ended.code in (0, -number):
        assert ended.err == "", ended
    else:
        assert (ended.code, ended.err) == (128 + number, f"{LINES[number]}\n"), ended


def require_one_error(ended: Ended) -> None:
    """One line that says what is wrong and what to do, and no traceback."""
    if ended.code == 0:
        assert "rror" not in ended.err, ended
    else:
        errors = [line for line in ended.err.splitlines() if line.startswith("Error: ")]
        assert (len(errors), ended.err.splitlines()[-1:], ended.out) == (1, errors, ""), ended


def require_old_or_new_and_then_new(stage: Stage, states: States, run) -> None:
    """What was finished is there, old or new, and proves itself; the same command brings it to its end."""
    report = run / "report"
    if (report / "manifest.json").is_file():
        assert is_whole(report)
    looked, again = commands((*VERIFY, "--run", run), (*stage.words, "--run", run))
    proofs = [states.proof(state) for state in (stage.start, *stage.through, stage.name)]
    assert said(looked) in proofs, looked
    is_done = again.code == 4 and "is finished already" in again.err and not stage.repeats
    assert again.code == 0 or is_done, again
    assert remains(run.parent) == []
    found, wanted = facts(run), states.facts(stage.name)
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []
