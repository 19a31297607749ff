"""The network that is pretrained and repaired: a multilayer perceptron on 28×28 grey images."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

MEAN, STD = 0.1307, 0.3081  # of all MNIST training pixels, after division by 255
BATCH = 1000  # images per forward pass: 8 MB of activations in the widest layer


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 pixels → float32 with zero mean and unit variance over MNIST; the shape is kept."""
    return images.float().div_(255).sub_(MEAN).div_(STD)


@torch.inference_mode()
def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """uint8 images (N, 28, 28) → logits (N, 10) fp32 on the CPU. The model is left in eval mode."""
    model.eval()
    parts = [model(normalise(part)).cpu() for part in images.split(BATCH)]
    return torch.cat(parts) if parts else torch.empty(0, 10)


class MLP(nn.Module):
    """`linear1`, `linear2`, … with ReLU between them; 784 → hidden… → 10.

    Args:
        hidden: sizes of the hidden layers. (1000, 2000) gives 2,807,010 parameters.
    """

    def __init__(self, hidden: Sequence[int] = (1000, 2000)):
        super().__init__()
        self.hidden = tuple(hidden)
        sizes = (28 * 28, *self.hidden, 10)
        for i, (fan_in, fan_out) in enumerate(pairwise(sizes), 1):
            self.add_module(f"linear{i}", nn.Linear(fan_in, fan_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised float32 images (B, 28, 28) or (B, 784) → logits (B, 10)."""
        x = x.flatten(1)  # (B, 28, 28) -> (B, 784)
        *hidden, last = self.children()
        for linear in hidden:
            x = F.relu(linear(x))  # (B, 784) -> (B, 1000) -> (B, 2000)
        return last(x)  # (B, 2000) -> (B, 10)
