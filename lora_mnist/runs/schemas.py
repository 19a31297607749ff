"""Every document that a run stores as JSON, beside those in `evaluation.results`. Imports no torch."""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Discriminator, Tag, model_validator

from lora_mnist import SCHEMA, __version__
from lora_mnist.evaluation.results import Analysis, BySplit, Counts, GuardDecision, Proof, SplitResult
from lora_mnist.evaluation.verdict import LessonResult
from lora_mnist.settings.config import (
    Count,
    Digit,
    Document,
    FinetuneSettings,
    KnownDataset,
    Many,
    Maybe,
    PretrainSettings,
    Settings,
    TeachSettings,
    TrainingSettings,
)

if TYPE_CHECKING:
    import torch

    from lora_mnist.datasets.dataset import Dataset
    from lora_mnist.lora.fingerprint import Fingerprint


class DatasetName(Document):
    """Which images; `sha256` is of all images and labels, before splitting."""

    name: KnownDataset
    sha256: str


class DatasetFacts(DatasetName):
    """Which images, and how many in each split."""

    train: Count
    val: Count
    test: Count


class RareDigit(Document):
    """A digit of which pretraining saw only so many of the training images."""

    digit: Digit
    seen: Count
    images: Count

    def __str__(self) -> str:
        return f"saw {self.seen:,} of {self.images:,} {self.digit}s"


class AppliedAdapter(Document):
    """An adapter that was on, and how strongly. `verified` is False where nothing says what base it is for."""

    name: str
    strength: float
    verified: Maybe[bool] = None


class Evaluation(Document):
    """What a network does on `val` and `test`: evaluation.json."""

    schema_version: int
    dataset: DatasetName
    base_fingerprint: str  # of the base that it is, or was made from
    adapters: Many[AppliedAdapter]  # those that were on
    splits: BySplit[SplitResult]
    checkpoint: Maybe[str] = None  # its name, where it is no base but a network made from one


class Provenance(Document):
    """Where, with what and when a folder of a run was made: the one document that differs between equal runs."""

    seconds: float
    device: str
    threads: Count
    versions: dict[str, str]
    date: str  # UTC, ISO 8601
    data: Maybe[str] = None  # of a base: the folder in which MNIST was found


Format = Literal["torch", "safetensors"]  # of a file of weights: what torch.save writes, or safetensors


class ImportedTensor(Document):
    """A tensor's name and dtype in the file that it was read from, and its name in the base."""

    name: str
    tensor: str
    dtype: str


class ImportedFile(Document):
    """The file that a base was imported from."""

    file: str  # its name
    sha256: str
    format: Format
    key: Maybe[str] = None  # under which its tensors are, in a checkpoint that holds more
    tensors: Many[ImportedTensor]  # in the file's order

    @property
    def rounds(self) -> bool:
        """Whether it cannot hold every float32."""
        return any(one.dtype not in ("float32", "float64") for one in self.tensors)

    def __str__(self) -> str:
        return f"was imported from {self.file}"


class RunRecord(Document):
    """How the base was made: run.json."""

    schema_version: int
    settings: Settings
    dataset: DatasetFacts
    base_fingerprint: str
    rare: Maybe[RareDigit] = None
    source: Maybe[ImportedFile] = None  # of an imported base; then `settings.pretrain` means nothing
    replaced_fingerprint: Maybe[str] = None  # of the base whose place it took


class LayerParameters(Document):
    """Shapes of one layer's tensors; None where there is none."""

    layer: str
    weight: Many[int]
    bias: Many[int] | None
    lora_A: Many[int] | None
    lora_B: Many[int] | None
    scaling: float | None


class AdapterParameters(Document):
    """What an adapter adds: `share` = added / base."""

    layers: Many[LayerParameters]
    base: Count
    added: Count
    total: Count
    share: float


class FullParameters(Document):
    """What training all weights trains."""

    base: Count
    trained: Count


class FullSettings(TrainingSettings):
    """What all weights were trained with: what of an adapter's settings means something without one."""

    digit: Digit
    steps: Count
    focus: float
    hard_examples: float
    logit_adjustment: float
    label_smoothing: float
    shift: float
    rotate: float
    zoom: float
    name: str


class ExtractionSettings(Document):
    """What an adapter was extracted with."""

    rank: Count
    alpha: float
    digit: Digit
    name: str
    checkpoint: str


class LayerApproximation(Document):
    """What was kept of one layer's change (see `lora.lowrank.Approximation`)."""

    rank: Count
    energy: float
    error: float
    singular_values: Many[float]


class CheckpointCounts(Counts):
    """What a checkpoint does on `test`."""

    accuracy: float


class Extraction(Document):
    """What an adapter kept of the checkpoint it was made from."""

    checkpoint: str
    fingerprint: str
    layers: dict[str, LayerApproximation]
    left_out: dict[str, float]  # how far each tensor moved that an adapter cannot hold, relative to its norm
    of_checkpoint: CheckpointCounts


def _fields_of(value: object) -> Collection[str]:
    return value if isinstance(value, dict) else getattr(type(value), "model_fields", ())


def _kind_of_settings(settings: object) -> str:
    """By a field that only this kind has, so that an error names what is wrong with the kind that is meant."""
    fields, only = _fields_of(settings), {"checkpoint": "<svd>", "share": "<taught>", "rank": "<lora>"}
    return next((kind for field, kind in only.items() if field in fields), "<full>")


MadeWith = Annotated[
    Annotated[FinetuneSettings, Tag("<lora>")]
    | Annotated[FullSettings, Tag("<full>")]
    | Annotated[ExtractionSettings, Tag("<svd>")]
    | Annotated[TeachSettings, Tag("<taught>")],
    Discriminator(_kind_of_settings),
]
Parameters = Annotated[
    Annotated[AdapterParameters, Tag("<adapter>")] | Annotated[FullParameters, Tag("<full>")],
    Discriminator(lambda parameters: "<full>" if "trained" in _fields_of(parameters) else "<adapter>"),
]
# a trained adapter, all weights trained, an adapter made of a checkpoint, an adapter trained on drawings
Method = Literal["lora", "full", "svd", "taught"]


class FinetuneRecord(Document):
    """How an adapter, or a checkpoint with all weights trained, was made: finetune.json."""

    schema_version: int
    method: Method
    name: str
    digit: Digit  # that it is judged by; of a taught one, the digit that the base has most drawings of wrong
    settings: MadeWith
    parameters: Parameters
    proof: Proof | None  # None where no adapter is involved, or none was kept
    weakest_on_val: bool  # whether the digit was found rather than given
    seed: int | None
    guard: Maybe[GuardDecision] = None  # of a trained adapter
    extraction: Maybe[Extraction] = None  # of an adapter made of a checkpoint
    on_top_of: Many[str] = ()  # the adapters that were on, frozen, while this one was trained
    lesson: Maybe[LessonResult] = None  # of a taught adapter

    @model_validator(mode="after")
    def _has_its_lesson(self) -> FinetuneRecord:
        if (self.method == "taught") != (self.lesson is not None):
            raise ValueError("must have a lesson where it was taught, and nowhere else")
        return self

    @property
    def rank(self) -> int | None:
        """None where all weights were trained."""
        return None if isinstance(self.settings, FullSettings) else self.settings.rank

    @property
    def trained(self) -> int:
        """How many numbers were trained."""
        known = self.parameters
        return known.trained if isinstance(known, FullParameters) else known.added


class MergeRecord(Document):
    """Which adapters a checkpoint holds merged, and how far its logits are from theirs: merge.json."""

    schema_version: int
    name: str
    merged: Many[AppliedAdapter]
    weights: dict[str, str]  # SHA-256 of each adapter's file of weights, by its name
    largest_difference: float
    largest_logit: float


class BaseDocuments(Document):
    """What a run stores of its base; `sha256` is that of the file with its weights."""

    sha256: str
    evaluation: Evaluation
    provenance: Provenance


class FinetunedDocuments(BaseDocuments):
    """What a run stores of an adapter, or of a checkpoint with all weights trained."""

    name: str
    finetune: FinetuneRecord
    analysis: Analysis


class RunDocuments(Document):
    """The documents of a run in one: report.json."""

    schema_version: int
    run_digest: str  # see `Run.digest`
    run: RunRecord
    base: BaseDocuments
    adapters: Many[FinetunedDocuments]  # the newest first
    checkpoints: Many[FinetunedDocuments]  # those with all weights trained, the oldest first


def facts_of(dataset: Dataset) -> DatasetFacts:
    """What a run records of its images."""
    sizes = {split: len(getattr(dataset, split)) for split in ("train", "val", "test")}
    return DatasetFacts(name=dataset.name, sha256=dataset.sha256, **sizes)


def rare_digit(pretraining: PretrainSettings, dataset: Dataset) -> RareDigit | None:
    """How many training images of its rare digit a base sees, if it has one."""
    from lora_mnist.datasets.dataset import count_seen

    digit = pretraining.rare_digit
    if digit == "none":
        return None
    images = int((dataset.train.labels == digit).sum())
    return RareDigit(digit=digit, seen=count_seen(images, pretraining.rare_share), images=images)


def evaluation_of(
    dataset: Dataset,
    fingerprint: Fingerprint,
    logits: Mapping[str, torch.Tensor],
    adapters: Sequence[AppliedAdapter] = (),
    checkpoint: str | None = None,
) -> Evaluation:
    """What logits (N, 10) by split mean."""
    from lora_mnist.evaluation.metrics import summarise

    return Evaluation(
        schema_version=SCHEMA,
        dataset=DatasetName(name=dataset.name, sha256=dataset.sha256),
        base_fingerprint=fingerprint.sha256,
        adapters=tuple(adapters),
        splits={split: summarise(logits[split], part.labels) for split, part in dataset.held_out.items()},
        checkpoint=checkpoint,
    )


def record_provenance(device: torch.device, started: float, data: Path | None = None) -> Provenance:
    """Of work that ends now and began when `time.perf_counter()` was `started`, on images in the folder `data`."""
    import numpy
    import torch

    return Provenance(
        seconds=round(time.perf_counter() - started, 2),
        device=str(device),
        threads=torch.get_num_threads(),
        versions={
            "lora-mnist": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": numpy.__version__,
        },
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        data=None if data is None else str(data.absolute()),
    )
