"""Every command that writes, the runs that they start from, and what the files of a run say."""

import functools
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ..conftest import snapshot
from .processes import Ended, command

SMALL = ("--threads", "1", "--quiet")
TINY = ("--config", "smoke", "--dataset", "mnist-5k", "--epochs", "1", *SMALL)
ADAPTER, CHECKPOINT = "digit2-r2", "digit2-full"  # made of the tiny base, whose weakest digit is the two
VERIFY = ("verify", "--json", "--threads", "1")
VARYING = {"seconds", "date", "digest", "run_digest", "replaced_fingerprint", "notes"}  # from one run to the next


@dataclass(frozen=True)
class Stage:
    """A command that writes. Its name is also that of the state in which it leaves a run."""

    name: str
    start: str  # the state that it starts from
    words: tuple[str, ...]
    through: tuple[str, ...] = ()  # further states, in which it may leave the run when it is ended on its way


STAGES = (
    Stage("pretrain", "nothing", ("pretrain", *TINY)),
    Stage("finetune", "pretrain", ("finetune", *SMALL)),
    Stage("full", "pretrain", ("finetune", "--full", *SMALL)),
    Stage("extract", "full", ("extract", "--rank", "2", *SMALL)),
    Stage("merge", "finetune", ("merge", "--adapter", ADAPTER, *SMALL)),
    Stage("run", "nothing", ("run", *TINY), ("pretrain", "finetune")),
    Stage("report again", "run", ("report", "--normalise", "--quiet")),
    Stage("finetune again", "finetune", ("finetune", "--force", "--steps", "10", *SMALL)),
    Stage("pretrain again", "run", ("pretrain", "--force", "--seed", "1", *SMALL)),
)
OTHERS = (  # states, and no tests of their own
    Stage("full after", "run", ("finetune", "--full", *SMALL)),
    Stage("everything", "full after", ("merge", "--adapter", ADAPTER, *SMALL)),
)


class States:
    """A run in every state, made once each."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._made: dict[str, Path] = {}
        self._lock = threading.RLock()
        self._stages = {stage.name: stage for stage in (*STAGES, *OTHERS)}

    def path(self, state: str) -> Path:
        """A run in that state; it is not to be changed."""
        with self._lock:
            if state not in self._made:
                place = self._folder / state.replace(" ", "-") / "run"
                place.parent.mkdir()
                if state != "nothing":
                    stage = self._stages[state]
                    self._copy(stage.start, place)
                    done = command(*stage.words, "--run", place)
                    assert done.code == 0, done.err
                self._made[state] = place
            return self._made[state]

    @contextmanager
    def copy(self, state: str) -> Iterator[Path]:
        """A run in that state to be changed, in a folder of its own."""
        with TemporaryDirectory(dir=self._folder) as folder:
            place = Path(folder) / "run"
            self._copy(state, place)
            yield place

    def _copy(self, state: str, place: Path) -> None:
        if self.path(state).is_dir():
            shutil.copytree(self.path(state), place)


@pytest.fixture(scope="session")
def states(tmp_path_factory) -> States:
    return States(tmp_path_factory.mktemp("states"))


def result_of(ended: Ended) -> tuple[int, object]:
    """A command's exit code and its JSON without what differs each time, unless that is an error."""
    found = json.loads(ended.out)
    return ended.code, None if "error" in found else timeless(found)


def facts(folder: Path) -> dict[str, object]:
    """By file, what is to be the same in two runs of the same settings; without what is on its way."""
    found = {}
    for name, content in snapshot(folder).items():
        if name.startswith(".") or "/." in name:
            continue
        if name.endswith("manifest.json"):
            found[name] = sorted(json.loads(content)["files"])
        elif name.endswith(".json"):
            found[name] = timeless(json.loads(content))
        else:
            found[name] = None if name.endswith((".html", ".svg", ".png")) else content  # drawn from the numbers
    return found


@functools.cache
def facts_of(run: Path) -> dict[str, object]:
    """The same of a run that is not changed."""
    return facts(run)


@functools.cache
def proof_of(run: Path) -> tuple[int, object]:
    """What `verify` says of a run that is not changed."""
    return result_of(command(*VERIFY, "--run", run))


def remains(folder: Path) -> list[str]:
    """What a command that was ended has left behind, but for an empty folder that could not be removed."""
    found = [path for path in folder.rglob(".*") if re.search(r"\.(new-|old|lock|writer)", path.name)]
    return sorted(path.name for path in found if not path.is_dir() or any(path.iterdir()))


def is_whole(folder: Path) -> bool:
    """Whether each file is the one that the manifest lists."""
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    return all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in listed.items())


def timeless(document: object) -> object:
    """A JSON document without what varies."""
    if isinstance(document, dict):
        return {key: timeless(value) for key, value in document.items() if key not in VARYING}
    return [timeless(value) for value in document] if isinstance(document, list) else document
