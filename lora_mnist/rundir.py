"""Where everything of a run lies, and how it is saved and loaded: whole or not at all.

`base/run.json` is the run's record; the copy at the top of the run is for people and is renewed from it. They can not
disagree for long, because the record is moved into place together with the weights it describes.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from lora_mnist import peft_format
from lora_mnist.errors import AlteredError, RunError
from lora_mnist.files import (
    check_folder,
    finished_folders,
    is_finished,
    new_folder,
    read_json,
    remove_folder,
    require_writable,
    to_json,
    write_file,
)
from lora_mnist.integrity import Seal, first_difference, seal
from lora_mnist.lora import LoRAConfig, LoRAUpdate, inject
from lora_mnist.model import MLP


@dataclass(frozen=True)
class Outcome:
    """What training and evaluation leave behind, for the base and for every adapter alike.

    Attributes:
        losses, rates: of every training step.
        evaluation: the document of evaluation.json.
        logits: (N, 10) fp32 by split.
    """

    losses: Sequence[float]
    rates: Sequence[float]
    evaluation: Mapping[str, Any]
    logits: Mapping[str, torch.Tensor]


class Run:
    """One run directory."""

    def __init__(self, path: Path):
        self.path = path
        self.base = path / "base"
        self.report = path / "report"

    def adapter(self, name: str) -> Path:
        return self.path / "adapters" / name

    @property
    def has_base(self) -> bool:
        return is_finished(self.base)

    def has_adapter(self, name: str) -> bool:
        return is_finished(self.adapter(name))

    def adapter_names(self) -> list[str]:
        """Finished adapters, oldest first; without those that a killed `save_base` was about to remove."""
        return [name for name in self._all_adapters() if not self._is_obsolete(name)]

    def _all_adapters(self) -> list[str]:
        return [place.name for place in finished_folders(self.path / "adapters")]

    def _is_obsolete(self, name: str) -> bool:
        """Whether adapter `name` belongs to the base that the present one replaced."""
        try:
            record, seal = self.record(), self.evaluation(name)["base_seal"]
        except RunError:
            return False  # damaged, which is for `require_adapter` to say
        return seal == record.get("replaced_seal") != record["base_seal"]

    def require_writable(self) -> None:
        """Raises DiskError now rather than after the training."""
        require_writable(self.path)
        require_writable(self.path / "adapters")

    def require_vacant(self) -> None:
        """Raises RunError if something lies where a new run would go: remains of another one, or not a run at all."""
        for place in (self.base, self.path / "adapters", self.report):
            if place.is_dir() and any(place.iterdir()):
                raise RunError(
                    f"{place} is there, but no finished base.", "Choose another --run, or replace it with --force."
                )

    # The base -------------------------------------------------------------------------------------------------------

    def require_base(self) -> None:
        """Raises RunError if there is no base, or a file of it is not the one that was saved."""
        if not self.has_base:
            raise RunError(f"There is no base in {self.path}.", self._call("pretrain"))
        check_folder(self.base)

    def record(self) -> dict[str, Any]:
        """The run's record (settings, data set, versions, …). Raises RunError if there is none."""
        if not self.has_base:
            raise RunError(f"There is no base in {self.path}.", self._call("pretrain"))
        return read_json(self.base / "run.json")

    def save_base(self, model: MLP, record: Mapping[str, Any], outcome: Outcome) -> list[str]:
        """Save a new base, then remove the adapters and the report of the old one. Returns the adapters' names."""
        obsolete = self._all_adapters()
        with suppress(RunError):
            record = {**record, "replaced_seal": self.evaluation()["base_seal"]}
        with new_folder(self.base) as folder:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
            about = {"architecture": {"class": "MLP", "hidden": model.hidden}, "seal": seal(tensors).to_text()}
            # one entry only: safetensors writes several in random order, and equal bases should be equal files
            write_file(folder / "model.safetensors", save(tensors, {"lora_mnist": json.dumps(about)}))
            write_file(folder / "run.json", to_json(record))
            _save_outcome(folder, outcome)
        for name in obsolete:
            remove_folder(self.adapter(name))
        if is_finished(self.report):
            remove_folder(self.report)
        self.tidy()
        return obsolete

    def tidy(self) -> None:
        """Finish what a killed `save_base` left: adapters of the base it replaced, and the copy of run.json."""
        for name in self._all_adapters():
            if self._is_obsolete(name):
                remove_folder(self.adapter(name))
        content, copy = (self.base / "run.json").read_bytes(), self.path / "run.json"
        if not copy.is_file() or copy.read_bytes() != content:
            write_file(copy, content)

    def load_base(self, device: torch.device | str = "cpu") -> tuple[MLP, Seal]:
        """The base, rebuilt from its checkpoint alone, and its seal.

        Raises:
            RunError: it is missing or damaged.
            AlteredError: its tensors are not the sealed ones.
        """
        path = self.base / "model.safetensors"
        tensors, metadata = _load_tensors(path)
        try:
            about = json.loads(metadata["lora_mnist"])
            hidden, stored = about["architecture"]["hidden"], Seal.from_text(about["seal"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} does not say what network it holds.", "Restore the file from a copy.") from error
        if name := first_difference(stored, seal(tensors)):
            raise AlteredError(f"{path}: tensor {name} is not the sealed one.", "Restore the file from a copy.")
        try:
            model = MLP(hidden)
            model.load_state_dict(tensors)
        except (TypeError, RuntimeError) as error:
            raise RunError(f"{path} holds no network of ours: {error}.", "Restore the file from a copy.") from error
        return model.to(device), stored

    # Adapters -------------------------------------------------------------------------------------------------------

    def require_adapter(self, name: str) -> None:
        """Raises RunError if there is no adapter `name`, or a file of it is not the one that was saved."""
        if not self.has_adapter(name):
            there = ", ".join(self.adapter_names()) or "none yet"
            raise RunError(f"There is no adapter {name!r} in {self.path}.", f"It has {there}.")
        check_folder(self.adapter(name))

    def save_adapter(
        self,
        name: str,
        config: LoRAConfig,
        updates: Mapping[str, LoRAUpdate],
        base_seal: Seal,
        documents: Mapping[str, Any],
        outcome: Outcome,
    ) -> None:
        """Save an adapter; `documents` are further JSON files by name."""
        with new_folder(self.adapter(name)) as folder:
            peft_format.save_adapter(folder, config, updates, base_seal)
            for file, document in documents.items():
                write_file(folder / file, to_json(document))
            _save_outcome(folder, outcome)

    def load_adapter(self, model: MLP, base_seal: Seal, name: str) -> LoRAConfig:
        """Inject adapter `name` into `model`, at strength 1.

        Raises:
            RunError: it is missing or damaged, does not fit, or was trained on a base with another seal.
        """
        folder = self.adapter(name)
        config = peft_format.load_config(folder)
        stored = peft_format.load_seal(folder)
        if different := first_difference(stored, base_seal):
            raise RunError(
                f"Adapter {name!r} was trained on another base: tensor {different} differs.",
                "Use it with the run it came from, or train it again on this base.",
            )
        peft_format.load_weights(folder, inject(model, name, config))
        return config

    # What stages left behind ----------------------------------------------------------------------------------------

    def folder(self, adapter: str | None) -> Path:
        """Of the base, or of an adapter."""
        return self.base if adapter is None else self.adapter(adapter)

    def evaluation(self, adapter: str | None = None) -> dict[str, Any]:
        return read_json(self.folder(adapter) / "evaluation.json")

    def document(self, adapter: str, file: str) -> dict[str, Any]:
        return read_json(self.adapter(adapter) / file)

    def losses(self, adapter: str | None = None) -> list[float]:
        with (self.folder(adapter) / "history.csv").open(newline="") as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    def logits(self, adapter: str | None = None) -> dict[str, torch.Tensor]:
        return _load_tensors(self.folder(adapter) / "logits.safetensors")[0]

    def save_report(self, files: Mapping[str, bytes]) -> Path:
        """Replace the report by `files` and return its page."""
        with new_folder(self.report) as folder:
            for name, content in files.items():
                write_file(folder / name, content)
        return self.report / "index.html"

    def _call(self, command: str) -> str:
        return f"Run `lora-mnist {command} --run {self.path}` first."


def _save_outcome(folder: Path, outcome: Outcome) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["step", "learning_rate", "loss"])
    writer.writerows(zip(range(1, len(outcome.losses) + 1), outcome.rates, outcome.losses, strict=True))
    write_file(folder / "history.csv", table.getvalue().encode())
    write_file(folder / "evaluation.json", to_json(outcome.evaluation))
    write_file(folder / "logits.safetensors", save(dict(outcome.logits)))


def _load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load(path.read_bytes()), metadata
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} cannot be read: {error}.", "Restore it from a copy, or make it again with --force."
        ) from error
