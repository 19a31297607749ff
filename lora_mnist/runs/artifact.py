"""One folder of a run (its base, an adapter or a checkpoint): its files by name, how they are read and written.

Importing this does not import torch, so that commands which only read JSON start at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from lora_mnist.errors import AlteredError, RunError, shown
from lora_mnist.evaluation.results import Analysis
from lora_mnist.files import LARGEST_DOCUMENT, LARGEST_WEIGHTS, read_regular, to_json, write_file
from lora_mnist.runs.folders import MANIFEST, check_folder, is_finished, mark_of, read_manifest, require_same, standing
from lora_mnist.runs.schemas import Evaluation, FinetuneRecord, Provenance
from lora_mnist.settings.strict import Document, first_fault

if TYPE_CHECKING:
    import numpy
    import torch

    from lora_mnist.training.loop import History
    from lora_mnist.training.model import MLP

D = TypeVar("D", bound=Document)

RECORD, TUNING, EVALUATION, ANALYSIS = "run.json", "finetune.json", "evaluation.json", "analysis.json"
PROVENANCE, MERGE = "provenance.json", "merge.json"
HISTORY = "history.csv"
WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
LOGITS, PICTURES = "logits.safetensors", "pictures.safetensors"
OURS = (RECORD, TUNING, EVALUATION, ANALYSIS, PROVENANCE, MERGE, HISTORY, WEIGHTS, ADAPTER_WEIGHTS, LOGITS, PICTURES)
RESTORE = "Restore it from a copy, or make it again with --force."


class Artifact:
    """A base, an adapter or a checkpoint of a run, as it was saved. Each of its documents is read once.

    Attributes:
        folder: where it belongs. If a writer was killed in the middle, its files may still lie beside it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._contents: dict[str, bytes] = {}
        self._is_whole = False
        self._mark: object = None
        self._was_replaced = False

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def is_finished(self) -> bool:
        return is_finished(self.folder)

    def file(self, name: str) -> Path:
        """Where a file of it lies now."""
        return standing(self.folder) / name

    def require_whole(self) -> None:
        """Raises RunError if a file of it is missing, AlteredError if one is not the one that was saved."""
        while not self._is_whole:
            try:
                for name in self.hashes:
                    if name.endswith(".json"):
                        self.content(name)  # kept, so that each is read once
                check_folder(self.folder, self._contents)
                self._require_listed()
                self._is_whole = True
            except RunError:
                if self.is_current:
                    raise
                self.forget()  # a writer replaced it between two files
                self._was_replaced = True

    def require_saved(self, name: str) -> None:
        """Raises RunError if a document cannot be read, AlteredError if it is not the one that was saved."""
        found = hashlib.sha256(self.content(name)).hexdigest()
        require_same(self.folder / name, found, self.hashes.get(name))

    def _require_listed(self) -> None:
        """What the manifest leaves out was compared with nothing."""
        for name in OURS:
            if name not in self.hashes and self.file(name).exists():
                raise AlteredError(f"{self.folder / MANIFEST} does not list {name}, which is there.", RESTORE)

    @property
    def is_current(self) -> bool:
        """Whether nothing has taken its place since it was read. True if it was not read yet."""
        return self._mark is None or self._mark == mark_of(self.folder)

    @property
    def is_as_read(self) -> bool:
        """Whether all that was read of it was of one moment, and nothing has taken its place."""
        return self.is_current and not self._was_replaced

    def forget(self) -> None:
        """Read everything again when it is asked for."""
        self._contents.clear()
        self._is_whole, self._mark = False, None
        for name in ("hashes", "evaluation", "tuning", "analysis", "made"):
            self.__dict__.pop(name, None)

    @cached_property
    def hashes(self) -> Mapping[str, str]:
        """SHA-256 of every file, as its manifest has it."""
        return read_manifest(self.folder, self.content(MANIFEST))

    @property
    def weights(self) -> str:
        """The name of the file that holds them. Raises AlteredError if the manifest lists none."""
        for name in (ADAPTER_WEIGHTS, WEIGHTS):
            if name in self.hashes:
                return name
        raise AlteredError(f"{self.folder / MANIFEST} lists no weights.", RESTORE)

    @cached_property
    def evaluation(self) -> Evaluation:
        return self.document(EVALUATION, Evaluation)

    @cached_property
    def tuning(self) -> FinetuneRecord:
        """Of an adapter, or of a checkpoint with all weights trained."""
        return self.document(TUNING, FinetuneRecord)

    @property
    def is_tuned(self) -> bool:
        """Whether it has a `tuning`, or had when it was saved; a base and a merged checkpoint have none."""
        return TUNING in self.hashes if is_finished(self.folder) else self.file(TUNING).is_file()

    @cached_property
    def analysis(self) -> Analysis:
        return self.document(ANALYSIS, Analysis)

    @cached_property
    def made(self) -> Provenance:
        return self.document(PROVENANCE, Provenance)

    def document(self, name: str, kind: type[D]) -> D:
        """Read and validate a JSON file.

        Raises:
            RunError: it cannot be read.
            AlteredError: it is not JSON, or not what it should be; file and field are named.
        """
        path = self.folder / name
        content = self.content(name)
        try:
            return kind.model_validate_json(content)
        except ValidationError as error:
            key, fault, value, rule = first_fault(error)
            if fault == "json_invalid":
                raise AlteredError(f"{path} is not JSON: {rule}.", RESTORE) from error
            received = "" if fault == "missing" else f" (={shown(value)})"
            what = f": `{key}`{received}" if key else received
            raise AlteredError(f"{path}{what} {_sentence(rule)}.", RESTORE) from error

    def losses(self) -> list[float]:
        """Of every training step; none if nothing was trained. Raises RunError if they cannot be read."""
        text = self.content(HISTORY)
        try:
            return [float(row["loss"]) for row in csv.DictReader(io.StringIO(text.decode()))]
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise AlteredError(f"{self.folder / HISTORY} is no table of losses: {error!r}.", RESTORE) from error

    def logits(self) -> dict[str, torch.Tensor]:
        """(N, 10) fp32 by split."""
        from lora_mnist.runs.checkpoint import load_tensors

        return load_tensors(self.file(LOGITS))

    def arrays(self, name: str, *required: str) -> dict[str, numpy.ndarray]:
        """The tensors of a file by name, read without torch.

        Args:
            required: names that have to be among them.

        Raises:
            RunError: they cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = dict(sorted(load(self.content(name)).items()))  # it gives them in random order
        except (SafetensorError, KeyError) as error:
            raise AlteredError(f"{self.folder / name} holds no tensors: {error!r}.", RESTORE) from error
        if missing := [one for one in required if one not in arrays]:
            raise AlteredError(f"{self.folder / name} has no {', '.join(missing)}.", RESTORE)
        return arrays

    def pictures(self) -> dict[str, numpy.ndarray]:
        """(n, 28, 28) by what they show: `examples` uint8, `directions` float32; and of the test images that are wrong
        before or after `wrong` uint8, `wrong_index` and `wrong_label` int64 (n,). Older adapters lack these three.

        Raises:
            RunError: they cannot be read.
        """
        return self.arrays(PICTURES, "examples", "directions")

    def content(self, name: str) -> bytes:
        """A file's bytes; those of JSON files are kept for whoever asks next. Raises RunError if it cannot be read."""
        if name in self._contents:
            return self._contents[name]
        self._mark = self._mark or mark_of(self.folder)
        try:
            largest = LARGEST_WEIGHTS if name.endswith(".safetensors") else LARGEST_DOCUMENT
            content = read_regular(self.file(name), largest)
        except OSError as error:
            raise RunError(f"{self.folder / name} cannot be read: {error.strerror}.", RESTORE) from error
        if name.endswith(".json"):
            self._contents[name] = content
        return content


class ArtifactWriter:
    """A folder that is being filled; it takes its place when it is whole."""

    def __init__(self, folder: Path):
        self.folder = folder

    def document(self, name: str, document: Document) -> None:
        write_file(self.folder / name, to_json(document.model_dump(mode="json")))

    def network(self, model: MLP) -> None:
        from lora_mnist.runs.checkpoint import save_network

        save_network(self.folder / WEIGHTS, model)

    def results(self, evaluation: Evaluation, logits: Mapping[str, torch.Tensor]) -> None:
        """What it does on `val` and `test`; logits (N, 10) fp32 by split."""
        self.document(EVALUATION, evaluation)
        self._tensors(LOGITS, logits)

    def history(self, history: History | None) -> None:
        """Loss and learning rate of every step; an empty table if nothing was trained."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["step", "learning_rate", "loss"])
        if history is not None:
            steps = range(1, len(history.losses) + 1)
            writer.writerows(zip(steps, history.rates, history.losses, strict=True))
        write_file(self.folder / HISTORY, table.getvalue().encode())

    def pictures(self, pictures: Mapping[str, torch.Tensor]) -> None:
        """What `Artifact.pictures` gives back; for the report."""
        self._tensors(PICTURES, pictures)

    def _tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        from lora_mnist.runs.checkpoint import save_tensors

        save_tensors(self.folder / name, dict(tensors))


def _sentence(rule: str) -> str:
    return rule[:1].lower() + rule[1:]
