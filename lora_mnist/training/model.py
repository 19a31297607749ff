"""The network that is pretrained and repaired: a multilayer perceptron on 28×28 grey images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

MEAN, STD = 0.1307, 0.3081  # of all MNIST training pixels, after division by 255; how a base wants its pixels
BATCH = 1000  # images per forward pass: 8 MB of activations in the widest layer


def normalise(images: torch.Tensor, mean: float = MEAN, std: float = STD) -> torch.Tensor:
    """uint8 pixels → float32, by default with zero mean and unit variance over MNIST; the shape is kept.

    Args:
        mean, std: of grey values from 0 to 1; a negative std turns light into dark.
    """
    return images.float().div_(255).sub_(mean).div_(std)


class MLP(nn.Module):
    """`linear1`, `linear2`, … with ReLU between them; 784 → hidden… → 10.

    Args:
        hidden: sizes of the hidden layers. (1000, 2000) gives 2,807,010 parameters.
        bias: whether the layers have one, all of them alike or each by itself.
        mean, std: how it wants its pixels (see `normalise`).
    """

    def __init__(
        self,
        hidden: Sequence[int] = (1000, 2000),
        bias: bool | Sequence[bool] = True,
        mean: float = MEAN,
        std: float = STD,
    ):
        super().__init__()
        self.hidden, self.bias, self.mean, self.std = tuple(hidden), bias, mean, std
        sizes = (28 * 28, *self.hidden, 10)
        biases = [bias] * (len(sizes) - 1) if isinstance(bias, bool) else bias
        for i, (fan_in, fan_out, own) in enumerate(zip(sizes[:-1], sizes[1:], biases, strict=True), 1):
            self.add_module(f"linear{i}", nn.Linear(fan_in, fan_out, own))

    @property
    def architecture(self) -> dict[str, Any]:
        """What makes a network of the same kind: `MLP(**architecture)`."""
        return {"hidden": self.hidden, "bias": self.bias, "mean": self.mean, "std": self.std}

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 pixels → float32 as it wants them; the shape is kept."""
        return normalise(images, self.mean, self.std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised float32 images (B, 28, 28) or (B, 784) → logits (B, 10)."""
        x = x.flatten(1)  # (B, 28, 28) -> (B, 784)
        *hidden, last = self.children()
        for linear in hidden:
            x = F.relu(linear(x))  # (B, 784) -> (B, 1000) -> (B, 2000)
        return last(x)  # (B, 2000) -> (B, 10)


@torch.inference_mode()
def logits_of(model: MLP, images: torch.Tensor) -> torch.Tensor:
    """uint8 images (N, 28, 28) → logits (N, 10) fp32 on the CPU. The model is left in eval mode."""
    model.eval()
    logits = torch.empty(len(images), 10)  # at once: a small tensor kept after each batch fragments the heap
    for rows, part in zip(logits.split(BATCH), images.split(BATCH), strict=True):
        rows.copy_(model(model.normalise(part)))
    return logits
