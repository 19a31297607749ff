"""Commands that fail, are killed or run at once, and changes of a folder that die: nothing is lost."""

import functools
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lora_mnist.errors import DiskError
from lora_mnist.runs.atomic import (
    finished_folders,
    is_finished,
    new_folder,
    parse_manifest,
    recover,
    remove_folder,
    sha256_of,
    where_is,
    write_file,
)
from lora_mnist.runs.run import Run

from .conftest import (
    ADAPTER,
    SMALL,
    STAGES,
    TINY,
    VERIFY,
    Stage,
    States,
    facts,
    facts_of,
    is_whole,
    proof_of,
    remains,
    result_of,
)
from .disk import ERRORS, READ, Dead, Disk, Fault
from .processes import Ended, at_once, command, commands
from .tally import some

FAILS = "an open, a write, a sync, a rename, a mkdir or a remove fails, anywhere in any stage"
KILLED = "killed at a file operation, anywhere in any stage"
RACES = "two or three commands at once on one run"
SEQUENCES = "changes of a folder in a row, each dying or refused anywhere"
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@functools.cache
def operations_of(stage: Stage, states: States) -> tuple[str, ...]:
    """What the command does to the disk when nothing is in its way."""
    with states.copy(stage.start) as run:
        return command(*stage.words, "--run", run, folder=run.parent).operations


def require_old_or_new_and_then_new(stage: Stage, states: States, run: Path) -> None:
    """What was finished is there, old or new, and proves itself; the same command brings it to its end."""
    if (run / "report" / "manifest.json").is_file():
        assert is_whole(run / "report")
    verified, repeated = commands((*VERIFY, "--run", run), (*stage.words, "--run", run))
    states_between = (stage.start, *stage.through, stage.name)
    assert result_of(verified) in [proof_of(states.path(state)) for state in states_between], verified
    repeats = stage.words[0] in ("run", "report") or "--force" in stage.words
    is_done = repeated.code == 4 and "is finished already" in repeated.err and not repeats
    assert repeated.code == 0 or is_done, repeated
    assert remains(run.parent) == []
    found, wanted = facts(run), facts_of(states.path(stage.name))
    assert [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)] == []


@each_stage
def test_an_operation_that_fails_is_reported_and_costs_nothing(stage, states, tally):
    operations = operations_of(stage, states)

    def survive(number: int) -> None:
        with states.copy(stage.start) as run:
            fault = Fault(number, ERRORS[number % len(ERRORS)])
            ended = command(*stage.words, "--run", run, folder=run.parent, fault=fault)
            assert len(ended.operations) > number, "it was not reached"
            is_read = operations[number].startswith(READ)
            assert ended.code in ((0, 4, 6) if is_read else (0, 6)), f"{ended} at {operations[number]}"
            if ended.code == 0:
                assert "rror" not in ended.err, ended
                assert facts(run) == facts_of(states.path(stage.name)), operations[number]
            else:  # one line that says what is wrong and what to do, and no traceback
                errors = [line for line in ended.err.splitlines() if line.startswith("Error: ")]
                assert (len(errors), ended.err.splitlines()[-1:], ended.out) == (1, errors, ""), ended
            require_old_or_new_and_then_new(stage, states, run)

    tally.attack(FAILS, stage.name, some(range(len(operations)), 3, most=130), survive)


@each_stage
def test_a_kill_at_any_operation_costs_nothing(stage, states, tally):
    changing = [i for i, one in enumerate(operations_of(stage, states)) if not one.startswith(READ)]

    def survive(number: int) -> None:
        with states.copy(stage.start) as run:
            ended = command(*stage.words, "--run", run, folder=run.parent, fault=Fault(number))
            assert ended.code == -9
            require_old_or_new_and_then_new(stage, states, run)

    tally.attack(KILLED, stage.name, some(changing, 3, most=130), survive)


# Two or three at once -------------------------------------------------------------------------------------------------


def seeded(count: int, *words: str) -> tuple[tuple[str, ...], ...]:
    return tuple((*words, "--seed", str(i), "--json") for i in range(count))


PRETRAIN, FINETUNE = ("pretrain", *TINY), ("finetune", "--name", "z", *SMALL)
REPORT, MERGE = ("report", "--json"), ("merge", "--adapter", ADAPTER, "--json", *SMALL)
FULL, EXTRACT = ("finetune", "--full", "--json", *SMALL), ("extract", "--rank", "2", "--json", *SMALL)
NEW_BASE = ("pretrain", "--force", "--seed", "5", "--json", *SMALL)
STARTS = (  # a state, and what starts together on it, each with a seed of its own if it trains
    ("nothing", seeded(2, *PRETRAIN)),
    ("pretrain", seeded(2, *FINETUNE)),
    ("pretrain", seeded(3, *FINETUNE)),
    ("nothing", 3 * (("run", *TINY, "--json"),)),
    ("finetune", (*seeded(1, *FINETUNE), REPORT, MERGE)),
    ("finetune", (MERGE, MERGE)),
    ("full after", ((*FULL, "--force"), EXTRACT, (*MERGE, "--force"))),
    ("run", (NEW_BASE, *seeded(1, *FINETUNE))),
    ("run", (NEW_BASE, VERIFY, VERIFY)),
)
REFUSALS = (  # of one that comes second, or while what it needs is being made
    r"is being written by (process \d+ \(`lora-mnist .*`\), since \d{4}-|another command)"
    "|is finished already|changed while it was read|there is no finished base|There is no adapter"
)


def require_there(run: Run, words: tuple[str, ...], ended: Ended) -> None:
    """What a command says it has made is what lies there, unless the base was made anew after it."""
    shown = json.loads(ended.out)
    if words[0] == "pretrain":
        assert shown["base_fingerprint"] == run.record.base_fingerprint
    elif words[0] in ("finetune", "extract"):
        saved = (run.checkpoint if "--full" in words else run.adapter)(shown["name"])
        assert (saved.finetune.seed, saved.provenance.date) == (shown["seed"], shown["date"])
    elif words[0] == "merge":
        assert run.checkpoint(shown["name"]).is_finished
    elif words[0] in ("report", "run"):
        assert is_whole(run.report)


def test_of_two_or_three_at_once_nothing_is_lost(states, tally):
    def survive(race: tuple[str, tuple[tuple[str, ...], ...]]) -> None:
        start, lines = race
        with states.copy(start) as place:
            ended = at_once(*((*words, "--run", place) for words in lines))
            assert any(one.code == 0 for one in ended), ended
            for words, one in zip(lines, ended, strict=True):
                if one.code != 0:
                    assert one.code == 4, one
                    assert re.search(REFUSALS, json.loads(one.out)["error"]["message"]), one
                elif NEW_BASE not in lines or words == NEW_BASE:
                    require_there(Run(place), words, one)
            if len({words[0] for words in lines}) == 1 and lines[0][0] != "run":
                assert [one.code for one in ended].count(0) == 1, "two say that they made the same"
            verified = command(*VERIFY, "--run", place)
            assert verified.code == 0, verified
            assert remains(place.parent) == []

    tally.attack(RACES, "races", some(2 * STARTS, 3), survive)


def test_without_the_lock_something_is_lost(states):
    """So the test above can fail."""
    for _ in range(60):  # until two meet; each takes a third of a second
        with states.copy("pretrain") as place:
            ended = at_once(*((*words, "--run", place) for words in seeded(2, *FINETUNE)), unguarded=True)
            if all(one.code == 0 for one in ended) or any(one.code not in (0, 4) for one in ended):
                return  # both say that they made it, or one fell over what the other was doing
    pytest.fail("nothing was lost")


# Changes of a folder in a row -----------------------------------------------------------------------------------------


def save(place: Path, content: bytes) -> None:
    with new_folder(place) as folder:
        for name in ("a.txt", "b.txt"):
            write_file(folder / name, content)


Step = tuple[str, Fault | None]
CHANGES: dict[str, Callable[[Path, bytes], None]] = {
    "save": save,
    "remove": lambda place, content: remove_folder(place),
    "recover": lambda place, content: recover(place.parent),
}


def content_of(place: Path) -> bytes | None:
    """The content of a folder, which is the same in all of its files; None if it is not there."""
    if not is_finished(place):
        return None
    hashes = parse_manifest(place, (where_is(place) / "manifest.json").read_bytes())
    assert {name: sha256_of(where_is(place) / name) for name in ("a.txt", "b.txt")} == hashes
    (found,) = {(where_is(place) / name).read_bytes() for name in hashes}
    return found


def play(place: Path, step: Step, content: bytes) -> tuple[int, bool]:
    """Do one step: the number of its operations, and whether it came to its end."""
    change, fault = step
    disk, ended = Disk(place.parent, fault), False
    with disk.installed(), suppress(Dead, DiskError):
        CHANGES[change](place, content)
        ended = True
    return len(disk.operations), ended


def steps(before: Sequence[Step] = ()) -> list[Step]:
    """Each change, dying or refused at each operation that it does after `before`; and not at all."""
    found = []
    for change in CHANGES:
        with TemporaryDirectory() as folder:
            place = Path(folder) / "x"
            save(place, b"0")
            for step in before:
                play(place, step, b"1")
            count, _ = play(place, (change, None), b"2")
        for number in range(count):
            found += [(change, Fault(number, dead=True)), (change, Fault(number, ERRORS[number % 3]))]
        found.append((change, None))
    return found


def survive_all(sequence: Sequence[Step]) -> None:
    """What one step leaves half done is what the next one starts from."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "x"
        save(place, b"0")
        known: bytes | None = b"0"
        for i, (change, fault) in enumerate(sequence, 1):
            _, ended = play(place, (change, fault), content := str(i).encode())
            new = {"save": content, "remove": None}.get(change, known)
            there, found = sorted(os.listdir(folder)), content_of(place)
            assert found == new or (not ended and found == known), f"{found} after {known} and {new}"
            assert finished_folders(place.parent) == [place] * (found is not None)
            assert sorted(os.listdir(folder)) == there, "a reader has changed something"
            known = found
        recover(place.parent)
        assert (content_of(place), remains(place.parent)) == (known, [])
        shutil.rmtree(place, ignore_errors=True)
        assert os.listdir(folder) == []


def test_no_two_or_three_faults_in_a_row_lose_what_was_finished(tally):
    twos = [(first, second) for first in steps() for second in steps([first])]
    tally.attack(SEQUENCES, "two", some(twos, 400), survive_all, workers=1)
    dying = [(change, fault) for change, fault in steps() if fault is None or fault.dead]
    threes = some(itertools.product(dying, repeat=3), 100, most=6000)
    tally.attack(SEQUENCES, "three", threes, survive_all, workers=1)
