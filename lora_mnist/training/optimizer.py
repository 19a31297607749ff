"""Adam and AdamW (arXiv 1412.6980, 1711.05101) in one fused pass over all weights."""

from collections.abc import Iterable

import torch
from torch import nn


class FusedAdam:
    """`torch.optim.Adam(fused=True)` or `AdamW`, bit for bit, with torch's own kernel.

    Not those classes, because their first step imports torch's compiler: a second and 70 MB of every run, for nothing.
    And the kernel itself rather than the function around it, which takes longer to sort an adapter's few weights by
    device and dtype than the kernel to move them.

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
        self.kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_

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
