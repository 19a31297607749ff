"""What can be done with a lesson at which moment, and what is told; the worker is played by the test."""

import asyncio

import pytest

from lora_mnist.errors import BusyError, DiskError, RunError, UsageError
from lora_mnist.pipeline import Request
from lora_mnist.play import teaching
from lora_mnist.play.protocol import LabelledDrawing
from lora_mnist.play.teaching import Teacher
from lora_mnist.play.worker import Finished, Kept, Opened

from .conftest import PRICE, STEP

DRAWING = LabelledDrawing(pixels=bytes(784), label=7)


class Played:
    """A worker that says what the test says."""

    provenance: list["Played"]

    def __init__(self, request, heard, ended):
        self.heard, self.ended, self.got, self.is_ended, self.pid = heard, ended, [], False, 1
        Played.provenance.append(self)

    def send(self, what):
        self.got.append(what)

    def end(self):
        self.is_ended = True


@pytest.fixture(autouse=True)
def _played(monkeypatch):
    Played.provenance = []
    monkeypatch.setattr(teaching, "Worker", Played)


def lesson(act):
    """Run `act(teacher, said)` in an event loop; `said(what)` lets the latest worker say something."""

    async def whole():
        teacher = Teacher(Request())

        async def said(*what):
            for one in what:
                worker = Played.provenance[-1]
                worker.ended(one) if isinstance(one, int) else worker.heard(one)
            await asyncio.sleep(0)
            return teacher.state

        return await act(teacher, said)

    return asyncio.run(whole())


def test_from_drawings_to_an_adapter():
    async def act(teacher, said):
        teacher.be_ready()
        teacher.be_ready()
        await said(Opened())
        teacher.start([DRAWING])
        assert teacher.state.phase == "starting"
        state = await said(STEP)
        assert (state.phase, state.step, state.steps, state.loss) == ("training", STEP.step, STEP.steps, STEP.loss)
        state = await said(Finished(PRICE))
        assert (state.phase, state.lesson, state.verdict) == ("taught", PRICE, PRICE.verdict)
        teacher.keep("mine")
        assert teacher.state.phase == "keeping"
        state = await said(Kept("mine"))
        assert (state.phase, state.name) == ("kept", "mine")

    lesson(act)
    assert len(Played.provenance) == 1
    assert Played.provenance[0].got == [[DRAWING], "mine"]
    assert Played.provenance[0].is_ended


def test_a_worker_that_is_not_ready_gets_the_drawings_when_it_is():
    async def act(teacher, said):
        teacher.start([DRAWING])
        assert Played.provenance[0].got == []
        await said(Opened())
        assert Played.provenance[0].got == [[DRAWING]]

    lesson(act)


@pytest.mark.parametrize("heard", [[], [Opened()], [Opened(), STEP], [Opened(), STEP, Finished(PRICE)]])
def test_a_second_lesson_is_refused(heard):
    async def act(teacher, said):
        teacher.start([DRAWING])
        before = await said(*heard)
        with pytest.raises(BusyError):
            teacher.start([DRAWING, DRAWING])
        assert teacher.state is before

    lesson(act)


@pytest.mark.parametrize("heard", [[], [Opened()], [Opened(), STEP]])
def test_cancel_ends_the_process_and_whatever_it_still_says_is_not_heard(heard):
    async def act(teacher, said):
        teacher.start([DRAWING])
        await said(*heard)
        teacher.cancel()
        assert Played.provenance[0].is_ended
        assert (await said(STEP, Finished(PRICE), -9)).phase == "cancelled"
        teacher.start([DRAWING])  # and another may begin
        assert len(Played.provenance) == 2

    lesson(act)


def test_discard_leaves_nothing():
    async def act(teacher, said):
        teacher.start([DRAWING])
        await said(Opened(), STEP, Finished(PRICE))
        teacher.discard()
        assert Played.provenance[0].is_ended
        assert (teacher.state.phase, teacher.state.lesson) == ("discarded", None)
        with pytest.raises(RunError):
            teacher.keep("mine")

    lesson(act)


@pytest.mark.parametrize(
    ("heard", "when"),
    [
        ([], "in the middle of the training"),
        ([Opened(), STEP], "in the middle of the training"),
        ([Opened(), STEP, Finished(PRICE)], "before the adapter was saved"),
    ],
)
def test_a_kill_is_told_and_another_lesson_may_begin(heard, when):
    async def act(teacher, said):
        teacher.start([DRAWING])
        state = await said(*heard, -9)
        assert state.phase == "failed"
        assert state.problem == f"The training process was killed by signal 9 {when}. The run is as it was before."
        teacher.start([DRAWING])

    lesson(act)


def test_a_kill_while_nothing_is_taught_is_nobodys_business():
    async def act(teacher, said):
        teacher.be_ready()
        assert (await said(Opened(), -9)).phase == "idle"
        teacher.start([DRAWING])
        assert len(Played.provenance) == 2

    lesson(act)


def test_what_cannot_be_taught_is_told():
    async def act(teacher, said):
        teacher.start([DRAWING])
        state = await said(Opened(), UsageError("Two drawings are too few.", "Draw more."))
        assert state.phase == "failed"
        assert state.problem == "Two drawings are too few. Draw more. The run is as it was before."

    lesson(act)


def test_what_cannot_be_kept_can_be_kept_otherwise():
    async def act(teacher, said):
        teacher.start([DRAWING])
        await said(Opened(), Finished(PRICE))
        teacher.keep("mine")
        state = await said(DiskError("Cannot write.", "Make room."))
        assert (state.phase, state.lesson, state.name) == ("taught", PRICE, None)
        assert state.problem == "It was not kept. Cannot write. Make room."
        teacher.keep("other")
        assert (await said(Kept("other"))).name == "other"

    lesson(act)


def test_a_reader_sees_where_it_stands_and_every_change_until_the_end():
    async def act(teacher, said):
        seen = []

        async def read():
            async for state in teacher.states():
                seen.append(state.phase)

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        teacher.start([DRAWING])
        await asyncio.sleep(0)
        await said(Opened(), STEP)
        await asyncio.sleep(0)
        teacher.close()
        await asyncio.wait_for(reader, 5)
        assert seen == ["idle", "starting", "training"]
        assert Played.provenance[0].is_ended
        teacher.be_ready()
        assert len(Played.provenance) == 1

    lesson(act)
