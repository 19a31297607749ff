"""The only training loop. What it trains is what requires a gradient: the whole base, or an adapter alone."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.errors import UsageError
from lora_mnist.settings.config import TrainingSettings
from lora_mnist.training.augment import warp
from lora_mnist.training.model import normalise
from lora_mnist.training.optimizer import adam
from lora_mnist.training.progress import SILENT, WINDOW, Progress


@dataclass(frozen=True)
class TrainingData:
    """Images, which of them each step sees, and how the loss takes what the network says of them.

    Attributes:
        images: uint8 (N, 28, 28), on the model's device.
        labels: int64 (N,), there too.
        batches: int64 (steps, batch), indices into both.
        warps: float32 (steps, batch, 4), how each image is moved (see `augment`); None leaves all as they are.
        offsets: float32 (10,), added to the logits in training only (see `batches.prior_offsets`); None adds nothing.
        smoothing: the share of each label that is spread evenly over all digits (label smoothing).
    """

    images: torch.Tensor
    labels: torch.Tensor
    batches: torch.Tensor
    warps: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    smoothing: float = 0.0


@dataclass(frozen=True)
class History:
    """The loss of every step, before that step's update, and its learning rate."""

    losses: tuple[float, ...]
    rates: tuple[float, ...]


def train(
    model: nn.Module,
    data: TrainingData,
    settings: TrainingSettings,
    description: str = "training",
    progress: Progress = SILENT,
) -> History:
    """Minimise the mean cross-entropy of each batch in turn.

    Args:
        model: maps normalised images (B, 28, 28) to logits (B, 10); changed in place, left in eval mode.
        settings: optimizer, learning rate, schedule, weight decay.
        description, progress: what is shown of it, and how.

    Raises:
        UsageError: the loss or a weight became NaN or infinite.
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adam(weights, settings.weight_decay, decoupled=settings.optimizer == "adamw")
    images, labels, batches, warps = data.images, data.labels, data.batches.to(data.images.device), data.warps
    offsets = torch.zeros(10, device=images.device) if data.offsets is None else data.offsets.to(images.device)
    rates = learning_rates(settings, len(batches))
    losses = torch.zeros(len(batches), device=images.device)
    model.train()
    with progress.of(description, losses) as show:
        for step, batch in enumerate(batches):
            seen = normalise(images[batch])  # (B, 28, 28)
            if warps is not None:
                seen = warp(seen, warps[step])
            logits = model(seen)  # (B, 28, 28) -> (B, 10)
            loss = F.cross_entropy(logits + offsets, labels[batch], label_smoothing=data.smoothing)
            loss.backward()
            optimizer.step(rates[step])
            losses[step] = loss.detach()
            if step % WINDOW == WINDOW - 1:
                _require_finite(losses[: step + 1])
            show(step + 1)
    _require_finite(losses)
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise UsageError("The last step made a weight NaN or infinite.", "Choose a lower --learning-rate.")
    model.eval()
    return History(tuple(losses.tolist()), rates)


def learning_rates(settings: TrainingSettings, steps: int) -> tuple[float, ...]:
    """The rate of every step: constant, or half a cosine from the full one to 0 (SGDR, arXiv 1608.03983, eq. 5)."""
    if settings.schedule == "constant":
        return (settings.learning_rate,) * steps
    return tuple(settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps))


def _require_finite(losses: torch.Tensor) -> None:
    """Raises UsageError if a loss of the last window is not a finite number."""
    if not bool(losses[-WINDOW:].isfinite().all()):
        step = int((~losses.isfinite()).nonzero()[0])
        raise UsageError(
            f"The loss became {float(losses[step])} in step {step + 1}.", "Choose a lower --learning-rate."
        )
