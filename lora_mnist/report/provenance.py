"""How the base, an adapter or a checkpoint was made: the settings, the seed, the machine, the hash of the weights."""

from lora_mnist.runs.artifact import Artifact
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import ExtractionSettings, FullRecipe, FullSettings, Provenance
from lora_mnist.settings.config import DataSettings, FinetuneSettings, ModelSettings, PretrainSettings, TeachSettings
from lora_mnist.settings.strict import Count, Document


class BaseSettings(Document):
    """The settings that made the base."""

    seed: int
    data: DataSettings
    model: ModelSettings
    pretrain: PretrainSettings


class _LoopSettings(Document):
    batch_size: Count
    optimizer: str
    schedule: str
    weight_decay: float


class CheckpointSettings(FullRecipe, _LoopSettings):  # in this order, the loop's are written first
    """What all weights were trained with, by the names that a config has for it."""

    full_learning_rate: float


class _OfWeights(Document):
    sha256: str


class _Made(Provenance, _OfWeights):
    pass


class _WithBaseSettings(Document):
    settings: BaseSettings


class _WithSettings(Document):
    settings: FinetuneSettings | CheckpointSettings | ExtractionSettings | TeachSettings
    seed: int | None


class BaseMade(_Made, _WithBaseSettings):  # in this order, the settings are written first
    """How the base was made; `sha256` is that of the file with its weights."""


class Made(_Made, _WithSettings):
    """How an adapter or a checkpoint was made, likewise; nothing was drawn for one that was extracted (`seed`)."""


def made_of_base(run: Run) -> BaseMade:
    """From the record of the run."""
    stored = run.record.settings
    settings = BaseSettings(seed=stored.seed, data=stored.data, model=stored.model, pretrain=stored.pretrain)
    return BaseMade(settings=settings, **dict(_made(run.base)))


def made_of(saved: Artifact) -> Made:
    """From the record of an adapter, or of a checkpoint with all weights trained."""
    settings = saved.finetune.settings
    renamed = _as_in_a_config(settings) if isinstance(settings, FullSettings) else settings
    return Made(settings=renamed, seed=saved.finetune.seed, **dict(_made(saved)))


def _made(saved: Artifact) -> _Made:
    return _Made(sha256=saved.hashes[saved.weights], **dict(saved.provenance))


def _as_in_a_config(settings: FullSettings) -> CheckpointSettings:
    same = settings.model_dump(exclude={"learning_rate"})
    return CheckpointSettings(**same, full_learning_rate=settings.learning_rate)
