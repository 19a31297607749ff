"""Where everything of a run lies, what there has to be, and how it is saved: whole or not at all.

`base/run.json` is the run's record; the copy at the top of the run is for people and is renewed from it. They can not
disagree for long, because the record is moved into place together with the weights it describes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from lora_mnist import SCHEMA
from lora_mnist.errors import AlteredError, RunError
from lora_mnist.files import read_regular, require_writable, write_file
from lora_mnist.runs.artifact import RECORD, Artifact, ArtifactWriter
from lora_mnist.runs.contents import CONTENTS, read_contents, write_contents
from lora_mnist.runs.folders import (
    MANIFEST,
    clear,
    finished_folders,
    is_finished,
    mark_of,
    new_folder,
    recover,
    remove_folder,
)
from lora_mnist.runs.lock import holding
from lora_mnist.runs.schemas import RunRecord
from lora_mnist.settings.config import Settings
from lora_mnist.settings.strict import Document

P = ParamSpec("P")
T = TypeVar("T")


class Run:
    """One run directory: a base, adapters for it, whole networks made from it (`checkpoints`), and a report.

    What was read is kept, so one object serves one command.
    """

    def __init__(self, path: Path):
        self.path = path
        self.base = Artifact(path / "base")
        self.report = path / "report"
        self.exports = path / "exports"
        self._saved: dict[Path, Artifact] = {}
        self._there: dict[str, list[Path]] = {}  # what was finished when it was listed, by kind
        self._writing = 0
        self._stood: dict[Path, object] = {}  # what there was of each folder when the writing began

    def adapter(self, name: str) -> Artifact:
        """Adapter `name`, which need not be there."""
        return self._at(self.path / "adapters" / name)

    def checkpoint(self, name: str) -> Artifact:
        """Checkpoint `name`, which need not be there."""
        return self._at(self.path / "checkpoints" / name)

    def adapters(self) -> list[Artifact]:
        """Finished adapters, oldest first; without those that a killed `new_base` was about to remove."""
        return self._finished("adapters")

    def checkpoints(self) -> list[Artifact]:
        """Finished checkpoints, likewise."""
        return self._finished("checkpoints")

    def full_checkpoints(self) -> list[Artifact]:
        """Those that `finetune --full` made, oldest first."""
        return [saved for saved in self.checkpoints() if saved.is_tuned]

    def adapter_names(self) -> list[str]:
        return [saved.name for saved in self.adapters()]

    def digest(self) -> str:
        """SHA-256 over the manifests of base, adapters and checkpoints: one number that speaks for all of their files.

        Raises:
            RunError: a manifest cannot be read.
        """
        made = [self.base, *self.adapters(), *self.checkpoints()]
        manifests = {self._place_of(saved): saved.content(MANIFEST) for saved in made}
        hashes = {place: hashlib.sha256(content).hexdigest() for place, content in manifests.items()}
        return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()

    def on_top_of(self, adapter: str) -> tuple[str, ...]:
        """The adapters that were on, frozen, while this one was trained; none if it is not in the run."""
        saved = self.adapter(adapter)
        return saved.tuning.on_top_of if saved.is_tuned else ()

    @property
    def stored_report(self) -> Artifact:
        """The report as a reader checks it; it need not be there."""
        return self._at(self.report)

    # What there has to be ---------------------------------------------------------------------------------------------

    def require_base(self) -> Artifact:
        """The base. Raises RunError if there is none, or a file of it is not the one that was saved."""
        self._require_finished_base()
        self.base.require_whole()
        return self.base

    def _require_finished_base(self) -> None:
        if not self.base.is_finished:
            raise RunError(f"There is no base in {self.path}.", f"Run `lora-mnist pretrain --run {self.path}` first.")

    def require_adapter(self, name: str) -> Artifact:
        """Adapter `name`. Raises RunError if there is none, or a file of it is not the one that was saved."""
        return self._require("adapter", name, self.adapter(name), self.adapters())

    def require_checkpoint(self, name: str) -> Artifact:
        """Checkpoint `name`. Raises RunError if there is none, or a file of it is not the one that was saved."""
        return self._require("checkpoint", name, self.checkpoint(name), self.checkpoints())

    def _require(self, kind: str, name: str, saved: Artifact, there: Sequence[Artifact]) -> Artifact:
        if name != saved.name or not saved.is_finished or self._is_obsolete(saved):  # a path is no name
            names = ", ".join(one.name for one in there) or "none yet"
            raise RunError(f"There is no {kind} {name!r} in {self.path}.", f"It has {names}.")
        saved.require_whole()
        return saved

    def missing(self) -> tuple[str, ...]:
        """The places below the run of adapters and checkpoints whose folder or manifest is gone.

        Raises:
            RunError: what should be there cannot be told.
        """

        def gone() -> tuple[str, ...]:
            return tuple(place for place in read_contents(self.path) if not is_finished(self.path / place))

        return gone() and gone()  # a writer may have removed one since the list was read: then it is listed no longer

    def require_complete(self) -> None:
        """Raises RunError that names what is missing."""
        if missing := self.missing():
            raise RunError(
                f"{self.path} lacks {', '.join(missing)}: it was finished, but its folder or manifest is gone.",
                f"Restore it from a copy, make it again with --force, or delete {self.path / CONTENTS} to do without.",
            )

    def require_unused(self, saved: Artifact, force: bool) -> None:
        """Raises RunError if it is finished and not to be replaced, or if adapters were trained on top of it."""
        if not force and self._place_of(saved) in self.missing():
            self.require_complete()
        if not saved.is_finished and not force:
            return
        if not force:
            raise RunError(
                f"{saved.folder} is finished already.",
                "Look at it with `lora-mnist report`, give this one another --name, or make it again with --force.",
            )
        if saved.folder.parent != self.path / "adapters":
            return
        others = [one.name for one in self.adapters() if one.name != saved.name]  # its own record may be damaged
        if above := [name for name in others if saved.name in self.on_top_of(name)]:
            raise RunError(
                f"{saved.folder} cannot be replaced: {', '.join(above)} was trained on top of it.",
                "Choose another --name.",
            )

    def require_vacant(self) -> None:
        """Raises RunError if something lies where a new run would go: remains of another one, or not a run at all."""
        for name in ("base", "adapters", "checkpoints", "report"):
            folder = self.path / name
            if folder.is_dir() and any(folder.iterdir()):
                raise RunError(
                    f"{folder} is there, but no finished base.", "Choose another --run, or replace it with --force."
                )

    def require_writable(self) -> None:
        """Raises DiskError now rather than after the training."""
        require_writable(self.path)
        require_writable(self.path / "adapters")

    @property
    def is_as_read(self) -> bool:
        """Whether nothing has taken the place of what was read of it."""
        return all(saved.is_as_read for saved in (self.base, *self._saved.values()))

    @cached_property
    def record(self) -> RunRecord:
        """How the base was made. Raises RunError if there is none, or one of another schema."""
        self._require_finished_base()
        try:
            record = self.base.document(RECORD, RunRecord)
        except AlteredError:
            self._require_schema(self.base.document(RECORD, _AnyVersion).schema_version)
            raise
        self._require_schema(record.schema_version)
        return record

    def _require_schema(self, found: object) -> None:
        if found != SCHEMA:
            raise RunError(
                f"{self.path} was made by another version of lora-mnist: its schema is {found}, not {SCHEMA}.",
                "Use that version, choose another --run, or train it again with `pretrain --force --config …`.",
            )

    def stored_settings(self) -> Settings | None:
        """The settings in the record; None if there is no base.

        Raises:
            RunError: they cannot be read.
            AlteredError: they are not the ones that were saved.
        """
        if not self.base.is_finished:
            return None
        self.base.require_saved(RECORD)
        return self.record.settings

    # Writing --------------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one that writes here. What others finished in the meantime is seen; readers are not kept waiting.

        Raises:
            BusyError: another command writes here.
            DiskError: the disk refuses.
        """
        with holding(self.path) as taken:
            if taken:
                for folder in (self.path, self.path / "adapters", self.path / "checkpoints"):
                    clear(folder)
            if not self._writing:
                self._look_again()
            self._writing += 1
            try:
                yield
            finally:
                self._writing -= 1

    def _look_again(self) -> None:
        if not self.base.is_as_read:
            self._forget()
        self._there.clear()
        self._saved = {folder: saved for folder, saved in self._saved.items() if saved.is_as_read}
        there = [self.base, *self.dependents()]
        self._stood = {saved.folder: mark_of(saved.folder) for saved in there}

    def _require_unreplaced(self, place: Path) -> None:
        """Where locks do not work, another command may have finished the same in the meantime. Raises RunError."""
        if mark_of(place) not in (None, self._stood.get(place)):  # None: what there was is removed
            raise RunError(
                f"{place} was finished by another command in the meantime. That one is kept.",
                "Give this one another --name or --run, or make it again with --force.",
            )

    # Saving ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def new_base(self) -> Iterator[ArtifactWriter]:
        """Fill the folder of a new base; on leaving it takes its place, and what was made from the old one goes."""
        with self.writing():
            obsolete = self.dependents()
            with new_folder(self.base.folder) as folder:
                yield ArtifactWriter(folder)
                self._require_unreplaced(self.base.folder)
            self._forget()
            write_contents(self.path, ())
            for saved in obsolete:
                remove_folder(saved.folder)
            if is_finished(self.report):
                remove_folder(self.report)
            remove_folder(self.exports)
            self.tidy()
            self._look_again()

    @contextmanager
    def new(self, saved: Artifact) -> Iterator[ArtifactWriter]:
        """Fill the folder of an adapter or a checkpoint; on leaving it takes its place."""
        with self.writing():
            with new_folder(saved.folder) as folder:
                yield ArtifactWriter(folder)
                self._require_unreplaced(saved.folder)
            self._there.clear()
            self._list()
            self._saved.pop(saved.folder, None)
            self._stood[saved.folder] = mark_of(saved.folder)

    def save_report(self, files: Mapping[str, bytes]) -> Path:
        """Replace the report by `files` and return its page."""
        with self.writing(), new_folder(self.report) as folder:
            for name, content in files.items():
                write_file(folder / name, content)
        return self.report / "index.html"

    def dependents(self) -> list[Artifact]:
        """Everything that was made from a base, this one or the one that it replaced."""
        kinds = ("adapters", "checkpoints")
        return [self._at(folder) for kind in kinds for folder in finished_folders(self.path / kind)]

    def tidy(self) -> None:
        """Finish what a killed command left: folders beside their places, what was made from a base that has been
        replaced, and the copy of run.json."""
        for folder in (self.path, self.path / "adapters", self.path / "checkpoints"):
            recover(folder)
        self._list()
        for saved in self.dependents():
            if self._is_obsolete(saved):
                remove_folder(saved.folder)
                self._saved.pop(saved.folder)
        content, copy = self.base.content(RECORD), self.path / RECORD
        if not _holds(copy, content):
            write_file(copy, content)

    def _list(self) -> None:
        """Bring the list of what there is up to date; what is missing stays on it."""
        there = [self._place_of(saved) for saved in (*self.adapters(), *self.checkpoints())]
        places = {*there, *self.missing()}
        if places != set(read_contents(self.path)) or not (self.path / CONTENTS).exists():
            write_contents(self.path, places)

    def _place_of(self, saved: Artifact) -> str:
        return saved.folder.relative_to(self.path).as_posix()

    def _forget(self) -> None:
        """Nothing that was read holds any longer."""
        self.base = Artifact(self.base.folder)
        self._saved.clear()
        self._there.clear()
        self.__dict__.pop("record", None)

    def _at(self, folder: Path) -> Artifact:
        return self._saved.setdefault(folder, Artifact(folder))

    def _finished(self, kind: str) -> list[Artifact]:
        if kind not in self._there:  # once, so that what is added while one reads is for the next reader
            self._there[kind] = finished_folders(self.path / kind)
        return [saved for saved in map(self._at, self._there[kind]) if not self._is_obsolete(saved)]

    def _is_obsolete(self, saved: Artifact) -> bool:
        """Whether it belongs to the base that the present one replaced."""
        try:
            record = self.record
            if record.replaced_fingerprint in (None, record.base_fingerprint):
                return False
            return saved.evaluation.base_fingerprint == record.replaced_fingerprint
        except RunError:
            return False  # damaged, which is for `require` to say


def _holds(path: Path, content: bytes) -> bool:
    try:
        return read_regular(path, len(content)) == content
    except OSError:
        return False


def sole_writer(function: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """Let `function`, whose first argument is a run, be the only one that writes there (see `Run.writing`)."""

    @wraps(function)
    def alone(run: Run, /, *arguments: P.args, **named: P.kwargs) -> T:
        with run.writing():
            return function(run, *arguments, **named)

    return alone


class _AnyVersion(Document, extra="allow"):
    schema_version: object = None
