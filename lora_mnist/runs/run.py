"""A run on disk: where everything is, what must be there, and how it is replaced.

`base/run.json` is the run's record; the copy at the top of the run is for people and is renewed from it. The record is
moved into place together with the weights it describes, so the two cannot disagree.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from lora_mnist import SCHEMA
from lora_mnist.errors import AlteredError, RunError
from lora_mnist.files import read_regular
from lora_mnist.runs.artifact import RECORD, Artifact, ArtifactWriter
from lora_mnist.runs.atomic import (
    MANIFEST,
    RESTORE,
    finished_folders,
    new_folder,
    one_writer,
    parse_json,
    recover,
    remove_folder,
    require_writable,
    unfinished_folders,
    write_file,
)
from lora_mnist.runs.schemas import RunRecord

log = logging.getLogger("lora_mnist")

KINDS = ("adapters", "checkpoints")


class Run:
    """One run directory: a base, adapters for it, whole networks made from it (`checkpoints`), and a report.

    What was read is kept, so one object serves one command.
    """

    def __init__(self, path: Path):
        self.path = path
        self.base = Artifact(path / "base")
        self.report = path / "report"
        self.exports = path / "exports"
        self._artifacts: dict[Path, Artifact] = {}

    def adapter(self, name: str) -> Artifact:
        """Adapter `name`, which need not exist."""
        return self._at(self.path / "adapters" / name)

    def checkpoint(self, name: str) -> Artifact:
        """Checkpoint `name`, which need not exist."""
        return self._at(self.path / "checkpoints" / name)

    def adapters(self) -> list[Artifact]:
        """Finished adapters, oldest first; without those that a killed `new_base` was about to remove."""
        return self._finished("adapters")

    def checkpoints(self) -> list[Artifact]:
        """Finished checkpoints, likewise."""
        return self._finished("checkpoints")

    def full_checkpoints(self) -> list[Artifact]:
        """Those that `finetune --full` made, oldest first."""
        return [one for one in self.checkpoints() if one.is_finetuned]

    def adapter_names(self) -> list[str]:
        return [one.name for one in self.adapters()]

    def unfinished(self) -> list[Path]:
        """Folders under adapters/ and checkpoints/ without a manifest, which do not count."""
        return [folder for kind in KINDS for folder in unfinished_folders(self.path / kind)]

    def dependents(self) -> list[Artifact]:
        """Everything that was made from a base, this one or the one that it replaced."""
        return [self._at(folder) for kind in KINDS for folder in finished_folders(self.path / kind)]

    def digest(self) -> str:
        """SHA-256 over the manifests of base, adapters and checkpoints: one number that covers all of their files.

        Raises RunError if a manifest cannot be read.
        """
        hashes = {
            one.folder.relative_to(self.path).as_posix(): hashlib.sha256(one.content(MANIFEST)).hexdigest()
            for one in (self.base, *self.adapters(), *self.checkpoints())
        }
        return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()

    def on_top_of(self, adapter: str) -> tuple[str, ...]:
        """The adapters that were on, frozen, while this one was trained; none if it is not in the run."""
        one = self.adapter(adapter)
        return one.finetune.on_top_of if one.is_finetuned else ()

    @cached_property
    def record(self) -> RunRecord:
        """How the base was made. Raises RunError if there is no base, or it was made by another version."""
        self._require_finished_base()
        document = parse_json(self.base.folder / RECORD, self.base.content(RECORD))
        if isinstance(document, dict) and (found := document.get("schema_version")) != SCHEMA:
            raise RunError(
                f"{self.path} was made by another version of lora-mnist: its schema is {found}, not {SCHEMA}.",
                "Use that version, choose another --run, or train it again with `pretrain --force --config …`.",
            )
        return self.base.document(RECORD, RunRecord)

    # What must be there -----------------------------------------------------------------------------------------------

    def require_base(self) -> Artifact:
        """The base. Raises RunError if there is none, AlteredError if a file of it is not the saved one."""
        self._require_finished_base()
        self.base.require_whole()
        for folder in self.unfinished():
            log.warning("Warning: %s has no manifest, so it does not count. Restore it, or delete it.", folder)
        return self.base

    def _require_finished_base(self) -> None:
        if not self.base.is_finished:
            raise RunError(f"There is no base in {self.path}.", f"Run `lora-mnist pretrain --run {self.path}` first.")

    def require_adapter(self, name: str) -> Artifact:
        """Adapter `name`. Raises RunError if there is none, AlteredError if a file of it is not the saved one."""
        return self._require("adapter", name, self.adapter(name))

    def require_checkpoint(self, name: str) -> Artifact:
        """Checkpoint `name`. Raises RunError if there is none, AlteredError if a file of it is not the saved one."""
        return self._require("checkpoint", name, self.checkpoint(name))

    def _require(self, kind: str, name: str, artifact: Artifact) -> Artifact:
        if name != artifact.name or not artifact.is_finished or self._is_obsolete(artifact):  # a path is not a name
            if artifact.folder in self.unfinished():
                raise AlteredError(f"{artifact.folder} has no manifest.", RESTORE)
            there = ", ".join(one.name for one in self._finished(f"{kind}s")) or "none yet"
            raise RunError(f"There is no {kind} {name!r} in {self.path}.", f"It has {there}.")
        artifact.require_whole()
        return artifact

    def require_unused(self, artifact: Artifact, force: bool) -> None:
        """Raises RunError if it is finished and must not be replaced, or if adapters were trained on top of it."""
        if not artifact.is_finished:
            return
        if not force:
            raise RunError(
                f"{artifact.folder} is finished already.",
                "Look at it with `lora-mnist report`, give this one another --name, or make it again with --force.",
            )
        if artifact.folder.parent == self.path / "adapters":
            others = [name for name in self.adapter_names() if name != artifact.name]
            if above := [name for name in others if artifact.name in self.on_top_of(name)]:
                raise RunError(
                    f"{artifact.folder} cannot be replaced: {', '.join(above)} was trained on top of it.",
                    "Choose another --name.",
                )

    def require_unchanged(self) -> None:
        """Raises RunError if another command has replaced or removed something since it was read."""
        for artifact in (self.base, *self._artifacts.values()):
            artifact.require_unchanged()

    def require_vacant(self) -> None:
        """Raises RunError if something is where a new run would go: leftovers of another one, or not a run at all."""
        for name in ("base", *KINDS, "report"):
            folder = self.path / name
            if folder.is_dir() and any(folder.iterdir()):
                raise RunError(
                    f"{folder} exists, but there is no finished base.",
                    "Choose another --run, or replace it with --force.",
                )

    def require_writable(self) -> None:
        """Raises DiskError now rather than after the training."""
        require_writable(self.path)
        require_writable(self.path / "adapters")

    # Writing ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one that writes here, and see what others finished before. Readers do not wait.

        Raises BusyError if another command writes here, DiskError if the disk refuses.
        """
        with one_writer(self.path) as first:
            if first:
                for folder in (self.path, *(self.path / kind for kind in KINDS)):
                    recover(folder)
                self._forget()
            yield

    @contextmanager
    def new_base(self) -> Iterator[ArtifactWriter]:
        """Fill the folder of a new base; on leaving it takes its place, and what was made from the old one goes."""
        with self.writing():
            obsolete = self.dependents()
            with new_folder(self.base.folder) as folder:
                yield ArtifactWriter(folder)
            self._forget()
            for place in (*(artifact.folder for artifact in obsolete), self.report, self.exports):
                remove_folder(place)
            self.tidy()

    @contextmanager
    def new(self, artifact: Artifact) -> Iterator[ArtifactWriter]:
        """Fill the folder of an adapter or a checkpoint; on leaving it takes its place."""
        with self.writing():
            with new_folder(artifact.folder) as folder:
                yield ArtifactWriter(folder)
            self._artifacts.pop(artifact.folder, None)

    def save_report(self, files: Mapping[str, bytes]) -> Path:
        """Replace the report by `files` and return its page."""
        with self.writing(), new_folder(self.report) as folder:
            for name, content in files.items():
                write_file(folder / name, content)
        return self.report / "index.html"

    def tidy(self) -> None:
        """Finish what a killed command left: remove what was made from a replaced base, renew the copy of run.json."""
        for artifact in self.dependents():
            if self._is_obsolete(artifact):
                remove_folder(artifact.folder)
                self._artifacts.pop(artifact.folder)
        content, copy = self.base.content(RECORD), self.path / RECORD
        if not (copy.is_file() and read_regular(copy) == content):
            write_file(copy, content)

    def _forget(self) -> None:
        """Read everything again when it is asked for."""
        self.base = Artifact(self.base.folder)
        self._artifacts.clear()
        self.__dict__.pop("record", None)

    def _at(self, folder: Path) -> Artifact:
        return self._artifacts.setdefault(folder, Artifact(folder))

    def _finished(self, kind: str) -> list[Artifact]:
        found = [self._at(folder) for folder in finished_folders(self.path / kind)]
        return [artifact for artifact in found if not self._is_obsolete(artifact)]

    def _is_obsolete(self, artifact: Artifact) -> bool:
        """Whether it was made from the base that the present one replaced."""
        try:
            replaced, present = self.record.replaced_fingerprint, self.record.base_fingerprint
            return replaced not in (None, present) and artifact.evaluation.base_fingerprint == replaced
        except RunError:
            return False  # damaged, which `require_…` will say
