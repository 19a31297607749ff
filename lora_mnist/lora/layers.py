"""One adapted linear layer: the frozen `nn.Linear`, and the low-rank updates of any number of adapters.

W' = W + strength · scaling · B A, with A (rank, in) and B (out, rank) (LoRA, arXiv 2106.09685). W is never written.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, TypeGuard, cast

import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.errors import LoRAError

LARGEST = 1_000_000  # rank: far beyond use, and more would only end in a lack of memory


@dataclass(frozen=True)
class LoRAConfig:
    """What an adapter is, apart from its weights.

    A pattern names a layer in full (`blocks.0.q_proj`), or by the last parts of its name (`q_proj`), or is a regular
    expression for the whole name (`blocks[.][0-3][.].*`); it is taken as the first of these that finds one.

    Attributes:
        targets: patterns of the layers to adapt; by default all.
        rank: columns of B and rows of A.
        alpha: numerator of the scaling.
        rank_pattern, alpha_pattern: another rank or alpha for the target layers that a pattern finds. Where several do,
            the first counts.
        rslora: see `scaling`.
        dropout: probability that an input of `lora_A` is zeroed, in training mode.
        init: how `lora_A` starts: `kaiming` (uniform, as in loralib) or `gaussian`, N(0, 1). `lora_B` starts at 0, so
            the model starts as the base (section 4.1).

    Raises:
        LoRAError: a value is out of its range.
    """

    targets: tuple[str, ...] = (".*",)
    rank: int = 8
    alpha: float = 8.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dropout: float = 0.0
    init: str = "kaiming"

    def __post_init__(self) -> None:
        dropout = _is_number(self.dropout) and 0 <= self.dropout < 1
        patterns = isinstance(self.targets, Sequence) and not isinstance(self.targets, str) and bool(self.targets)
        rules = [
            ("targets", self.targets, patterns, "a list of at least one pattern"),
            ("dropout", self.dropout, dropout, "a number from 0 to below 1"),
            ("init", self.init, self.init in ("kaiming", "gaussian"), "kaiming or gaussian"),
            ("rank_pattern", self.rank_pattern, isinstance(self.rank_pattern, Mapping), "a rank by pattern"),
            ("alpha_pattern", self.alpha_pattern, isinstance(self.alpha_pattern, Mapping), "an alpha by pattern"),
        ]
        _require(rules)
        for rank in (self.rank, *self.rank_pattern.values()):
            holds = isinstance(rank, Integral) and not isinstance(rank, bool) and 1 <= rank <= LARGEST
            rules.append(("rank", rank, holds, f"a whole number from 1 to {LARGEST:,}"))
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            holds = _is_number(alpha) and 0 < alpha <= 1e30
            rules.append(("alpha", alpha, holds, "a finite number above 0"))
        _require(rules)

    @property
    def scaling(self) -> float:
        """alpha / rank (section 4.1), or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732, theorem 3.2)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def of_layers(self, layers: Iterable[str]) -> dict[str, "LoRAConfig"]:
        """What it comes to for each of its target layers among `layers`, in their order; without patterns.

        Raises:
            LoRAError: a pattern finds no layer. Those of rank and alpha look among the target layers only.
        """
        layers = list(layers)
        found = find(self.targets, layers)
        targets = [layer for layer in layers if layer in found]
        ranks, alphas = _by_layer(self.rank_pattern, targets), _by_layer(self.alpha_pattern, targets)
        plain = replace(self, rank_pattern={}, alpha_pattern={})
        return {
            layer: replace(
                plain, targets=(layer,), rank=ranks.get(layer, self.rank), alpha=alphas.get(layer, self.alpha)
            )
            for layer in targets
        }


def _require(rules: Iterable[tuple[str, Any, bool, str]]) -> None:
    for name, value, holds, rule in rules:
        if not holds:
            raise LoRAError(f"`{name}` (={value!r}) must be {rule}.", "Correct that value.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def find(patterns: Iterable[str], layers: Sequence[str]) -> set[str]:
    """The names among `layers` that at least one of `patterns` finds.

    Raises:
        LoRAError: a pattern finds none, or is not a valid expression.
    """
    return set().union(*(_find(pattern, layers) for pattern in patterns))


def _find(pattern: str, layers: Sequence[str], kind: str = "linear") -> set[str]:
    if pattern in layers:
        return {pattern}
    if by_its_end := {layer for layer in layers if layer.endswith(f".{pattern}")}:
        return by_its_end
    try:
        by_expression = {layer for layer in layers if re.fullmatch(pattern, layer)}
    except re.error as error:
        raise LoRAError(f"Target {pattern!r} is not a regular expression: {error}.", "Correct it.") from error
    if not by_expression:
        there = f"The {kind} layers are {', '.join(layers)}." if layers else "There is none to adapt."
        raise LoRAError(f"Target {pattern!r} matches no {kind} layer.", there)
    return by_expression


def _by_layer(values: Mapping[str, Any], layers: Sequence[str]) -> dict[str, Any]:
    found = [(_find(pattern, layers, "target"), value) for pattern, value in values.items()]
    return {layer: value for hits, value in reversed(found) for layer in hits}  # the first pattern has the last word


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
