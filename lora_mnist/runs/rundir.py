"""Where everything of a run lies, and how it is saved: whole or not at all.

`base/run.json` is the run's record; the copy at the top of the run is for people and is renewed from it. They can not
disagree for long, because the record is moved into place together with the weights it describes.

Importing this does not import torch, so that commands which only read JSON start at once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mnist import SCHEMA
from lora_mnist.errors import RunError
from lora_mnist.files import (
    check_folder,
    finished_folders,
    is_finished,
    new_folder,
    read_json,
    recover,
    remove_folder,
    require_writable,
    standing,
    to_json,
    write_file,
)

if TYPE_CHECKING:
    import numpy
    import torch

    from lora_mnist.training.model import MLP

WEIGHTS = "model.safetensors"
LOGITS = "logits.safetensors"
PICTURES = "pictures.safetensors"


@dataclass(frozen=True)
class Outcome:
    """What training and evaluation leave behind, for the base, every adapter and every checkpoint alike.

    Attributes:
        evaluation: the document of evaluation.json.
        logits: (N, 10) fp32 by split.
        losses, rates: of every training step; none if nothing was trained.
        documents: further JSON files, by name.
        pictures: (n, 28, 28) by what they show; for the report.
    """

    evaluation: Mapping[str, Any]
    logits: Mapping[str, torch.Tensor]
    losses: Sequence[float] = ()
    rates: Sequence[float] = ()
    documents: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Run:
    """One run directory: a base, adapters for it, whole networks made from it (`checkpoints`), and a report.

    Most methods take the folder of one of these, `place`.
    """

    def __init__(self, path: Path):
        self.path = path
        self.base = path / "base"
        self.adapters = path / "adapters"
        self.checkpoints = path / "checkpoints"
        self.report = path / "report"

    def adapter(self, name: str) -> Path:
        return self.adapters / name

    def checkpoint(self, name: str) -> Path:
        return self.checkpoints / name

    @property
    def has_base(self) -> bool:
        return is_finished(self.base)

    def adapter_names(self) -> list[str]:
        """Finished adapters, oldest first; without those that a killed `save_base` was about to remove."""
        return self._names(self.adapters)

    def checkpoint_names(self) -> list[str]:
        """Finished checkpoints, likewise."""
        return self._names(self.checkpoints)

    def trained_whole(self) -> list[Path]:
        """The folders of those checkpoints that `finetune --full` made, oldest first."""
        places = [self.checkpoint(name) for name in self.checkpoint_names()]
        return [place for place in places if (standing(place) / "finetune.json").is_file()]

    def _names(self, parent: Path) -> list[str]:
        return [place.name for place in finished_folders(parent) if not self._is_obsolete(place)]

    def _dependents(self) -> list[Path]:
        """Everything that was made from a base."""
        return [*finished_folders(self.adapters), *finished_folders(self.checkpoints)]

    def _is_obsolete(self, place: Path) -> bool:
        """Whether `place` belongs to the base that the present one replaced."""
        try:
            record, seal = self.record(), self.evaluation(place)["base_seal"]
        except RunError:
            return False  # damaged, which is for `require` to say
        return seal == record.get("replaced_seal") != record["base_seal"]

    def require_writable(self) -> None:
        """Raises DiskError now rather than after the training."""
        require_writable(self.path)
        require_writable(self.adapters)

    def require_vacant(self) -> None:
        """Raises RunError if something lies where a new run would go: remains of another one, or not a run at all."""
        for place in (self.base, self.adapters, self.checkpoints, self.report):
            if place.is_dir() and any(place.iterdir()):
                raise RunError(
                    f"{place} is there, but no finished base.", "Choose another --run, or replace it with --force."
                )

    def require_base(self) -> None:
        """Raises RunError if there is no base, or a file of it is not the one that was saved."""
        if not self.has_base:
            raise RunError(f"There is no base in {self.path}.", self._call("pretrain"))
        check_folder(self.base)

    def require_adapter(self, name: str) -> None:
        """Raises RunError if there is no adapter `name`, or a file of it is not the one that was saved."""
        self._require("adapter", self.adapter(name), self.adapter_names())

    def require_checkpoint(self, name: str) -> None:
        """Raises RunError if there is no checkpoint `name`, or a file of it is not the one that was saved."""
        self._require("checkpoint", self.checkpoint(name), self.checkpoint_names())

    def _require(self, kind: str, place: Path, there: Sequence[str]) -> None:
        if not is_finished(place):
            raise RunError(
                f"There is no {kind} {place.name!r} in {self.path}.", f"It has {', '.join(there) or 'none yet'}."
            )
        check_folder(place)

    def require_unused(self, place: Path, force: bool) -> None:
        """Raises RunError if `place` is finished already and not to be replaced, or if adapters were trained on it."""
        above = [name for name in self.adapter_names() if place.name in self.on_top_of(name)]
        if is_finished(place) and place.parent == self.adapters and force and above:
            raise RunError(
                f"{place} cannot be replaced: {', '.join(above)} was trained on top of it.", "Choose another --name."
            )
        if is_finished(place) and not force:
            raise RunError(
                f"{place} is finished already.",
                "Look at it with `lora-mnist report`, give this one another --name, or make it again with --force.",
            )

    def record(self) -> dict[str, Any]:
        """Settings, data set, versions, … of the run. Raises RunError if there are none, or of another schema."""
        if not self.has_base:
            raise RunError(f"There is no base in {self.path}.", self._call("pretrain"))
        record = self.document(self.base, "run.json")
        if (found := record.get("schema_version")) != SCHEMA:
            raise RunError(
                f"{self.path} was made by another version of lora-mnist: its schema is {found}, not {SCHEMA}.",
                "Use that version, choose another --run, or train it again with `lora-mnist pretrain --force`.",
            )
        return record

    def stored_settings(self) -> dict[str, Any] | None:
        """The settings in the record, or None: no run yet, or one that --force is about to replace as it is damaged."""
        try:
            self.require_base()
            return self.record()["settings"]
        except RunError:
            return None

    # Saving ---------------------------------------------------------------------------------------------------------

    def save_base(self, model: MLP, record: Mapping[str, Any], outcome: Outcome) -> list[str]:
        """Save a new base, then remove what was made from the old one. Returns the names of that."""
        from lora_mnist.runs.checkpoint import save_network

        obsolete = self._dependents()
        with suppress(RunError):
            record = {**record, "replaced_seal": self.evaluation()["base_seal"]}
        with new_folder(self.base) as folder:
            save_network(folder / WEIGHTS, model)
            write_file(folder / "run.json", to_json(record))
            _save_outcome(folder, outcome)
        for place in obsolete:
            remove_folder(place)
        if is_finished(self.report):
            remove_folder(self.report)
        self.tidy()
        return [place.name for place in obsolete]

    def save_adapter(self, name: str, write: Callable[[Path], None], outcome: Outcome) -> None:
        """Save an adapter whose weights `write` puts into a folder."""
        with new_folder(self.adapter(name)) as folder:
            write(folder)
            _save_outcome(folder, outcome)

    def save_checkpoint(self, name: str, model: MLP, outcome: Outcome) -> Path:
        """Save a network that was made from the base, and return its file."""
        from lora_mnist.runs.checkpoint import save_network

        with new_folder(self.checkpoint(name)) as folder:
            save_network(folder / WEIGHTS, model)
            _save_outcome(folder, outcome)
        return self.checkpoint(name) / WEIGHTS

    def save_report(self, files: Mapping[str, bytes]) -> Path:
        """Replace the report by `files` and return its page."""
        with new_folder(self.report) as folder:
            for name, content in files.items():
                write_file(folder / name, content)
        return self.report / "index.html"

    def tidy(self) -> None:
        """Finish what a killed writer left: a replacement half-way, what was made from a base that is replaced, and the
        copy of run.json."""
        for parent in (self.path, self.adapters, self.checkpoints):
            recover(parent)
        for place in self._dependents():
            if self._is_obsolete(place):
                remove_folder(place)
        content, copy = (self.base / "run.json").read_bytes(), self.path / "run.json"
        if not copy.is_file() or copy.read_bytes() != content:
            write_file(copy, content)

    # What was saved ---------------------------------------------------------------------------------------------------

    def evaluation(self, place: Path | None = None) -> dict[str, Any]:
        """Of the base, unless told another place."""
        return self.document(place or self.base, "evaluation.json")

    def document(self, place: Path, file: str) -> dict[str, Any]:
        return read_json(standing(place) / file)

    def on_top_of(self, adapter: str) -> list[str]:
        """The adapters that were on, frozen, while this one was trained; [] if it is not in the run."""
        record = standing(self.adapter(adapter)) / "finetune.json"
        return read_json(record)["on_top_of"] if record.is_file() else []

    def losses(self, place: Path | None = None) -> list[float]:
        with (standing(place or self.base) / "history.csv").open(newline="") as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    def logits(self, place: Path | None = None) -> dict[str, torch.Tensor]:
        """(N, 10) fp32 by split."""
        from lora_mnist.runs.checkpoint import load_tensors

        return load_tensors(standing(place or self.base) / LOGITS)

    def pictures(self, place: Path) -> dict[str, numpy.ndarray]:
        """(n, 28, 28) by what they show: `examples` uint8, `directions` float32."""
        from safetensors.numpy import load_file

        return load_file(standing(place) / PICTURES)

    def _call(self, command: str) -> str:
        return f"Run `lora-mnist {command} --run {self.path}` first."


def _save_outcome(folder: Path, outcome: Outcome) -> None:
    from lora_mnist.runs.checkpoint import save_tensors

    for name, document in outcome.documents.items():
        write_file(folder / name, to_json(document))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["step", "learning_rate", "loss"])
    writer.writerows(zip(range(1, len(outcome.losses) + 1), outcome.rates, outcome.losses, strict=True))
    write_file(folder / "history.csv", table.getvalue().encode())
    write_file(folder / "evaluation.json", to_json(outcome.evaluation))
    save_tensors(folder / LOGITS, dict(outcome.logits))
    if outcome.pictures:
        save_tensors(folder / PICTURES, dict(outcome.pictures))
