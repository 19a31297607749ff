"""Every command that writes, and the runs that they start from: tiny ones, on the embedded digits."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from .processes import Ended, command
from .trees import facts, timeless

SMALL = ("--threads", "1", "--quiet")
TINY = ("--config", "smoke", "--dataset", "digits", *SMALL)
ADAPTER = "digit9-r2"  # what `finetune` makes of the tiny base, whose weakest digit is the nine
VERIFY = ("verify", "--json", "--threads", "1")


@dataclass(frozen=True)
class Stage:
    """A command that writes. Its name is also that of the state in which it leaves a run.

    Attributes:
        start: the state that it starts from.
        through: further states, in which it may leave the run when it is ended on its way.
        repeats: whether it may be called again when it is done.
        strides: where many operations are alike, or those of stages that have tests of their own, only each
            so-many-th of them fails, and at each so-many-th it is killed.
    """

    name: str
    start: str
    words: tuple[str, ...]
    through: tuple[str, ...] = ()
    repeats: bool = False
    strides: tuple[int, int] = (1, 1)


STAGES = (
    Stage("pretrain", "nothing", ("pretrain", *TINY)),
    Stage("finetune", "pretrain", ("finetune", *SMALL)),
    Stage("full", "pretrain", ("finetune", "--full", *SMALL)),
    Stage("extract", "full", ("extract", "--rank", "2", *SMALL)),
    Stage("merge", "finetune", ("merge", "--adapter", ADAPTER, *SMALL)),
    Stage("run", "nothing", ("run", *TINY), ("pretrain", "finetune"), repeats=True, strides=(5, 2)),
    Stage("report again", "run", ("report", "--normalise", "--quiet"), repeats=True, strides=(3, 2)),
    Stage("finetune again", "finetune", ("finetune", "--force", "--steps", "10", *SMALL), repeats=True),
    Stage("pretrain again", "run", ("pretrain", "--force", "--seed", "1", *SMALL), repeats=True),
    Stage(
        *("run again", "run", ("run", "--force", "--seed", "1", *SMALL)),
        ("pretrain again", "finetune after"),
        repeats=True,
        strides=(5, 3),
    ),
)
OTHERS = (  # states, and no tests of their own
    Stage("finetune after", "pretrain again", ("finetune", *SMALL)),
    Stage("full after", "run", ("finetune", "--full", *SMALL)),
    Stage("everything", "full after", ("merge", "--adapter", ADAPTER, *SMALL)),
)


class States:
    """A run in every state, made once each."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._made: dict[str, Path] = {}
        self._facts: dict[str, dict[str, object]] = {}
        self._proofs: dict[str, tuple[int, object]] = {}
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

    def facts(self, state: str) -> dict[str, object]:
        """What the files of that state say."""
        if state not in self._facts:
            self._facts[state] = facts(self.path(state))
        return self._facts[state]

    def proof(self, state: str) -> tuple[int, object]:
        """What `verify` says of it: its exit code, and what it found."""
        if state not in self._proofs:
            self._proofs[state] = said(command(*VERIFY, "--run", self.path(state)))
        return self._proofs[state]

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


def said(ended: Ended) -> tuple[int, object]:
    """A command's exit code and its JSON without what differs each time, unless that is an error."""
    found = json.loads(ended.out)
    return ended.code, None if "error" in found else timeless(found)
