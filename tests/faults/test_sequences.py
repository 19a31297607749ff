"""Two and three changes of a folder, one after the other, each dying or refused at any of its operations.

What one leaves half done is what the next one starts from.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lora_mnist.errors import DiskError
from lora_mnist.runs.atomic import (
    finished_folders,
    is_finished,
    new_folder,
    read_manifest,
    recover,
    remove_folder,
    sha256_of,
    where_is,
    write_file,
)

from .disk import ERRORS, Dead, Disk, Fault
from .tally import ALL, some
from .trees import remains

SEQUENCES = "changes of a folder in a row, each dying or refused anywhere"
NAMES = ("a.txt", "b.txt")


def save(place: Path, content: bytes) -> None:
    with new_folder(place) as folder:
        for name in NAMES:
            write_file(folder / name, content)


CHANGES: dict[str, Callable[[Path, bytes], None]] = {
    "save": save,
    "remove": lambda place, content: remove_folder(place),
    "recover": lambda place, content: recover(place.parent),
}


@dataclass(frozen=True)
class Step:
    change: str
    fault: Fault | None


def read(place: Path) -> bytes | None:
    """The content of a folder, which is the same in all of its files; None if it is not there."""
    if not is_finished(place):
        return None
    hashes = {name: sha256_of(where_is(place) / name) for name in NAMES}
    assert hashes == read_manifest(place)
    found = {(where_is(place) / name).read_bytes() for name in NAMES}
    assert len(found) == 1
    return found.pop()


def play(place: Path, step: Step, content: bytes) -> tuple[int, bool]:
    """Do one step: the number of its operations, and whether it came to its end."""
    disk, ended = Disk(place.parent, step.fault), False
    with disk.installed(), suppress(Dead, DiskError):
        CHANGES[step.change](place, content)
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
            count, _ = play(place, Step(change, None), b"2")
        for number in range(count):
            found += [Step(change, Fault(number, dead=True)), Step(change, Fault(number, ERRORS[number % 3]))]
        found.append(Step(change, None))
    return found


def survive(sequence: Sequence[Step]) -> None:
    with TemporaryDirectory() as folder:
        place = Path(folder) / "x"
        save(place, b"0")
        known: bytes | None = b"0"
        for i, step in enumerate(sequence, 1):
            _, ended = play(place, step, content := str(i).encode())
            new = {"save": content, "remove": None}.get(step.change, known)
            there, found = sorted(os.listdir(folder)), read(place)
            assert found == new or (not ended and found == known), f"{found} after {known} and {new}"
            assert finished_folders(place.parent) == [place] * (found is not None)
            assert sorted(os.listdir(folder)) == there, "a reader has changed something"
            known = found
        recover(place.parent)
        assert (read(place), remains(place.parent)) == (known, [])
        shutil.rmtree(place, ignore_errors=True)
        assert os.listdir(folder) == []


def test_no_two_faults_in_a_row_lose_what_was_finished(tally):
    pairs = [(first, second) for first in steps() for second in steps([first])]
    tally.attack(SEQUENCES, "two", some(pairs, 400), survive, workers=1)


def test_no_three_faults_in_a_row_lose_what_was_finished(tally):
    dying = [step for step in steps() if step.fault is None or step.fault.dead]
    threes = list(itertools.product(dying, repeat=3))
    few = threes[:: max(1, len(threes) // (6000 if ALL else 100))]
    tally.attack(SEQUENCES, "three", few, survive, workers=1)
