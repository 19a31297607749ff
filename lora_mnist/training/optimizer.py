"""Adam and AdamW (arXiv 1412.6980, 1711.05101) in one fused pass over all weights, by torch's public functions.

Not by the classes `torch.optim.Adam` and `AdamW`: making one imports torch's compiler, which takes 1.3 s and 79 MB.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import nn
from torch.optim.adam import adam as adam_step
from torch.optim.adamw import adamw as adamw_step


class Adam:
    """What `torch.optim.Adam(fused=True)` or `AdamW` does, bit for bit.

    Args:
        weights: parameters to change, of one device and dtype; every one of them has a gradient at each `step`.
        decoupled: AdamW's weight decay, which shrinks the weights; else Adam's, which is added to the gradient.
    """

    def __init__(self, weights: Iterable[nn.Parameter], weight_decay: float = 0.0, decoupled: bool = False):
        self.weights: list[torch.Tensor] = list(weights)
        self.means = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]
        self.steps = [torch.zeros((), device=weight.device) for weight in self.weights]
        self.weight_decay, self.decoupled = weight_decay, decoupled

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every weight once, and forget the gradients."""
        function = adamw_step if self.decoupled else adam_step
        function(
            self.weights,
            [weight.grad for weight in self.weights if weight.grad is not None],
            self.means,
            self.squares,
            [],  # amsgrad's
            self.steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
        for weight in self.weights:
            weight.grad = None


class StackedAdam:
    """`Adam` over the weights of several jobs, each with a learning rate of its own.

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
            self.parts.append((rate, part, views, Adam(views, weight_decay, decoupled)))

    def step(self, learning_rate: float) -> None:
        """Move every weight once, by its job's rate times this factor, and forget the gradients."""
        for rate, part, views, optimizer in self.parts:
            for view, weight in zip(views, self.weights, strict=True):
                assert weight.grad is not None
                view.grad = weight.grad[part]
            optimizer.step(rate * learning_rate)
        for weight in self.weights:
            weight.grad = None
