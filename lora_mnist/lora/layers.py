"""One adapted linear layer: the frozen `nn.Linear`, and the low-rank updates of any number of adapters.

W' = W + strength · scaling · B A, with A (rank, in) and B (out, rank) (LoRA, arXiv 2106.09685). W is never written.
"""

from collections.abc import Iterable, MutableMapping
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from lora_mnist.errors import LoRAError
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.product import adapted, product_of
from lora_mnist.lora.update import LoRAUpdate, has_hooks
from lora_mnist.lora.weights import AdaptedWeight, Kept
from lora_mnist.lora.wrapper import Wrapper, check_name


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether `module` computes x Wᵀ + b and nothing else, so that it can be adapted.

    That is an `nn.Linear` with the forward of that class. A subclass with a forward of its own, as quantised layers
    have, computes who knows what, unless it has a static method `linear_product(x, weight, bias)` beside it: that is
    then what its forward does with its own weight and bias, and what a merged layer does with the merged weight.
    """
    replaced = "forward" in vars(module)  # on this one layer
    return isinstance(module, nn.Linear) and not replaced and product_of(type(module)) is not None


class LoRALinear(Wrapper):
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

    base: nn.Linear
    updates: MutableMapping[str, LoRAUpdate]
    merged: torch.Tensor | None

    def __init__(self, base: nn.Linear):
        if not is_linear(base):
            raise LoRAError(f"LoRALinear adapts a plain nn.Linear, not a {type(base).__name__}.", "Adapt its layers.")
        super().__init__(base)
        self.register_buffer("merged", None, persistent=False)  # (out, in) or None
        self._kept: Kept | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        if self.merged is not None and not self.off:
            self._refuse_training()
            self.refuse_hooks("The merged layer")
            # not by exchanging the base's weight for the time of a call: two threads at once would lose W for good
            product = product_of(type(self.base)) or F.linear
            return product(x, self.merged, self.base.bias)
        on = self._on()
        if on and (at_once := self._at_once(x, on)) is not None:
            return at_once
        y: torch.Tensor = self.base(x)
        if on and not torch.compiler.is_compiling() and (self.base._forward_hooks or _has_any_global_hook()):
            y = y.clone()  # a hook may have kept it, and an update may add to it in place
        for update in on:
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
        """W + strength · scaling · B A over all adapters that are on, in the order they came; (out, in).

        Summed in the widest of their dtypes and rounded to that of W once.
        """
        W = weight = self.base.weight
        for update in self._on():
            weight = weight + update.weight()
        return weight.to(W.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """W' (out, in), to be read, with gradients; made when something computes with it (see `AdaptedWeight`).

        In eval mode it is kept beside W until a factor, a strength or W changes. Writing to it raises LoRAError.
        """
        if self.merged is not None and not self.off:
            self._refuse_training()
            merged = self.merged
            return AdaptedWeight(merged, lambda: merged)
        if _is_traced():  # what nothing computes with falls out of a graph by itself
            return self.base.weight if self.off else self.merged_weight()
        W = self.base.weight
        sources = [W, *(factor for update in self._on() for factor in (update.lora_A, update.lora_B))]
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            found: torch.Tensor = _Read.apply(self, *sources)  # type: ignore[no-untyped-call]
            return found
        return AdaptedWeight(W, self._matrix)

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

    def extra_repr(self) -> str:
        """What `print(model)` says of it."""
        return "off" if self.off else "merged" if self.merged is not None else ""

    def train(self, mode: bool = True) -> "LoRALinear":
        """As nn.Module.train; what eval mode kept is let go."""
        self._kept = None
        return super().train(mode)

    def require_unmerged(self, action: str) -> None:
        """Raises LoRAError if the layer is merged: what `action` changes would not show in the merged matrix."""
        if self.merged is not None:
            raise LoRAError(f"The model is merged, so one cannot {action}.", "Call `unmerge` first.")

    def refuse_hooks(self, path: str) -> None:
        """Raises LoRAError if the base has hooks, which a merged weight goes past. `path` is the layer's name."""
        if has_hooks(self.base):
            raise LoRAError(f"{path} has hooks, which a merged weight would go past.", "Remove them before.")

    def _on(self) -> list[LoRAUpdate]:
        return [] if self.off else [update for update in self.updates.values() if update.on]

    def _at_once(self, x: torch.Tensor, on: Iterable[LoRAUpdate]) -> torch.Tensor | None:
        """The output by `adapted`; None where it may be less than what the calls of the base and its updates do."""
        base = self.base
        product = product_of(type(base))
        if (
            product is not F.linear  # one of its own rounds in its own way, and the update is to add to just that
            or "forward" in vars(base)
            or _is_traced()
            or has_hooks(base)
            or _has_any_global_hook()
            or forward_ad._current_level >= 0
            or torch._C._is_any_autocast_enabled()
            or x.layout is not torch.strided
        ):
            return None
        weight, bias, dtype = base.weight, base.bias, x.dtype
        if dtype != weight.dtype or weight.requires_grad or (bias is not None and bias.requires_grad):
            return None
        scales, factors = [], []
        for update in on:
            if not update.is_bare():
                return None
            A, B = update.lora_A, update.lora_B
            if not dtype == A.dtype == B.dtype:
                return None
            scales.append(update.scaling * update.strength)
            factors += [A, B]
        return adapted(product, x, weight, bias, scales, factors)

    def plain_weight(self) -> torch.Tensor:
        """`merged_weight` in the precision of the weights, whatever mode the caller is in; never W itself."""
        W = self.base.weight
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(W.device.type, enabled=False):
            provenance = self.merged_weight()
            return provenance.clone() if provenance is self.base.weight else provenance

    def _matrix(self) -> torch.Tensor:
        """What `weight` stands for."""
        if self.off:
            return self.base.weight
        W, on = self.base.weight, self._on()
        if self._kept is None or not self._kept.holds(W, on):
            self._kept = None if self.training else Kept(W, on, self.plain_weight())
        return self.plain_weight() if self._kept is None else self._kept.weight

    def _refuse_training(self) -> None:
        if self.training and torch.is_grad_enabled():
            raise LoRAError("The model is merged, so its adapters cannot train.", "Call `unmerge`, or `eval`, first.")


class _Read(torch.autograd.Function):
    """Reading `LoRALinear.weight`: W' now or later, and the gradients of what it is made from."""

    @staticmethod
    def forward(ctx: Any, layer: LoRALinear, weight: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        ctx.scales = [update.scaling * update.strength for update in layer._on()]
        ctx.save_for_backward(*factors)
        return AdaptedWeight(weight, layer._matrix)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # (out, in)
        of_factors: list[torch.Tensor] = []
        for scale, A, B in zip(ctx.scales, ctx.saved_tensors[::2], ctx.saved_tensors[1::2], strict=True):
            of_product = scale * gradient.to(A.dtype)
            of_factors += [B.t() @ of_product, of_product @ A.t()]  # (rank, in), (out, rank)
        return None, gradient, *of_factors


def _is_traced() -> bool:
    """Whether a graph is made of what is computed, or a transform of torch.func differentiates or maps it."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or bool(torch._C._are_functorch_transforms_active())
