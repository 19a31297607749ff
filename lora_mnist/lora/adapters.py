"""The adapters of a model, by name: add, remove, list, switch, and see what they cost.

A model stays what it is; only its target layers are exchanged for `LoRALinear`, in place.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.layers import LoRALinear, is_linear
from lora_mnist.lora.update import LoRAUpdate
from lora_mnist.lora.wrapper import check_name


def inject(
    model: nn.Module, name: str, config: LoRAConfig, generator: torch.Generator | None = None
) -> dict[str, LoRAUpdate]:
    """Freeze all of `model` and add adapter `name`, the only thing in it that trains.

    Adapters that are there already stay on, frozen too. If it raises, the model is as it was.

    What a forward pass itself changes is not frozen by this: the running statistics of nn.BatchNorm move in training
    mode, and with them the base. Keep such layers in eval mode.

    Args:
        model: any module; its target layers are replaced by `LoRALinear` in place, wherever they occur in it.
        generator: draws `lora_A`; None takes torch's global one.

    Returns:
        The new update of every adapted layer, by the layer's name.

    Raises:
        LoRAError: a pattern matches no linear layer, the rank is above the smaller side of every target, the
            model is merged, or it has an adapter of that name, or torch cannot store one under it.
    """
    layers = linear_layers(model)
    sides = [(own.rank, _smaller_side(layers[path])) for path, own in config.of_layers(layers).items()]
    if all(rank > side > 0 for rank, side in sides):
        raise LoRAError(
            f"`rank` (={config.rank}) is above the smaller side of every target layer.",
            f"Choose a rank of at most {max(side for _, side in sides)}.",
        )
    return attach(model, name, config, generator)


def attach(
    model: nn.Module, name: str, config: LoRAConfig, generator: torch.Generator | None = None
) -> dict[str, LoRAUpdate]:
    """`inject` for adapters that exist already, whose rank is what it is."""
    layers = linear_layers(model)
    configs = config.of_layers(layers)
    if not all(_smaller_side(layers[path]) for path in configs):
        raise LoRAError("A lazy linear layer has no shape to adapt yet.", "Run the model once before.")
    check_name(name, adapter_names(model))
    for layer in adapted_layers(model).values():
        layer.require_unmerged("add an adapter")
    linears = {path: plain_linear(layers[path]) for path in configs}
    if "" in linears and not isinstance(model, LoRALinear):
        raise LoRAError("A model that is one linear layer cannot be exchanged in place.", "Adapt LoRALinear(model).")
    with torch.inference_mode(False):  # what is made in that mode can never train
        updates = {path: LoRAUpdate(linears[path], own, generator) for path, own in configs.items()}
    for path, update in updates.items():  # nothing can fail from here on
        found = layers[path]
        layer = found if isinstance(found, LoRALinear) else LoRALinear(found)
        if layer is not found:
            exchange(model, found, layer)
        layer.updates[name] = update.train(layer.training)
    train_only(model, name)
    return updates


def remove(model: nn.Module, name: str) -> None:
    """Take adapter `name` out; a layer without adapters is the `nn.Linear` it was. The base stays frozen.

    Raises:
        LoRAError: there is no such adapter, or the model is merged.
    """
    updates = updates_of(model, name)
    layers = {path: layer for path, layer in adapted_layers(model).items() if path in updates}
    for layer in layers.values():
        layer.require_unmerged("remove an adapter")
    for path, layer in layers.items():
        del layer.updates[name]
        if path and not layer.updates:
            exchange(model, layer, layer.base)


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters in `model`, in the order they came."""
    return list(dict.fromkeys(name for layer in adapted_layers(model).values() for name in layer.updates))


def updates_of(model: nn.Module, name: str) -> dict[str, LoRAUpdate]:
    """The updates of adapter `name`, by the name of their layer. Raises LoRAError if there is no such adapter."""
    if name not in adapter_names(model):
        raise LoRAError(
            f"The model has no adapter {name!r}.", f"It has {', '.join(adapter_names(model)) or 'no adapters'}."
        )
    return {path: layer.updates[name] for path, layer in adapted_layers(model).items() if name in layer.updates}


def strengths(model: nn.Module) -> dict[str, float]:
    """The strength of every adapter: 1 as trained, 0 off."""
    return {name: next(iter(updates_of(model, name).values())).strength for name in adapter_names(model)}


def set_strength(model: nn.Module, name: str, strength: float) -> None:
    """Apply adapter `name` with `strength` as a factor: 1 as trained, 0 off.

    Raises:
        LoRAError: it is not finite or too large, there is no such adapter, or the model is merged.
    """
    switch(model, {**strengths(model), name: strength})


def switch(model: nn.Module, wanted: Mapping[str, float]) -> None:
    """Apply the adapters in `wanted`, each with its strength, and no other. If it raises, nothing is switched.

    Raises:
        LoRAError: a strength is not finite or too large, there is no such adapter, or the model is merged.
    """
    for name, strength in wanted.items():
        updates = updates_of(model, name).values()
        if not isinstance(strength, Real) or not math.isfinite(strength):
            raise LoRAError(f"`strength` (={strength!r}) must be a finite number.", "1 is as trained, 0 is the base.")
        if any(abs(strength * one.scaling) > torch.finfo(one.lora_B.dtype).max for one in updates):
            raise LoRAError(f"`strength` (={strength!r}) is too large for the weights' dtype.", "Choose a smaller one.")
    for layer in adapted_layers(model).values():
        layer.require_unmerged("switch adapters")
    for layer in adapted_layers(model).values():
        for name, update in layer.updates.items():
            update.strength = float(wanted.get(name, 0.0))


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block every adapter is off and the model is the base, bit for bit; merged or not."""
    before = [(layer, layer.off) for layer in adapted_layers(model).values()]
    try:
        for layer, _ in before:
            layer.off = True
        yield model
    finally:
        for layer, off in before:
            layer.off = off


def train_only(model: nn.Module, names: str | Iterable[str]) -> None:
    """Let one adapter, or several, require gradients, and nothing else in `model`.

    Args:
        names: of them; a string is one.

    Raises:
        LoRAError: there is no such adapter.
    """
    names = [names] if isinstance(names, str) else list(names)
    chosen = [update for name in names for update in updates_of(model, name).values()]
    model.requires_grad_(False)
    for update in chosen:
        update.requires_grad_(True)


def base_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors without its adapters, under the names they have in the base. Not copies."""
    parts = tuple(f"{path}.updates.".lstrip(".") for path in adapted_layers(model, every_name=True))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(parts)}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}  # no extra state


def linear_layers(model: nn.Module, every_name: bool = False) -> dict[str, nn.Linear | LoRALinear]:
    """Layers that can be adapted (see `is_linear`) or are (`LoRALinear`), by name.

    A layer that occurs twice goes by its first name, or under both if `every_name`; adapted, it is so at both places.
    """
    wrapped = {id(layer.base) for layer in adapted_layers(model).values()}
    return {
        path: module
        for path, module in model.named_modules(remove_duplicate=not every_name)
        if isinstance(module, LoRALinear) or (is_linear(module) and id(module) not in wrapped)
    }


def plain_linear(layer: nn.Linear | LoRALinear) -> nn.Linear:
    """An entry of `linear_layers` without its adapters."""
    return layer.base if isinstance(layer, LoRALinear) else layer


def adapted_layers(model: nn.Module, every_name: bool = False) -> dict[str, LoRALinear]:
    """The layers that carry adapters, by name; those that occur twice under both if `every_name`."""
    modules = model.named_modules(remove_duplicate=not every_name)
    return {path: module for path, module in modules if isinstance(module, LoRALinear)}


@dataclass(frozen=True)
class LayerParameters:
    """The shapes of one linear layer.

    Attributes:
        layer: its name.
        weight: (out, in).
        bias: (out,), or None where there is none.
        lora_A, lora_B: (rank, in) and (out, rank), or None where the adapter has no part in this layer.
        scaling: likewise.
    """

    layer: str
    weight: tuple[int, ...]
    bias: tuple[int, ...] | None
    lora_A: tuple[int, ...] | None
    lora_B: tuple[int, ...] | None
    scaling: float | None


@dataclass(frozen=True)
class ParameterTable:
    """What an adapter costs.

    Attributes:
        layers: all linear layers of the model, in its order.
        base: parameters of the model without any adapter.
        added: parameters of the adapter.
        total: base + added.
        share: added / base.
    """

    layers: tuple[LayerParameters, ...]
    base: int
    added: int
    total: int
    share: float


def parameter_table(model: nn.Module, name: str) -> ParameterTable:
    """Shapes layer by layer, and how many numbers adapter `name` adds. Raises LoRAError if there is none."""
    updates = updates_of(model, name)
    rows = []
    for path, layer in linear_layers(model).items():
        linear, update = plain_linear(layer), updates.get(path)
        rows.append(
            LayerParameters(
                layer=path,
                weight=tuple(linear.weight.shape),
                bias=None if linear.bias is None else tuple(linear.bias.shape),
                lora_A=None if update is None else tuple(update.lora_A.shape),
                lora_B=None if update is None else tuple(update.lora_B.shape),
                scaling=None if update is None else update.scaling,
            )
        )
    added = sum(parameter.numel() for update in updates.values() for parameter in update.parameters())
    all_updates = [update for layer in adapted_layers(model).values() for update in layer.updates.values()]
    of_adapters = {id(parameter) for update in all_updates for parameter in update.parameters()}
    base = sum(p.numel() for p in model.parameters() if id(p) not in of_adapters)
    return ParameterTable(tuple(rows), base, added, base + added, added / base)


def _smaller_side(layer: nn.Linear | LoRALinear) -> int:
    return min(layer.in_features, layer.out_features)


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is a child in `model`."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old and parent is not new:
                setattr(parent, name, new)
