"""Adam and AdamW (arXiv 1412.6980, 1711.05101) in one fused pass over all weights."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.adam import adam


class FusedAdam:
    """`torch.optim.Adam(fused=True)` or `AdamW`, bit for bit, with torch's own kernel.

    Not those classes, because their first step imports torch's compiler: a second and 70 MB of every run, for nothing.

    Args:
        weights: parameters to change; every one of them has a gradient at each `step`.
        decoupled: AdamW's weight decay, which shrinks the weights; else Adam's, which is added to the gradient.
    """

    def __init__(self, weights: Iterable[nn.Parameter], weight_decay: float = 0.0, decoupled: bool = False):
        self.weights = list(weights)
        self.means = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]
        self.steps = [torch.zeros((), device=weight.device) for weight in self.weights]
        self.weight_decay = weight_decay
        self.decoupled = decoupled

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every weight once, and forget the gradients."""
        adam(
            self.weights,
            [weight.grad for weight in self.weights],
            self.means,
            self.squares,
            [],
            self.steps,
            fused=True,
            decoupled_weight_decay=self.decoupled,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            lr=learning_rate,
            weight_decay=self.weight_decay,
            maximize=False,
        )
        for weight in self.weights:
            weight.grad = None
