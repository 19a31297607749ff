"""Settings and a data set → a trained base, or a base with a trained adapter. The seed decides every bit of both."""

import copy

import torch

from lora_mnist.datasets.dataset import Dataset, Split
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.model import inject
from lora_mnist.settings.config import AdapterSettings, FinetuneSettings, Settings, TeachSettings
from lora_mnist.training.augment import draw_warps
from lora_mnist.training.batches import epoch_batches, focus_batches, mixed_batches, prior_offsets
from lora_mnist.training.loop import History, TrainingData, train
from lora_mnist.training.model import MLP, normalise
from lora_mnist.training.progress import SILENT, Progress

CHUNK = 1000  # images in one forward pass


def train_base(
    settings: Settings, dataset: Dataset, device: torch.device, progress: Progress = SILENT
) -> tuple[MLP, History]:
    """A new base and its history."""
    torch.manual_seed(settings.seed)
    model = MLP(settings.model.hidden).to(device)  # initialised on the CPU, so that every device starts the same
    recipe, images, labels = settings.pretrain, dataset.train.images, dataset.train.labels
    batches = epoch_batches(len(labels), recipe.batch_size, recipe.epochs, torch.default_generator)
    return model, train(model, TrainingData(images, labels, batches), recipe, "pretraining", progress)


def train_adapter(
    start: MLP,
    name: str,
    digit: int,
    settings: Settings,
    dataset: Dataset,
    progress: Progress = SILENT,
    uncertainty: torch.Tensor | None = None,
) -> tuple[MLP, History]:
    """A copy of `start` (a base, with or without adapters) with a trained adapter `name`; and its history.

    Args:
        uncertainty: those of `start` (see `uncertainty_of`), if they are known.
    """
    adapted = with_adapter(start, name, settings.finetune, settings.seed)
    return adapted, _tune(adapted, digit, settings.finetune, settings.seed, dataset, progress, uncertainty)


def train_all_weights(
    base: MLP,
    digit: int,
    settings: Settings,
    dataset: Dataset,
    progress: Progress = SILENT,
    uncertainty: torch.Tensor | None = None,
) -> tuple[MLP, History]:
    """A copy of `base`, trained whole on the batches that an adapter with these settings would see; and its history."""
    tuned = copy.deepcopy(base).requires_grad_(True)
    recipe = settings.finetune.model_copy(update={"learning_rate": settings.finetune.full_learning_rate})
    return tuned, _tune(tuned, digit, recipe, settings.seed, dataset, progress, uncertainty)


def train_on_drawings(
    base: MLP,
    name: str,
    drawings: Split,
    recipe: TeachSettings,
    seed: int,
    dataset: Dataset,
    uncertainty: torch.Tensor | None = None,
    progress: Progress = SILENT,
) -> tuple[MLP, History]:
    """A copy of `base` with an adapter `name`, trained on `drawings` beside training images; and its history.

    Args:
        uncertainty: those of `base` (see `uncertainty_of`); None draws all training images alike, as the drawings are.

    Raises:
        UsageError: the share of a batch rounds to no drawing at all.
    """
    adapted, known = with_adapter(base, name, recipe, seed), dataset.train
    images = torch.cat([known.images, drawings.images.to(known.images.device)])
    labels = torch.cat([known.labels, drawings.labels.to(known.labels.device)])
    is_drawing, share = torch.arange(len(labels)) >= len(known), ("share", recipe.share, recipe.batch_size)
    weights = None
    if uncertainty is not None:
        weights = torch.cat([uncertainty**recipe.hard_examples, uncertainty.new_ones(len(drawings))])
    generator = torch.Generator().manual_seed(seed)
    batches = mixed_batches(is_drawing, share, recipe.steps, generator, weights)
    data = _as_settings_ask(Split(images, labels), batches, generator, recipe)
    return adapted, train(adapted, data, recipe, "teaching", progress)


def with_adapter(start: MLP, name: str, recipe: AdapterSettings, seed: int) -> MLP:
    """A copy of `start` with an adapter `name` that does nothing yet, and is all that trains."""
    adapted = copy.deepcopy(start)
    inject_seeded(adapted, name, recipe, seed)
    return adapted


def inject_seeded(model: MLP, name: str, recipe: AdapterSettings, seed: int) -> None:
    """Inject adapter `name` as the seed draws it."""
    torch.manual_seed(seed)
    inject(model, name, lora_config(recipe))


def _tune(
    model: MLP,
    digit: int,
    recipe: FinetuneSettings,
    seed: int,
    dataset: Dataset,
    progress: Progress,
    uncertainty: torch.Tensor | None,
) -> History:
    if recipe.hard_examples and uncertainty is None:
        uncertainty = uncertainty_of(model, dataset.train.images)
    data = drawn(digit, recipe, seed, dataset, uncertainty)
    return train(model, data, recipe, f"fine-tuning {digit}", progress)


def drawn(
    digit: int, recipe: FinetuneSettings, seed: int, dataset: Dataset, uncertainty: torch.Tensor | None
) -> TrainingData:
    """What each step of a fine-tuning sees, as the seed draws it.

    Args:
        uncertainty: see `uncertainty_of`; not looked at if `hard_examples` is 0.
    """
    # its own generator, so that adapters of every rank, and all weights, are trained on the same batches
    generator, share = torch.Generator().manual_seed(seed), (recipe.focus, recipe.batch_size)
    weights = uncertainty**recipe.hard_examples if recipe.hard_examples and uncertainty is not None else None
    batches = focus_batches(dataset.train.labels.cpu(), digit, share, recipe.steps, generator, weights)
    return _as_settings_ask(dataset.train, batches, generator, recipe)


def _as_settings_ask(
    seen: Split, batches: torch.Tensor, generator: torch.Generator, recipe: AdapterSettings
) -> TrainingData:
    """The images of `seen` that `batches` tells, moved as `generator` draws."""
    warps = None
    if recipe.moves:
        warps = draw_warps(recipe.steps, recipe.batch_size, *recipe.moves, generator).to(seen.images.device)
    offsets = prior_offsets(seen.labels.cpu(), batches, recipe.logit_adjustment)
    return TrainingData(seen.images, seen.labels, batches, warps, offsets, recipe.label_smoothing)


@torch.no_grad()
def uncertainty_of(model: MLP, images: torch.Tensor) -> torch.Tensor:
    """1 - p with p the probability that `model` gives to the digit it takes an image for, float64 (N,), on the CPU.

    To the power of `hard_examples`, it says how often an image is drawn (uncertainty sampling, "least confident":
    Settles 2009, Active Learning Literature Survey, section 3.1). The label plays no part: by its own probability, an
    image with a wrong label would be the hardest of all, and be drawn over and over. `model` is the one at the start.
    """
    model.eval()
    unsure = [1 - model(normalise(part)).double().softmax(1).amax(1) for part in images.split(CHUNK)]
    return torch.cat(unsure).clamp(min=0).cpu()


def lora_config(tuning: AdapterSettings) -> LoRAConfig:
    """The part of the settings that describes the adapter."""
    return LoRAConfig(
        targets=tuning.targets,
        rank=tuning.rank,
        alpha=tuning.alpha,
        rank_pattern=dict(tuning.rank_pattern or {}),
        alpha_pattern=dict(tuning.alpha_pattern or {}),
        rslora=tuning.rslora,
        dropout=tuning.dropout,
        init=tuning.init,
    )
