"""One folder of a run (its base, an adapter, a checkpoint or the report): its files by name, read and written.

Importing this does not import torch, so that commands which only read JSON start at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from lora_mnist.errors import AlteredError, RunError, shown
from lora_mnist.evaluation.results import Analysis
from lora_mnist.files import LARGEST_DOCUMENT, read_regular
from lora_mnist.runs.atomic import (
    LARGEST_WEIGHTS,
    MANIFEST,
    RESTORE,
    is_finished,
    parse_manifest,
    require_same,
    to_json,
    version_of,
    where_is,
    write_file,
)
from lora_mnist.runs.schemas import Evaluation, FinetuneRecord, Provenance
from lora_mnist.settings.config import Document, first_fault

if TYPE_CHECKING:
    import numpy
    import torch

    from lora_mnist.datasets.drawings import Drawings
    from lora_mnist.lora.fingerprint import Fingerprint
    from lora_mnist.training.loop import History
    from lora_mnist.training.model import MLP

D = TypeVar("D", bound=Document)
T = TypeVar("T")

RECORD, FINETUNE, EVALUATION, ANALYSIS = "run.json", "finetune.json", "evaluation.json", "analysis.json"
PROVENANCE, MERGE, HISTORY = "provenance.json", "merge.json", "history.csv"
WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
LOGITS, PICTURES = "logits.safetensors", "pictures.safetensors"
OURS = (RECORD, FINETUNE, EVALUATION, ANALYSIS, PROVENANCE, MERGE, HISTORY, WEIGHTS, ADAPTER_WEIGHTS, LOGITS, PICTURES)
VAL_COLUMNS = ("val_loss", "val_accuracy")  # of the history
CONTROL = "control."  # before the name of a split, for the control's logits
DRAWINGS = "drawings"  # the folder of those that an adapter was taught: drawings/7/0012.png
DRAWING = re.compile(rf"{DRAWINGS}/([0-9])/([0-9]{{4}})\.png")
ABOUT = "lora_mnist"  # one entry of metadata: safetensors writes several in random order, and equal runs must be equal


def _stored(name: str, kind: type[D]) -> cached_property[D]:
    return cached_property(lambda artifact: artifact.document(name, kind))


class Artifact:
    """A finished folder of a run, as it was saved. Each of its documents is read once."""

    def __init__(self, folder: Path):
        self.folder = folder  # its place; if a writer was killed in the middle, its files may still be beside it
        self.name = folder.name
        self._contents: dict[str, bytes] = {}
        self._is_whole = False
        self._version = version_of(folder)

    @property
    def is_finished(self) -> bool:
        return is_finished(self.folder)

    @property
    def is_finetuned(self) -> bool:
        """Whether it has a `finetune`; a base and a merged checkpoint have none."""
        return FINETUNE in self.hashes if self.is_finished else self.file(FINETUNE).is_file()

    def file(self, name: str) -> Path:
        """The path of a file of it now."""
        return where_is(self.folder) / name

    # What must be so --------------------------------------------------------------------------------------------------

    def require_whole(self) -> None:
        """Compare every file with the manifest, once.

        Raises RunError if one is missing or another command replaced the folder meanwhile, AlteredError, with its name,
        if one is not as it was saved.
        """
        if self._is_whole:
            return
        try:
            for name in self.hashes:
                self.require_saved(name)
            for name in OURS:  # what the manifest leaves out was compared with nothing
                if name not in self.hashes and self.file(name).exists():
                    raise AlteredError(f"{self.folder / MANIFEST} does not list {name}, which is there.", RESTORE)
        finally:  # what another command replaced meanwhile is not damaged
            self.require_unchanged()
        self._is_whole = True

    def require_saved(self, name: str) -> None:
        """Raises RunError if a file cannot be read, AlteredError if it is not the saved one."""
        require_same(self.folder / name, hashlib.sha256(self.content(name)).hexdigest(), self.hashes.get(name))

    def require_unchanged(self) -> None:
        """Raises RunError if another command has replaced or removed the folder since this was made."""
        if version_of(self.folder) != self._version:
            raise RunError(f"{self.folder} changed while it was read.", "Run it again.")

    # What is in it ----------------------------------------------------------------------------------------------------

    @cached_property
    def hashes(self) -> Mapping[str, str]:
        """SHA-256 of every file, from its manifest."""
        return parse_manifest(self.file(MANIFEST), self.content(MANIFEST))

    @property
    def weights(self) -> str:
        """The name of the file that holds them. Raises AlteredError if the manifest lists none."""
        for name in (ADAPTER_WEIGHTS, WEIGHTS):
            if name in self.hashes:
                return name
        raise AlteredError(f"{self.folder / MANIFEST} lists no weights.", RESTORE)

    evaluation = _stored(EVALUATION, Evaluation)
    finetune = _stored(FINETUNE, FinetuneRecord)  # of an adapter, or of a checkpoint with all weights trained
    analysis = _stored(ANALYSIS, Analysis)
    provenance = _stored(PROVENANCE, Provenance)

    def document(self, name: str, kind: type[D]) -> D:
        """Read and validate a JSON file.

        Raises RunError if it cannot be read, AlteredError, with file and field, if it is not what it should be.
        """
        path = self.folder / name
        try:
            return kind.model_validate_json(self.content(name))
        except ValidationError as error:
            key, fault, value, rule = first_fault(error)
            if fault == "json_invalid":
                raise AlteredError(f"{path} is not JSON: {rule}.", RESTORE) from error
            received = "" if fault == "missing" else f" (={shown(value)})"
            what = f": `{key}`{received}" if key else received
            raise AlteredError(f"{path}{what} {rule[:1].lower()}{rule[1:]}.", RESTORE) from error

    def losses(self) -> list[float]:
        """The loss of every training step; none if nothing was trained. Raises RunError if they cannot be read."""
        return self._history(lambda row: float(row["loss"]))

    def val_curve(self) -> list[tuple[int, float, float]]:
        """Step, loss and accuracy where `val` was looked at in training. Raises RunError if they cannot be read."""
        loss, accuracy = VAL_COLUMNS
        found = self._history(
            lambda row: (int(row["step"]), float(row[loss]), float(row[accuracy])) if row.get(loss) else None
        )
        return [point for point in found if point is not None]

    def _history(self, read: Callable[[dict[str, str]], T]) -> list[T]:
        try:
            return [read(row) for row in csv.DictReader(io.StringIO(self.content(HISTORY).decode()))]
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise AlteredError(f"{self.folder / HISTORY} is not a table of losses: {error!r}.", RESTORE) from error

    def logits(self, control: bool = False) -> dict[str, torch.Tensor]:
        """(N, 10) fp32 by split, `val` and `test`; or those of the control, none where none was trained."""
        import torch

        stored = self.arrays(LOGITS, {"test"}).items()
        wanted = {name: array for name, array in stored if name.startswith(CONTROL) == control}
        return {name.removeprefix(CONTROL): torch.from_numpy(array) for name, array in wanted.items()}

    def pictures(self) -> dict[str, numpy.ndarray]:
        """Pictures for the report: `examples` and `wrong` uint8 (n, 28, 28), `wrong_index` and `wrong_label`
        int64 (n,), `directions` float32 (n, 28, 28). Raises RunError if they cannot be read.
        """
        return self.arrays(PICTURES, {"examples", "directions", "wrong", "wrong_index", "wrong_label"})

    def arrays(self, name: str, required: set[str]) -> dict[str, numpy.ndarray]:
        """The tensors of a file by name, read without torch; those `required` are among them. Raises RunError."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = dict(sorted(load(self.content(name)).items()))  # it gives them in random order
        except (SafetensorError, KeyError) as error:
            raise AlteredError(f"{self.folder / name} holds no tensors: {error!r}.", RESTORE) from error
        if missing := required - arrays.keys():
            raise AlteredError(f"{self.folder / name} has no {', '.join(sorted(missing))}.", RESTORE)
        return arrays

    def labelled_drawings(self) -> list[tuple[int, numpy.ndarray]]:
        """The drawings it was taught, in their order: the digit, and uint8 (28, 28). Read without torch.

        Raises RunError if one cannot be read, AlteredError if there is none or one is not what `ArtifactWriter` writes.
        """
        import numpy as np
        from PIL import Image

        found = sorted((match[2], int(match[1]), name) for name in self.hashes if (match := DRAWING.fullmatch(name)))
        if not found:
            raise AlteredError(f"{self.folder} holds no drawings that it was taught.", RESTORE)
        drawings = []
        for _, label, name in found:
            content = self.content(name)
            try:
                with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                    if (image.mode, image.size) != ("L", (28, 28)):
                        raise ValueError(f"it is {image.mode} of {image.size}")
                    drawings.append((label, np.array(image)))
            except Exception as error:  # damaged files make Pillow raise errors of many kinds
                raise AlteredError(f"{self.folder / name} is not a drawing of ours: {error}.", RESTORE) from error
        return drawings

    def content(self, name: str) -> bytes:
        """A file's bytes; those of JSON files are kept. Raises RunError if it cannot be read."""
        if name in self._contents:
            return self._contents[name]
        try:
            largest = LARGEST_DOCUMENT if name.endswith((".json", ".csv")) else LARGEST_WEIGHTS
            content = read_regular(self.file(name), largest)
        except OSError as error:
            self.require_unchanged()
            raise RunError(f"{self.folder / name} cannot be read: {error.strerror}.", RESTORE) from error
        if name.endswith(".json"):
            self._contents[name] = content
        return content


class ArtifactWriter:
    """A folder that is being filled; it takes its place when it is whole."""

    def __init__(self, folder: Path):
        self.folder = folder

    def documents(self, documents: Mapping[str, Document]) -> None:
        """Each as JSON, by its file's name."""
        for name, document in documents.items():
            write_file(self.folder / name, to_json(document.model_dump(mode="json")))

    def tensors(self, name: str, tensors: Mapping[str, torch.Tensor], about: dict[str, str] | None = None) -> None:
        """A file of tensors, with `about` as its metadata."""
        from safetensors.torch import save

        write_file(self.folder / name, save(dict(tensors), about))

    def network(self, model: MLP) -> None:
        """Its weights, fp32, with its architecture and fingerprint in the file's metadata."""
        from lora_mnist.lora.fingerprint import compute_fingerprint

        tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        fingerprint = compute_fingerprint(tensors).to_text()
        about = {"architecture": {"class": "MLP", **model.architecture}, "fingerprint": fingerprint}
        self.tensors(WEIGHTS, tensors, {ABOUT: json.dumps(about)})

    def results(
        self,
        evaluation: Evaluation,
        logits: Mapping[str, torch.Tensor],
        control: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """What it does on `val` and `test`; logits (N, 10) fp32 by split, and those of its control."""
        self.documents({EVALUATION: evaluation})
        self.tensors(LOGITS, {**logits, **{f"{CONTROL}{split}": one for split, one in (control or {}).items()}})

    def history(self, history: History | None) -> None:
        """Loss and learning rate of every step, and after each tenth what the network does on `val`; an empty table if
        nothing was trained."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["step", "learning_rate", "loss", *VAL_COLUMNS])
        steps = zip(history.rates, history.losses, strict=True) if history else ()
        val = {one.step: (one.loss, one.accuracy) for one in history.val} if history else {}
        writer.writerows((number, *step, *val.get(number, ("", ""))) for number, step in enumerate(steps, 1))
        write_file(self.folder / HISTORY, table.getvalue().encode())

    def drawings(self, drawings: Drawings) -> None:
        """Each as a PNG below its digit, numbered in their order."""
        from PIL import Image

        for number, (image, label) in enumerate(zip(drawings.images.cpu(), drawings.labels.tolist(), strict=True)):
            file = io.BytesIO()
            Image.fromarray(image.numpy()).save(file, "PNG")
            write_file(self.folder / DRAWINGS / str(label) / f"{number:04}.png", file.getvalue())


def load_network(path: Path, device: torch.device | str = "cpu") -> tuple[MLP, Fingerprint]:
    """The network in `path`, rebuilt from that file alone, and its fingerprint.

    Raises RunError if it is missing or damaged, AlteredError if its tensors do not have the fingerprint it carries.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from lora_mnist.lora.fingerprint import Fingerprint, compute_fingerprint, first_difference
    from lora_mnist.training.model import MLP

    try:
        content = read_regular(path, LARGEST_WEIGHTS)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # safetensors' own format
        metadata = header.get("__metadata__") or {}
        tensors = dict(sorted(load(content).items()))  # it gives them in random order
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}.", RESTORE) from error
    try:
        about = json.loads(metadata[ABOUT])
        architecture, text = {**about["architecture"]}, about["fingerprint"]
        architecture.pop("class")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path} does not say what network it holds.", RESTORE) from error
    stored = Fingerprint.from_text(text)
    if name := first_difference(stored, compute_fingerprint(tensors)):
        raise AlteredError(f"{path}: tensor {name} does not have the recorded fingerprint.", RESTORE)
    try:
        with torch.device("meta"):  # shapes first, before memory is taken for them
            shapes = {name: tensor.shape for name, tensor in MLP(**architecture).state_dict().items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise RuntimeError(f"its tensors are not those of the layers {architecture!r}")
        model = MLP(**architecture)
        model.load_state_dict(tensors)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".:")  # torch's goes on with frames of C++
        raise RunError(f"{path} holds no network of ours: {reason}.", RESTORE) from error
    return model.to(device), stored
