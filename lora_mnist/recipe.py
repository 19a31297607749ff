"""Settings and a data set → a trained base, or a base with a trained adapter. The seed decides every bit of both."""

import copy
import logging
import time

import torch

from lora_mnist.config import Settings
from lora_mnist.data import Dataset
from lora_mnist.lora import LoRAConfig, LoRAUpdate, inject, oversized
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
) -> tuple[MLP, dict[str, LoRAUpdate], list[float], float]:
    """A copy of `base` with a trained adapter, its updates by layer, its losses, and the seconds it took."""
    started = time.perf_counter()
    adapted, config = copy.deepcopy(base), lora_config(settings)
    torch.manual_seed(settings.seed)
    updates = inject(adapted, name, config)
    for layer in oversized(base, config):
        log.info("Note: rank %d is above the smaller side of %s, which cannot use all of it.", config.rank, layer)
    recipe, images, labels = settings.finetune, dataset.train.images, dataset.train.labels
    share, generator = (recipe.focus, recipe.steps, recipe.batch_size), torch.default_generator
    batches = focus_batches(labels.cpu(), digit, *share, generator)
    losses = train(adapted, images, labels, batches, recipe, f"fine-tuning on {digit}", quiet)
    return adapted, updates, losses, round(time.perf_counter() - started, 2)


def lora_config(settings: Settings) -> LoRAConfig:
    """The part of the settings that describes the adapter; alpha, unless set, is the rank."""
    tuning = settings.finetune
    return LoRAConfig(
        targets=tuning.targets,
        rank=tuning.rank,
        alpha=tuning.rank if tuning.alpha is None else tuning.alpha,
        rslora=tuning.rslora,
        dropout=tuning.dropout,
        init=tuning.init,
    )
