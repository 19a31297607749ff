"""One adapter's part in one linear layer."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.product import lowered, product_of, rows_of


class LoRAUpdate(nn.Module):
    """One adapter's update of one layer, strength · scaling · B A x.

    Attributes:
        lora_A: (rank, in), in the dtype that `config.dtype_beside` gives and on the device of the layer's weight.
        lora_B: (out, rank), likewise; 0 at first.
        config: of this layer.
        strength: 1 as trained; `set_strength` sets it for all layers of an adapter.
        on: whether it is computed at all: its strength is not 0.
    """

    on: bool

    def __init__(self, linear: nn.Linear, config: LoRAConfig, generator: torch.Generator | None = None):
        super().__init__()
        a = torch.empty(config.rank, linear.in_features)  # drawn on the CPU, so that every device starts the same
        if config.init == "kaiming":
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        else:
            nn.init.normal_(a, generator=generator)
        weight = linear.weight
        self.lora_A = nn.Parameter(a.to(weight.device, config.dtype_beside(weight.dtype)))
        self.lora_B = nn.Parameter(self.lora_A.new_zeros(linear.out_features, config.rank))
        self.dropout = nn.Dropout(config.dropout)
        self.config = config
        self._plain = product_of(type(linear)) is F.linear
        self.scaling = config.scaling
        self.strength = 1.0

    @property
    def strength(self) -> float:
        """See above."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength, self.on = value, value != 0
        with torch.inference_mode(False):  # or the compiler would take it for another kind of tensor
            # a compiled graph holds numbers fast, but looks at a tensor anew; no buffer, because `to` rounds those
            self._factor = torch.tensor(self.scaling * value, dtype=torch.float64)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (…, in), y (…, out) → y + strength · scaling · B A x (…, out): one product adds and scales as well.

        It is computed in the dtype of A and B, and rounded to that of y once. In inference mode the result is y itself,
        where it can be: no gradient needs what it was, and a copy takes longer than the product.
        """
        x = self.dropout(x) if self.dropout.p else x
        if x.dtype != self.lora_A.dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_A.dtype)
        # rounded as `adapted` does it where that may compute the whole layer instead
        low = lowered(rows_of(x), self.lora_A) if self._plain else rows_of(F.linear(x, self.lora_A))  # (N, rank)
        rows, B = rows_of(y), self.lora_B.t()  # (N, out), (rank, out)
        if torch.compiler.is_compiling():
            added = torch.addmm(rows.to(low.dtype), (low * self._factor).to(low.dtype), B)
            return added.to(y.dtype).view(y.shape)
        factor = self.scaling * self._strength
        if y.is_inference() and rows.dtype == low.dtype == B.dtype:
            return rows.addmm_(low, B, alpha=factor).view(y.shape)
        added = torch.addmm(rows.to(low.dtype), low, B, alpha=factor)  # (N, rank) @ (rank, out) -> (N, out)
        return added.to(y.dtype).view(y.shape)

    def is_bare(self) -> bool:
        """Whether a call of it is now the two products and nothing else."""
        dropout, replaced = self.dropout, "forward" in vars(self) or type(self).forward is not LoRAUpdate.forward
        return not (replaced or (dropout.p and dropout.training) or has_hooks(self))

    def weight(self) -> torch.Tensor:
        """The update as one matrix (out, in)."""
        return (self.scaling * self.strength) * (self.lora_B @ self.lora_A)

    def extra_repr(self) -> str:
        """What `print(model)` says of it."""
        state = f"strength={self.strength:g}" if self.on else "off"
        return f"rank={self.config.rank}, alpha={self.config.alpha:g}, {state}, dtype={self.lora_A.dtype}"


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of `module` does more than its forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
