"""Images → logits."""

from collections.abc import Mapping

import torch
from torch import nn

from lora_mnist.datasets.dataset import Dataset
from lora_mnist.errors import UsageError
from lora_mnist.training.model import normalise

BATCH = 1000  # images per forward pass: 8 MB of activations in the widest layer


@torch.inference_mode()
def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """uint8 images (N, 28, 28) → logits (N, 10) fp32 on the CPU. The model is left in eval mode."""
    model.eval()
    parts = [model(normalise(part)).cpu() for part in images.split(BATCH)]
    return torch.cat(parts) if parts else torch.empty(0, 10)


def require_finite(logits: Mapping[str, torch.Tensor], way_out: str) -> None:
    """Raises UsageError if a logit is not finite: weights can be so and yet be too large."""
    if not all(bool(part.isfinite().all()) for part in logits.values()):
        raise UsageError("The network's logits are no longer finite numbers.", way_out)


def held_out_logits(model: nn.Module, dataset: Dataset) -> dict[str, torch.Tensor]:
    """Logits (N, 10) fp32 on the CPU of `val`, where there is one, and `test`."""
    return {split: logits_of(model, part.images) for split, part in dataset.held_out.items()}
