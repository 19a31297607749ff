"""The only training loop. It trains what requires a gradient: the whole base, an adapter, or a stack of adapters."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.errors import UsageError
from lora_mnist.settings.config import TrainingSettings
from lora_mnist.training.augment import warp
from lora_mnist.training.model import normalise
from lora_mnist.training.optimizer import Adam, StackedAdam
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

    Of several jobs that train at once (see `stack`), the last three tensors have one more dimension, in front.
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
    optimizer = Adam(weights, settings.weight_decay, decoupled=settings.optimizer == "adamw")
    rates = learning_rates(settings, len(data.batches))
    losses = torch.zeros(len(rates), device=data.images.device)
    with progress.of(description, losses) as show:
        minimise(model, data, optimizer, rates, losses, show, _require_finite)
    _require_finite(losses)
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise UsageError("The last step made a weight NaN or infinite.", "Choose a lower --learning-rate.")
    return History(tuple(losses.tolist()), rates)


def minimise(
    model: nn.Module,
    data: TrainingData,
    optimizer: Adam | StackedAdam,
    rates: Sequence[float],
    losses: torch.Tensor,
    show: Callable[[int], None],
    check: Callable[[torch.Tensor], None] = lambda losses: None,
) -> None:
    """The steps themselves. Of several jobs, the sum of their losses is minimised: each goes its own way.

    Args:
        model: as that of `train`; of several jobs, the images of one stand after those of another.
        rates: what the optimizer is told in every step.
        losses: (steps,), filled with the mean over the batch and all jobs.
        show: told the number of steps done, after each.
        check: shown the losses so far, now and then; what it raises ends the training.
    """
    images, labels, device = data.images, data.labels, data.images.device
    jobs = data.batches.shape[:-2].numel()
    batches = data.batches.to(device).movedim(-2, 0).flatten(1)  # (jobs, steps, batch) -> (steps, jobs * batch)
    warps = None if data.warps is None else data.warps.to(device).movedim(-3, 0).flatten(1, -2)
    offsets = torch.zeros(10, device=device) if data.offsets is None else data.offsets.to(device)
    offsets = offsets.view(-1, 1, 10).expand(jobs, data.batches.shape[-1], 10).flatten(0, 1)
    together = torch.tensor(float(jobs), device=device)  # the mean over all jobs, times their number, is the sum
    model.train()
    for step, batch in enumerate(batches):
        seen = normalise(images[batch])  # (B, 28, 28)
        if warps is not None:
            seen = warp(seen, warps[step])
        logits = model(seen)  # (B, 28, 28) -> (B, 10)
        loss = F.cross_entropy(logits + offsets, labels[batch], label_smoothing=data.smoothing)
        loss.backward(together)
        optimizer.step(rates[step])
        losses[step] = loss.detach()
        if step % WINDOW == WINDOW - 1:
            check(losses[: step + 1])
        show(step + 1)
    model.eval()


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
