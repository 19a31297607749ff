"""Settings and a data set → a trained base, or a base with a trained adapter. The seed decides every bit of both."""

import copy

import torch

from lora_mnist.datasets.dataset import Dataset
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.injection import inject
from lora_mnist.settings.config import FinetuneSettings, Settings
from lora_mnist.training.augment import draw_warps
from lora_mnist.training.batches import epoch_batches, focus_batches, prior_offsets
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
    start: MLP, name: str, digit: int, settings: Settings, dataset: Dataset, progress: Progress = SILENT
) -> tuple[MLP, History]:
    """A copy of `start` (a base, with or without adapters) with a trained adapter `name`; and its history."""
    adapted = copy.deepcopy(start)
    torch.manual_seed(settings.seed)
    inject(adapted, name, lora_config(settings))
    return adapted, _tune(adapted, digit, settings.finetune, settings.seed, dataset, progress)


def train_all_weights(
    base: MLP, digit: int, settings: Settings, dataset: Dataset, progress: Progress = SILENT
) -> tuple[MLP, History]:
    """A copy of `base`, trained whole on the batches that an adapter with these settings would see; and its history."""
    tuned = copy.deepcopy(base).requires_grad_(True)
    recipe = settings.finetune.model_copy(update={"learning_rate": settings.finetune.full_learning_rate})
    return tuned, _tune(tuned, digit, recipe, settings.seed, dataset, progress)


def _tune(model: MLP, digit: int, recipe: FinetuneSettings, seed: int, dataset: Dataset, progress: Progress) -> History:
    images, labels = dataset.train.images, dataset.train.labels
    # its own generator, so that adapters of every rank, and all weights, are trained on the same batches
    generator = torch.Generator().manual_seed(seed)
    weights = _weights(model, images, recipe.hardness) if recipe.hardness else None
    share = (recipe.focus, recipe.batch_size)
    batches = focus_batches(labels.cpu(), digit, share, recipe.steps, generator, weights)
    warps = None
    if recipe.moves:
        warps = draw_warps(recipe.steps, recipe.batch_size, *recipe.moves, generator).to(images.device)
    offsets = prior_offsets(labels.cpu(), batches, recipe.logit_adjustment)
    data = TrainingData(images, labels, batches, warps, offsets, recipe.label_smoothing)
    return train(model, data, recipe, f"fine-tuning {digit}", progress)


@torch.no_grad()
def _weights(model: MLP, images: torch.Tensor, hardness: float) -> torch.Tensor:
    """(1 - p)^hardness with p the probability that `model` gives to the digit it takes an image for, float64 (N,).

    An image of which the network is sure teaches it next to nothing, and most images are such. This is uncertainty
    sampling ("least confident": Settles 2009, Active Learning Literature Survey, section 3.1). The label is not looked
    at: by its probability, an image with a wrong label would be the hardest of all, and be drawn over and over. The
    weights are taken once, from the network at the start.
    """
    model.eval()
    unsure = [1 - model(normalise(part)).double().softmax(1).amax(1) for part in images.split(CHUNK)]
    return torch.cat(unsure).clamp(min=0).cpu() ** hardness


def lora_config(settings: Settings) -> LoRAConfig:
    """The part of the settings that describes the adapter."""
    tuning = settings.finetune
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
