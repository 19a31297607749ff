"""Settings and a data set → a trained base, or a base with a trained adapter. The seed decides every bit of both."""

import copy
import logging
import time

import torch

from lora_mnist.config import FinetuneSettings, Settings
from lora_mnist.data import Dataset
from lora_mnist.lora.adapters import inject, oversized
from lora_mnist.lora.layers import LoRAConfig
from lora_mnist.model import MLP
from lora_mnist.sampling import epoch_batches, focus_batches
from lora_mnist.train import train

log = logging.getLogger("lora_mnist")


def train_base(
    settings: Settings, dataset: Dataset, device: torch.device, quiet: bool
) -> tuple[MLP, list[float], float]:
    """A new base, its losses, and the seconds it took."""
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    model = MLP(settings.model.hidden).to(device)  # initialised on the CPU, so that every device starts the same
    recipe, images, labels = settings.pretrain, dataset.train.images, dataset.train.labels
    batches = epoch_batches(len(labels), recipe.batch_size, recipe.epochs, torch.default_generator)
    losses = train(model, images, labels, batches, recipe, "pretraining", quiet)
    return model, losses, round(time.perf_counter() - started, 2)


def train_adapter(
    base: MLP, name: str, digit: int, settings: Settings, dataset: Dataset, quiet: bool
) -> tuple[MLP, list[float], float]:
    """A copy of `base` with a trained adapter `name`, its losses, and the seconds it took."""
    started = time.perf_counter()
    adapted, config = copy.deepcopy(base), lora_config(settings)
    torch.manual_seed(settings.seed)
    inject(adapted, name, config)
    for layer in oversized(base, config):
        log.info("Note: rank %d is above the smaller side of %s, which cannot use all of it.", config.rank, layer)
    losses = _tune(adapted, digit, settings.finetune, settings.seed, dataset, quiet)
    return adapted, losses, round(time.perf_counter() - started, 2)


def train_all_weights(
    base: MLP, digit: int, settings: Settings, dataset: Dataset, quiet: bool
) -> tuple[MLP, list[float], float]:
    """A copy of `base`, trained whole on the batches that an adapter with these settings would see; as above."""
    started = time.perf_counter()
    tuned = copy.deepcopy(base).requires_grad_(True)
    recipe = settings.finetune.model_copy(update={"learning_rate": settings.finetune.full_learning_rate})
    losses = _tune(tuned, digit, recipe, settings.seed, dataset, quiet)
    return tuned, losses, round(time.perf_counter() - started, 2)


def _tune(model: MLP, digit: int, recipe: FinetuneSettings, seed: int, dataset: Dataset, quiet: bool) -> list[float]:
    images, labels = dataset.train.images, dataset.train.labels
    # its own generator, so that adapters of every rank, and all weights, are trained on the same batches
    generator = torch.Generator().manual_seed(seed)
    batches = focus_batches(labels.cpu(), digit, recipe.focus, recipe.steps, recipe.batch_size, generator)
    return train(model, images, labels, batches, recipe, f"fine-tuning on {digit}", quiet)


def lora_config(settings: Settings) -> LoRAConfig:
    """The part of the settings that describes the adapter; alpha, unless set, is the rank, layer by layer."""
    tuning = settings.finetune
    rank_pattern, alpha_pattern = dict(tuning.rank_pattern or {}), dict(tuning.alpha_pattern or {})
    if tuning.alpha is None:
        alpha_pattern |= {p: float(r) for p, r in rank_pattern.items() if p not in alpha_pattern}
    return LoRAConfig(
        targets=tuning.targets,
        rank=tuning.rank,
        alpha=float(tuning.rank) if tuning.alpha is None else tuning.alpha,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        rslora=tuning.rslora,
        dropout=tuning.dropout,
        init=tuning.init,
    )
