"""Low-rank adaptation (LoRA, arXiv 2106.09685) of the `nn.Linear` layers of any model.

W' = W + strength · scaling · B A, with A (rank, in) and B (out, rank). W itself is never written.
"""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.errors import UsageError


@dataclass(frozen=True)
class LoRAConfig:
    """What an adapter is, apart from its weights.

    Attributes:
        targets: layers to adapt, each by name, by the last parts of a name, or by a regular expression for the whole.
        init: how `lora_A` starts: `kaiming` (uniform, as in loralib) or `gaussian`, N(0, 1). `lora_B` starts at 0, so
            the model starts as the base (section 4.1).
    """

    targets: tuple[str, ...]
    rank: int
    alpha: float
    rslora: bool = False
    dropout: float = 0.0
    init: str = "kaiming"

    def __post_init__(self) -> None:
        number = (int, float)
        rules = {
            "rank": (type(self.rank) is int and self.rank >= 1, "a whole number from 1"),
            "alpha": (type(self.alpha) in number and 0 < self.alpha < math.inf, "a finite number above 0"),
            "dropout": (type(self.dropout) in number and 0 <= self.dropout < 1, "a number from 0 to below 1"),
            "init": (self.init in ("kaiming", "gaussian"), "kaiming or gaussian"),
            "targets": (bool(self.targets), "at least one layer"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UsageError(f"`{name}` (={getattr(self, name)!r}) must be {rule}.", "Correct that value.")

    @property
    def scaling(self) -> float:
        """alpha / rank (section 4.1), or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LoRAUpdate(nn.Module):
    """One adapter's update of one layer: x (…, in) → strength · scaling · B A x (…, out)."""

    def __init__(self, layer: nn.Linear, config: LoRAConfig, generator: torch.Generator | None = None):
        super().__init__()
        a = torch.empty(config.rank, layer.in_features)  # drawn on the CPU, so that every device starts the same
        if config.init == "kaiming":
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        else:
            nn.init.normal_(a, generator=generator)
        self.lora_A = nn.Parameter(a.to(layer.weight))
        self.lora_B = nn.Parameter(layer.weight.new_zeros(layer.out_features, config.rank))
        self.dropout = nn.Dropout(config.dropout)
        self.scaling = config.scaling
        self.strength = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = F.linear(self.dropout(x), self.lora_A)  # (…, in) -> (…, rank)
        return F.linear(low * (self.scaling * self.strength), self.lora_B)  # (…, rank) -> (…, out)

    def weight(self) -> torch.Tensor:
        """The update as one matrix (out, in)."""
        return (self.scaling * self.strength) * (self.lora_B @ self.lora_A)


class LoRALinear(nn.Module):
    """An `nn.Linear` (`base`) and the updates of any number of adapters, by adapter name.

    The factored form never makes a matrix of the size of W, nor a gradient of that size. An update of strength 0 is
    not computed at all, so a layer whose adapters are all off gives the base's very bits.
    """

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.updates = nn.ModuleDict()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        y = self.base(x)
        for update in self.updates.values():
            if update.strength:
                y = y + update(x)
        return y

    def merged_weight(self) -> torch.Tensor:
        """W + strength · scaling · B A over all adapters that are on, in the order they came; (out, in)."""
        weight = self.base.weight
        for update in self.updates.values():
            if update.strength:
                weight = weight + update.weight()
        return weight


def inject(
    model: nn.Module, name: str, config: LoRAConfig, generator: torch.Generator | None = None
) -> dict[str, LoRAUpdate]:
    """Freeze all of `model` and add adapter `name`, the only thing in it that trains.

    Args:
        model: any module; its target layers are replaced by `LoRALinear` in place.
        generator: draws `lora_A`; None takes torch's global one.

    Returns:
        The new update of every adapted layer, by the layer's name.

    Raises:
        UsageError: a target matches no linear layer, the rank is above the smaller side of every target, or the
            model has an adapter of that name, or torch cannot store one under it.
    """
    layers = match_layers(model, config.targets)
    if all(config.rank > min(_linear(layer).weight.shape) for layer in layers.values()):
        largest = max(min(_linear(layer).weight.shape) for layer in layers.values())
        raise UsageError(
            f"`rank` (={config.rank}) is above the smaller side of every target layer.",
            f"Choose a --rank of at most {largest}.",
        )
    if not name or "." in name or hasattr(nn.ModuleDict, name):
        raise UsageError(f"{name!r} cannot be an adapter's name: torch has another use for it.", "Choose another name.")
    if name in adapter_names(model):
        raise UsageError(f"The model has an adapter {name!r} already.", "Give this one another name.")
    model.requires_grad_(False)
    updates = {}
    for path, layer in layers.items():
        if isinstance(layer, nn.Linear):
            layer = LoRALinear(layer)
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
        updates[path] = layer.updates[name] = LoRAUpdate(layer.base, config, generator).train(model.training)
    return updates


def match_layers(model: nn.Module, targets: Iterable[str]) -> dict[str, nn.Module]:
    """The linear layers that `targets` name, in the model's order: `nn.Linear` or, once adapted, `LoRALinear`.

    Raises:
        UsageError: a target matches none, or is not a valid pattern.
    """
    layers = dict(_layers(model))
    wanted = set()
    for target in targets:
        try:
            pattern = re.compile(target)
        except re.error as error:
            raise UsageError(
                f"Target {target!r} is not a regular expression: {error}.", "Correct --targets."
            ) from error
        found = {n for n in layers if n == target or n.endswith(f".{target}") or pattern.fullmatch(n)}
        if not found:
            raise UsageError(
                f"Target {target!r} matches no linear layer.", f"The model's linear layers are {', '.join(layers)}."
            )
        wanted |= found
    return {path: layer for path, layer in layers.items() if path in wanted}


def oversized(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Target layers whose smaller side is below the rank: there the adapter has more numbers than it can use."""
    layers = match_layers(model, config.targets)
    return [path for path, layer in layers.items() if config.rank > min(_linear(layer).weight.shape)]


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters in `model`, in the order they came."""
    return list(dict.fromkeys(name for _, layer in _adapted(model) for name in layer.updates))


def updates_of(model: nn.Module, name: str) -> dict[str, LoRAUpdate]:
    """The updates of adapter `name`, by the name of their layer. Raises UsageError if there is no such adapter."""
    if name not in adapter_names(model):
        raise UsageError(
            f"The model has no adapter {name!r}.", f"It has {', '.join(adapter_names(model)) or 'no adapters'}."
        )
    return {path: layer.updates[name] for path, layer in _adapted(model) if name in layer.updates}


def set_strength(model: nn.Module, name: str, strength: float) -> None:
    """Apply adapter `name` with a factor: 1 as trained, 0 off. Raises UsageError if it is not finite."""
    if not math.isfinite(strength):
        raise UsageError(f"`strength` (={strength}) must be a finite number.", "1 is as trained, 0 is the base.")
    for update in updates_of(model, name).values():
        update.strength = float(strength)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block every adapter is off and the model is the base, bit for bit."""
    before = {name: next(iter(updates_of(model, name).values())).strength for name in adapter_names(model)}
    try:
        for name in before:
            set_strength(model, name, 0.0)
        yield model
    finally:
        for name, strength in before.items():
            set_strength(model, name, strength)


def base_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors without its adapters, under the names they have in the base. Not copies."""
    tensors = model.state_dict()
    for path, layer in _adapted(model):
        for key in layer.state_dict():
            tensor = tensors.pop(f"{path}.{key}")
            if key.startswith("base."):
                tensors[f"{path}.{key.removeprefix('base.')}"] = tensor
    return dict(tensors)


def parameter_table(model: nn.Module, name: str) -> dict[str, Any]:
    """Shapes layer by layer, and totals: `base`, `added` by adapter `name`, `total`, `share` = added / base."""
    updates = updates_of(model, name)
    rows = []
    for path, layer in _layers(model):
        linear, update = _linear(layer), updates.get(path)
        rows.append(
            {
                "layer": path,
                "weight": list(linear.weight.shape),
                "bias": None if linear.bias is None else list(linear.bias.shape),
                "lora_A": update and list(update.lora_A.shape),
                "lora_B": update and list(update.lora_B.shape),
            }
        )
    added = sum(parameter.numel() for update in updates.values() for parameter in update.parameters())
    of_adapters = {id(p) for _, layer in _adapted(model) for p in layer.updates.parameters()}
    base = sum(p.numel() for p in model.parameters() if id(p) not in of_adapters)
    return {"layers": rows, "base": base, "added": added, "total": base + added, "share": added / base}


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers that can be adapted, or are. Subclasses of nn.Linear are left out: their owners often go past
    `forward` to the weight (nn.MultiheadAttention does), where an adapter would do nothing."""
    wrapped = {id(layer.base) for _, layer in _adapted(model)}
    for path, module in model.named_modules():
        if path and (type(module) is LoRALinear or (type(module) is nn.Linear and id(module) not in wrapped)):
            yield path, module


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoRALinear))


def _linear(layer: nn.Module) -> nn.Linear:
    return layer.base if isinstance(layer, LoRALinear) else layer
