"""Adam and AdamW (arXiv 1412.6980, 1711.05101) in one fused pass over all weights."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import groupby
from typing import Protocol

import torch
from torch import nn


class Adam(Protocol):
    """What the training loop wants of an optimizer."""

    def step(self, learning_rate: float) -> None:
        """Move every weight once, and forget the gradients."""


class FusedAdam:
    """`torch.optim.Adam(fused=True)` or `AdamW`, bit for bit, with torch's own kernel.

    Not those classes, because their first step imports torch's compiler: a second and 70 MB of every run, for nothing.
    And the kernel itself rather than the function around it, which takes longer to sort an adapter's few weights by
    device and dtype than the kernel to move them. The kernel is private to torch; `adam` asks first whether it works.

    Args:
        weights: parameters to change, of one device and dtype; every one of them has a gradient at each `step`.
        decoupled: AdamW's weight decay, which shrinks the weights; else Adam's, which is added to the gradient.
    """

    def __init__(self, weights: Iterable[nn.Parameter], weight_decay: float = 0.0, decoupled: bool = False):
        self.weights = list(weights)
        self.means = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]
        self.count = torch.zeros((), device=self.weights[0].device)  # steps so far
        self.weight_decay = weight_decay
        self.kernel: Callable[..., None] = torch._fused_adamw_ if decoupled else torch._fused_adam_

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every weight once, and forget the gradients."""
        self.count += 1
        self.kernel(
            self.weights,
            [weight.grad for weight in self.weights],
            self.means,
            self.squares,
            [],  # amsgrad's
            [self.count] * len(self.weights),
            lr=learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        for weight in self.weights:
            weight.grad = None


class PublicAdam:
    """The same by `torch.optim`, fused or (None) as torch chooses."""

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        weight_decay: float = 0.0,
        decoupled: bool = False,
        fused: bool | None = None,
    ):
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        self.optimizer = kind(weights, weight_decay=weight_decay, fused=fused)

    def step(self, learning_rate: float) -> None:
        """Move every weight once, and forget the gradients."""
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()


class StackedAdam:
    """`adam` over the weights of several jobs, each with a learning rate of its own.

    Jobs that follow each other and have the same rate are moved in one pass.

    Args:
        weights: parameters (jobs, …); every one of them has a gradient at each `step`.
        rates: of every job, in the units of the factor that `step` is told.
    """

    def __init__(
        self, weights: Sequence[nn.Parameter], rates: Sequence[float], weight_decay: float, decoupled: bool = False
    ):
        self.weights = weights
        self.parts: list[tuple[float, slice, list[nn.Parameter], Adam]] = []
        start = 0
        for rate, jobs in groupby(rates):
            part = slice(start, start := start + len(list(jobs)))
            views = [nn.Parameter(weight.detach()[part]) for weight in weights]  # of the same memory
            self.parts.append((rate, part, views, adam(views, weight_decay, decoupled)))

    def step(self, learning_rate: float) -> None:
        """Move every weight once, by its job's rate times this factor, and forget the gradients."""
        for rate, part, views, optimizer in self.parts:
            for view, weight in zip(views, self.weights, strict=True):
                assert weight.grad is not None
                view.grad = weight.grad[part]
            optimizer.step(rate * learning_rate)
        for weight in self.weights:
            weight.grad = None


def adam(weights: Sequence[nn.Parameter], weight_decay: float = 0.0, decoupled: bool = False) -> Adam:
    """`FusedAdam` where its kernel works, else `PublicAdam`, fused where that works. Arguments as there."""
    return _way(weights[0].device.type, decoupled)(weights, weight_decay, decoupled)


@cache
def _way(device: str, decoupled: bool) -> Callable[..., Adam]:
    ways: tuple[Callable[..., Adam], ...] = (FusedAdam, partial(PublicAdam, fused=True))
    return next((way for way in ways if _works(way, device, decoupled)), PublicAdam)


def _works(way: Callable[..., Adam], device: str, decoupled: bool) -> bool:
    """Whether one step of one weight goes where it should: its length is the rate's, whatever the gradient's."""
    weight = nn.Parameter(torch.ones(1, device=device))
    weight.grad = torch.full_like(weight, 0.5)
    try:
        way([weight], 0.5, decoupled).step(0.1)
        moved = weight.item()
    except Exception:  # whatever a torch raises that has no such kernel, or another of that name
        return False
    return abs(moved - (0.85 if decoupled else 0.9)) < 1e-6  # decay takes 0.1 · 0.5 · 1 more only if decoupled
