"""Every file of a run damaged in every way, and then every command that reads."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .processes import Ended, commands
from .stages import ADAPTER, VERIFY, States
from .tally import some
from .trees import timeless

REGIONS = 8  # of a file, in each of which a byte is changed
DAMAGED = "a file damaged, gone, or of another kind, and then every command that reads"
DOCUMENTED = (3, 4, 5, 6)
AS_JSON = ("--threads", "1", "--json")


def flipped(region: int) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[min(len(content) - 1, (2 * region + 1) * len(content) // (2 * REGIONS))] ^= 0x41
        file.write_bytes(content)

    return damage


def replaced(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(change(file.read_bytes())) and None


def instead(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.unlink()
        make(file)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"flipped in region {region}": flipped(region) for region in range(REGIONS)},
    "cut in half": replaced(lambda content: content[: len(content) // 2]),
    "short of a byte": replaced(lambda content: content[:-1]),
    "longer": replaced(lambda content: content + b"\0"),
    "emptied": replaced(lambda content: b""),
    "gone": Path.unlink,
    "a folder": instead(Path.mkdir),
    "a pipe": instead(lambda file: os.mkfifo(file)),
    "a link to itself": instead(lambda file: file.symlink_to(file.name)),
    "a link to nothing": instead(lambda file: file.symlink_to("nothing")),
    "a device": instead(lambda file: file.symlink_to("/dev/zero")),
}


def readers(run: Path) -> dict[str, tuple[object, ...]]:
    """Every command that reads `run`, by what it is called here."""
    place = ("--run", run, *AS_JSON)
    return {
        "verify": (*VERIFY, "--run", run),
        "evaluate": ("evaluate", *place),
        "evaluate adapter": ("evaluate", "--adapter", ADAPTER, *place),
        "evaluate checkpoint": ("evaluate", "--checkpoint", "digit9-full", *place),
        "adapters": ("adapters", "--run", run, "--json"),
        "compare": ("compare", run, "--json"),
        "params": ("params", "--run", run, "--json"),
        "runs": ("runs", run.parent, "--json"),
        "doctor": ("doctor", run.parent, *AS_JSON),
        "report": ("report", "--run", run, "--json"),
    }


def shown(name: str, ended: Ended, run: Path) -> object:
    """The numbers that a command gave; None if it gave none."""
    found = json.loads(ended.out.replace(str(run.parent), "FOLDER")) if ended.out else {"error": {}}
    if "error" in found:
        return None
    if name == "runs":
        (line,) = found["runs"]
        return None if line.get("fault") else timeless({**line, "bytes": None})  # the digest tells of any change
    if name == "doctor":  # the rest is about the machine
        (check,) = [check for check in found["checks"] if check["name"] == "FOLDER/run"]
        return None if check["exit_code"] else check
    if name == "report":
        return timeless(json.loads((run / "report" / "report.json").read_text()))
    return timeless(found)


@pytest.fixture(scope="module")
def intact(states) -> dict[str, object]:
    """What every command shows of a run that nothing has happened to."""
    with states.copy("everything") as run:
        lines = readers(run)
        ended = dict(zip(lines, commands(*lines.values()), strict=True))
        found = {name: shown(name, one, run) for name, one in ended.items()}
    assert all(found.values()), found
    return found


def files_of(states: States) -> list[str]:
    """Every file, but of the report's plots and tables one each: they are made, and not read."""
    run, seen, files = states.path("everything"), set(), []
    for file in sorted(file for file in run.rglob("*") if file.is_file()):
        kind = (file.parent, file.suffix)
        if file.parent.name != "report" or kind not in seen or file.suffix == ".json":
            files.append(str(file.relative_to(run)))
        seen.add(kind)
    return files


@pytest.mark.parametrize("part", ["base", "adapters", "checkpoints", "report", "run.json"])
def test_a_damaged_file_gives_the_same_numbers_or_an_error(states, intact, tally, part):
    def survive(case: tuple[str, str]) -> None:
        file, damage = case
        with states.copy("everything") as run:
            DAMAGES[damage](run / file)
            lines = readers(run)
            ended = dict(zip(lines, commands(*lines.values()), strict=True))
            for name, one in ended.items():
                found = shown(name, one, run)
                assert one.code in (0, *DOCUMENTED), (name, one)
                assert "Traceback" not in one.err, (name, one)
                # a folder whose manifest is gone does not count, and is named
                left_out = file.endswith("manifest.json") and "has no manifest" in one.err
                assert left_out or found in (None, intact[name]), f"{name} shows {found}"
                assert (found is None) == (one.code != 0) or name in ("runs", "doctor"), (name, one)

    files = [file for file in files_of(states) if Path(file).parts[0] == part]
    tally.attack(DAMAGED, part, some([(file, damage) for file in files for damage in DAMAGES], 3), survive)


def test_a_wrong_number_would_be_noticed(states, intact):
    """So the test above can fail."""
    with states.copy("everything") as run:
        path = run / "base" / "evaluation.json"
        document = json.loads(path.read_text())
        document["splits"]["test"]["count"] += 1
        path.write_text(json.dumps(document))
        lines = readers(run)
        ended = dict(zip(lines, commands(*lines.values()), strict=True))
        assert {name for name, one in ended.items() if shown(name, one, run) is None} >= {"verify", "report", "compare"}
