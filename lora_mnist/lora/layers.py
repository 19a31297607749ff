"""One adapted linear layer: the frozen `nn.Linear`, and the low-rank updates of any number of adapters.

W' = W + strength · scaling · B A, with A (rank, in) and B (out, rank) (LoRA, arXiv 2106.09685). W is never written.
"""

import math
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, TypeGuard, cast

import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.errors import LoRAError
from lora_mnist.lora.config import LoRAConfig


def check_name(name: str, taken: Iterable[str]) -> None:
    """Raises LoRAError if a new adapter cannot be called `name`."""
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise LoRAError(f"{name!r} cannot be an adapter's name: torch has another use for it.", "Choose another one.")
    if name in taken:
        raise LoRAError(f"The model has an adapter {name!r} already.", "Give this one another name.")


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether `module` computes x Wᵀ + b and nothing else, so that it can be adapted.

    That is an `nn.Linear` with the forward of that class. A subclass with a forward of its own, as quantised layers
    have, computes who knows what, unless it has a static method `linear_product(x, weight, bias)` beside it: that is
    then what its forward does with its own weight and bias, and what a merged layer does with the merged weight.
    """
    kind, forward = type(module), type(module).forward
    origins = [origin for origin in kind.__mro__ if vars(origin).get("forward") is forward]
    return (
        isinstance(module, nn.Linear)
        and "forward" not in vars(module)  # replaced on this one layer
        and any(origin is nn.Linear or "linear_product" in vars(origin) for origin in origins)
    )


class LoRAUpdate(nn.Module):
    """One adapter's update of one layer, strength · scaling · B A x.

    Attributes:
        lora_A: (rank, in), in the dtype and on the device of the layer's weight.
        lora_B: (out, rank), likewise; 0 at first.
        config: of this layer.
        strength: 1 as trained; `set_strength` sets it for all layers of an adapter.
    """

    def __init__(self, linear: nn.Linear, config: LoRAConfig, generator: torch.Generator | None = None):
        super().__init__()
        a = torch.empty(config.rank, linear.in_features)  # drawn on the CPU, so that every device starts the same
        if config.init == "kaiming":
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        else:
            nn.init.normal_(a, generator=generator)
        self.lora_A = nn.Parameter(a.to(linear.weight))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, config.rank))
        self.dropout = nn.Dropout(config.dropout)
        self.config = config
        self.scaling = config.scaling
        self.strength = 1.0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (…, in), y (…, out) → y + strength · scaling · B A x (…, out): one product adds and scales as well.

        In inference mode that is y itself, where it can be: no gradient needs what it was, and a copy takes longer than
        the product.
        """
        low = F.linear(self.dropout(x) if self.dropout.p else x, self.lora_A)  # (…, in) -> (…, rank)
        B, factor = self.lora_B.t(), self.scaling * self.strength
        if y.dim() == 2 and y.is_inference() and y.dtype == low.dtype == B.dtype:
            return y.addmm_(low, B, alpha=factor)
        if y.dim() == 2:
            return torch.addmm(y, low, B, alpha=factor)  # (N, rank) @ (rank, out) -> (N, out)
        rows = torch.addmm(y.reshape(-1, y.shape[-1]), low.reshape(-1, low.shape[-1]), B, alpha=factor)
        return rows.view(y.shape)

    def weight(self) -> torch.Tensor:
        """The update as one matrix (out, in)."""
        return (self.scaling * self.strength) * (self.lora_B @ self.lora_A)


class LoRALinear(nn.Module):
    """An `nn.Linear` (`base`) and the updates of any number of adapters, by adapter name.

    The factored form never makes a matrix of the size of W, nor a gradient of that size. An update of strength 0 is
    not computed at all, so a layer whose adapters are all off gives the base's very bits.

    Merged, it computes with one matrix that stands beside W rather than in its place: W cannot drift.

    Code that goes past `forward` to `weight` and `bias`, as nn.MultiheadAttention and the fast path of
    nn.TransformerEncoderLayer do, finds W' there (dropout then has nothing to act on). PEFT's layers show W there, so
    PEFT computes without the adapter in these places.

    Attributes:
        off: while True, the layer is its base, whatever is on or merged; `disabled` sets it.

    Args:
        base: (in) → (out); frozen from now on.

    Raises:
        LoRAError: `base` is not an `nn.Linear`, or one with a forward of its own.
    """

    merged: torch.Tensor | None

    def __init__(self, base: nn.Linear):
        super().__init__()
        if not is_linear(base):
            raise LoRAError(f"LoRALinear adapts a plain nn.Linear, not a {type(base).__name__}.", "Adapt its layers.")
        self.base: nn.Linear = base.requires_grad_(False)
        self.updates = cast(MutableMapping[str, LoRAUpdate], nn.ModuleDict())
        self.register_buffer("merged", None, persistent=False)  # (out, in) or None
        self.off = False
        self.train(base.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        if self.merged is not None and not self.off:
            self._refuse_training()
            # not by exchanging the base's weight for the time of a call: two threads at once would lose W for good
            product: Callable[..., torch.Tensor] = getattr(type(self.base), "linear_product", F.linear)
            return product(x, self.merged, self.base.bias)
        y: torch.Tensor = self.base(x)
        if self.off:
            return y
        if self.base._forward_hooks:
            y = y.clone()  # a hook may have kept it, and an update may add to it in place
        for update in self.updates.values():
            if update.strength:
                y = update(x, y)
        return y

    def add(self, name: str, config: LoRAConfig, generator: torch.Generator | None = None) -> LoRAUpdate:
        """Add the update of adapter `name`. The patterns in `config` mean nothing here; `inject` resolves them.

        Args:
            generator: draws `lora_A` (rank, in); None takes torch's global one.

        Raises:
            LoRAError: there is one of that name, torch cannot store one under it, or the layer is merged.
        """
        self.require_unmerged("add an adapter")
        check_name(name, self.updates)
        self.updates[name] = LoRAUpdate(self.base, config, generator).train(self.training)
        return self.updates[name]

    def merged_weight(self) -> torch.Tensor:
        """W + strength · scaling · B A over all adapters that are on, in the order they came; (out, in)."""
        weight = self.base.weight
        for update in self.updates.values():
            if update.strength:
                weight = weight + update.weight()
        return weight

    @property
    def weight(self) -> torch.Tensor:
        """W' (out, in): what is merged, or else made anew at every look, with gradients. To be read, not written."""
        if self.off:
            return self.base.weight
        if self.merged is None:
            return self.merged_weight()
        self._refuse_training()
        return self.merged

    @property
    def bias(self) -> torch.Tensor | None:
        """(out,), the base's."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """Size of the last dimension of its input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Size of the last dimension of its output."""
        return self.base.out_features

    def require_unmerged(self, action: str) -> None:
        """Raises LoRAError if the layer is merged: what `action` changes would not show in the merged matrix."""
        if self.merged is not None:
            raise LoRAError(f"The model is merged, so one cannot {action}.", "Call `unmerge` first.")

    def _refuse_training(self) -> None:
        if self.training and torch.is_grad_enabled():
            raise LoRAError("The model is merged, so its adapters cannot train.", "Call `unmerge`, or `eval`, first.")

    def _load_from_state_dict(self, *arguments: Any) -> None:
        # torch loads layer by layer: those before this one have their new weights by now
        self.require_unmerged("load weights")
        super()._load_from_state_dict(*arguments)
