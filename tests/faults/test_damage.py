"""Every file of a run damaged in every way or made to mislead, and then the commands that read it."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from ..conftest import rehash
from .conftest import ADAPTER, CHECKPOINT, SMALL, VERIFY, States, timeless
from .processes import Ended, commands
from .tally import BEGIN, END, PAGE, RESULTS, Tally, some, table

DAMAGED = "a file damaged, gone, or of another kind, and then every command that reads"
TENSORS = "tensors that mislead: lengths, offsets, types, names, values"


def flipped(content: bytes, eighth: int) -> bytes:
    """With one byte changed in the middle of an eighth of it."""
    place = (2 * eighth + 1) * len(content) // 16
    return content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :]


CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    **{f"flipped in eighth {i}": lambda content, i=i: flipped(content, i) for i in range(8)},
    "cut in half": lambda content: content[: len(content) // 2],
    "short of a byte": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "emptied": lambda content: b"",
}
REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "gone": lambda file: None,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to nothing": lambda file: file.symlink_to("nothing"),
    "a device": lambda file: file.symlink_to("/dev/zero"),
}


def damage(file: Path, kind: str) -> None:
    if kind in CONTENTS:
        file.write_bytes(CONTENTS[kind](file.read_bytes()))
    else:
        file.unlink()
        REPLACEMENTS[kind](file)


def read(run: Path) -> dict[str, tuple[Ended, object]]:
    """How each command that reads `run` ended, and the numbers that it showed; None if it showed none."""
    place = ("--run", run, "--threads", "1", "--json")
    lines = {
        "verify": ("verify", *place),
        "evaluate": ("evaluate", *place),
        "evaluate adapter": ("evaluate", "--adapter", ADAPTER, *place),
        "evaluate checkpoint": ("evaluate", "--checkpoint", CHECKPOINT, *place),
        "adapters": ("adapters", "--run", run, "--json"),
        "compare": ("compare", run, "--json"),
        "params": ("params", "--run", run, "--json"),
        "report": ("report", "--run", run, "--json"),
    }
    found = {}
    for name, ended in zip(lines, commands(*lines.values()), strict=True):
        shown = json.loads(ended.out.replace(str(run.parent), "FOLDER")) if ended.out else {"error": {}}
        if "error" in shown:
            shown = None
        elif name == "report":
            shown = json.loads((run / "report" / "report.json").read_text())
        found[name] = ended, timeless(shown)
    return found


@pytest.fixture(scope="module")
def intact(states) -> dict[str, object]:
    """What every command shows of a run that nothing has happened to."""
    with states.copy("everything") as run:
        found = {name: shown for name, (_, shown) in read(run).items()}
    assert all(found.values()), found
    return found


def files_of(states: States, part: str) -> list[str]:
    """Every file, but of the report's plots and tables one each: they are made, and not read."""
    run, files = states.path("everything"), {}
    for file in sorted(run.glob(f"{part}/**/*") if part != "run.json" else [run / part]):
        if file.is_file():
            is_alike = part == "report" and file.suffix != ".json"
            files.setdefault(file.suffix if is_alike else file, str(file.relative_to(run)))
    return list(files.values())


@pytest.mark.parametrize("part", ["base", "adapters", "checkpoints", "report", "run.json"])
def test_a_damaged_file_gives_the_same_numbers_or_an_error(states, intact, tally, part):
    def survive(case: tuple[str, str]) -> None:
        file, kind = case
        with states.copy("everything") as run:
            damage(run / file, kind)
            for name, (ended, shown) in read(run).items():
                assert ended.code in (0, 3, 4, 5, 6), (name, ended)
                assert "Traceback" not in ended.err, (name, ended)
                # a folder whose manifest is gone does not count, and is named
                left_out = file.endswith("manifest.json") and "has no manifest" in ended.err
                assert left_out or shown in (None, intact[name]), f"{name} shows {shown}"
                assert (shown is None) == (ended.code != 0), (name, ended)

    kinds = (*CONTENTS, *REPLACEMENTS)
    tally.attack(DAMAGED, part, some([(file, kind) for file in files_of(states, part) for kind in kinds], 3), survive)


def test_a_wrong_number_would_be_noticed(states, intact):
    """So the test above can fail."""
    with states.copy("everything") as run:
        path = run / "base" / "evaluation.json"
        document = json.loads(path.read_text())
        document["splits"]["test"]["count"] += 1
        path.write_text(json.dumps(document))
        assert {name for name, (_, shown) in read(run).items() if shown is None} >= {"verify", "report", "compare"}


def packed(header: bytes, length: int | None = None) -> bytes:
    """A safetensors file with any header and any length of it."""
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(16)


HOSTILE: dict[str, bytes] = {
    "a header of 2^63 bytes": packed(b"{}", length=2**63),
    "a header of brackets": packed(b"[" * 100_000),
    "a header of other letters": packed(b"\xff\xfe{}"),
    "offsets behind the end": packed(b'{"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 1099511627776]}}'),
    "a shape that overflows": packed(
        b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 16]}}'
    ),
    "whole numbers": save({"linear1.weight": np.ones((2, 2), np.int64)}),
    "nothing but a NaN": save({"linear1.weight": np.full((2, 2), np.nan, np.float32)}),
}
READERS = {  # of each file: a command that has to refuse it
    "base/model.safetensors": ("evaluate", *SMALL),
    "base/logits.safetensors": ("report",),
    f"adapters/{ADAPTER}/adapter_model.safetensors": ("merge", "--adapter", ADAPTER, "--name", "m", *SMALL),
    f"adapters/{ADAPTER}/pictures.safetensors": ("report",),
    f"checkpoints/{CHECKPOINT}/model.safetensors": ("extract", "--checkpoint", CHECKPOINT, *SMALL),
}


def test_hostile_tensors_are_refused_wherever_they_lie(states, tally):
    def survive(case: tuple[str, str]) -> None:
        kind, place = case
        with states.copy("everything") as run:
            (run / place).write_bytes(HOSTILE[kind])
            rehash((run / place).parent)  # its manifest fits
            for ended in commands((*VERIFY, "--run", run), (*READERS[place], "--run", run, "--json")):
                assert ended.code in (4, 5) or "pictures" in place, ended  # which `verify` does not read
                assert "Traceback" not in ended.err, ended
            assert ended.code in (4, 5), ended
            assert json.loads(ended.out)["error"]["message"].isprintable(), ended

    tally.attack(TENSORS, "tensors", some([(kind, place) for place in READERS for kind in HOSTILE], 6), survive)


def test_the_page_shows_the_kept_results_and_every_attack_was_survived():
    rows = json.loads(RESULTS.read_text())
    assert BEGIN + table(rows) + END in PAGE.read_text()
    assert [name for name, parts in rows.items() for tried, survived in parts.values() if tried != survived] == []


def test_what_is_not_survived_is_counted_and_reported():
    def survive(case: int) -> None:
        assert case != 2, "two is lost"

    tally = Tally()
    with pytest.raises(AssertionError, match=r"1 of 4:\n2: two is lost"):
        tally.attack("numbers", "all", range(4), survive)
    assert "| numbers | 4 | 3 | 1 |" in table(tally.rows)
