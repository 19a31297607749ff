"""The only training loop. It trains what requires a gradient: the whole base, an adapter, or a stack of adapters."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import EllipsisType

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.adam import adam as adam_step
from torch.optim.adamw import adamw as adamw_step

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import UsageError
from lora_mnist.settings.config import TrainingSettings
from lora_mnist.training.augment import warp
from lora_mnist.training.model import MLP, logits_of
from lora_mnist.training.progress import SILENT, WINDOW, Progress


@dataclass(frozen=True)
class TrainingData:
    """Images, which of them each step sees, and how the loss takes the network's logits for them.

    Of several jobs that train at once (see `train.train_stack`), `batches`, `warps` and `offsets` have one more
    dimension, in front.
    """

    images: torch.Tensor  # uint8 (N, 28, 28), on the model's device
    labels: torch.Tensor  # int64 (N,), there too
    batches: torch.Tensor  # int64 (steps, batch), indices into both
    warps: torch.Tensor | None = None  # float32 (steps, batch, 4), how each image is moved (see `augment`)
    offsets: torch.Tensor | None = None  # float32 (10,), added to the logits in training (see `batches.prior_offsets`)
    smoothing: float = 0.0  # the share of each label that is spread evenly over all digits (label smoothing)


@dataclass(frozen=True)
class ValPoint:
    """What the network does on images of `val` once `step` steps are done: mean cross-entropy, and accuracy."""

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class History:
    """The loss of every step, before that step's update, and its learning rate; and what was seen on `val`."""

    losses: tuple[float, ...]
    rates: tuple[float, ...]
    val: tuple[ValPoint, ...] = ()


def train(
    model: MLP,
    data: TrainingData,
    settings: TrainingSettings,
    description: str = "training",
    progress: Progress = SILENT,
    job_rates: Sequence[float] | None = None,
    val: Split | None = None,
) -> History:
    """Minimise the mean cross-entropy of each batch in turn; of several jobs the sum of theirs, so that none changes
    another, while the history has their mean.

    Args:
        model: changed in place, left in eval mode. Of several jobs, the images of one stand after those of another.
        settings: optimizer, learning rate, schedule, weight decay.
        description, progress: what is shown of it, and how.
        job_rates: of several jobs, a factor on the learning rate of each.
        val: images to measure on at each tenth of the steps, which changes nothing in what is trained.

    Raises UsageError if the loss or a weight became NaN or infinite; not of several jobs, where one must not end the
    others.
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = Adam(weights, settings.weight_decay, settings.optimizer == "adamw", job_rates)
    images, labels, device = data.images, data.labels, data.images.device
    batches, warps, offsets = _by_step(data)
    jobs = batches.shape[1] // data.batches.shape[-1]
    rates = learning_rates(settings, len(batches))
    losses, curve = torch.zeros(len(rates), device=device), list[ValPoint]()
    tenths = {len(rates) * tenth // 10 for tenth in range(1, 11)} if val is not None and len(val) else set()
    model.train()
    with progress.counting(description, len(losses), losses) as show:
        for step, batch in enumerate(batches):
            x = model.normalise(images[batch])  # (B, 28, 28)
            if warps is not None:
                x = warp(x, warps[step])
            logits = model(x)  # (B, 28, 28) -> (B, 10)
            loss = F.cross_entropy(logits + offsets, labels[batch], label_smoothing=data.smoothing)
            # the mean over all jobs, times their number, is the sum; backward(gradient) would import sympy, 34 MB
            (loss * jobs).backward()
            optimizer.step(rates[step])
            losses[step] = loss.detach()
            # a GPU is waited for when its losses are looked at, so that is not done in every step
            look = job_rates is None and (step % WINDOW == WINDOW - 1 or step == len(rates) - 1)
            if look and len(diverged := (~losses[: step + 1].isfinite()).nonzero().flatten()):
                cause = f"The loss became {float(losses[diverged[0]])} in step {int(diverged[0]) + 1}."
                raise UsageError(cause, "Choose a lower --learning-rate.")
            if val is not None and step + 1 in tenths:
                curve.append(_measured(model, val, step + 1))
                model.train()
            show(step + 1)
    model.eval()
    if job_rates is None and not all(bool(weight.isfinite().all()) for weight in weights):
        raise UsageError("The last step made a weight NaN or infinite.", "Choose a lower --learning-rate.")
    return History(tuple(losses.tolist()), rates, tuple(curve))


def _by_step(data: TrainingData) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Batches (steps, B), warps (steps, B, 4) and offsets (B, 10) of all jobs together, on the device of the images."""
    device, jobs, batch = data.images.device, data.batches.shape[:-2].numel(), data.batches.shape[-1]
    batches = data.batches.to(device).movedim(-2, 0).flatten(1)  # (jobs, steps, batch) -> (steps, jobs * batch)
    warps = None if data.warps is None else data.warps.to(device).movedim(-3, 0).flatten(1, -2)
    offsets = torch.zeros(10, device=device) if data.offsets is None else data.offsets.to(device)
    return batches, warps, offsets.view(-1, 1, 10).expand(jobs, batch, 10).flatten(0, 1)


def _measured(model: MLP, val: Split, step: int) -> ValPoint:
    logits, labels = logits_of(model, val.images), val.labels.cpu()  # in eval mode: dropout draws nothing
    right = int((logits.argmax(1) == labels).sum())
    return ValPoint(step, float(F.cross_entropy(logits, labels)), right / len(labels))


def learning_rates(settings: TrainingSettings, steps: int) -> tuple[float, ...]:
    """The rate of every step: constant, or half a cosine from the full one to 0 (SGDR, arXiv 1608.03983, eq. 5)."""
    if settings.schedule == "constant":
        return (settings.learning_rate,) * steps
    return tuple(settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps))


class Adam:
    """What `torch.optim.Adam(fused=True)` or `AdamW` does, bit for bit (arXiv 1412.6980, 1711.05101).

    By the functions that torch's classes call, because making one of the classes imports torch's compiler, which takes
    1.3 s and 79 MB.

    Args:
        weights: parameters to change, of one device and dtype; every one of them has a gradient at each `step`.
        decoupled: AdamW's weight decay, which shrinks the weights; else Adam's, which is added to the gradient.
        job_rates: for weights of shape (jobs, …), a factor on the learning rate of each job.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        weight_decay: float = 0.0,
        decoupled: bool = False,
        job_rates: Sequence[float] | None = None,
    ):
        self.weights, self.weight_decay, self.decoupled = list(weights), weight_decay, decoupled
        parts: list[tuple[float, slice | EllipsisType]] = [(1.0, ...)] if job_rates is None else []
        start = 0
        for rate, jobs in groupby(job_rates or ()):  # torch's function takes one rate, which neighbours may share
            parts.append((rate, slice(start, start := start + len(list(jobs)))))
        self.groups = [_Group(rate, part, self.weights) for rate, part in parts]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every weight once, and forget the gradients."""
        function = adamw_step if self.decoupled else adam_step
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        for group in self.groups:
            function(
                group.weights,
                gradients if group.part is ... else [gradient[group.part] for gradient in gradients],
                group.means,
                group.squares,
                [],  # amsgrad's
                group.steps,
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=group.rate * learning_rate,
                weight_decay=self.weight_decay,
                eps=1e-8,
                maximize=False,
            )
        for weight in self.weights:
            weight.grad = None


class _Group:
    """Weights that one rate moves, all or those of some jobs (`part`), with the state that Adam keeps of them."""

    def __init__(self, rate: float, part: slice | EllipsisType, parameters: list[nn.Parameter]):
        self.rate, self.part = rate, part
        self.weights = [weight.detach()[part] for weight in parameters]  # in the memory of the parameters
        self.means = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]
        self.steps = [torch.zeros((), device=weight.device) for weight in self.weights]
