"""The adapters of a model: put them in, take them out, switch them, and tell what they cost.

A model stays what it is. Its target layers become `LoRALinear` in place; modules that an adapter trains whole are
replaced by `TrainedWhole`.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora.config import LoRAConfig, find
from lora_mnist.lora.layer import LoRALinear, LoRAUpdate, adapt, check_name, restore
from lora_mnist.lora.modules_to_save import TrainedWhole
from lora_mnist.lora.targets import (
    adapted_layers,
    base_of,
    configs_of,
    is_in,
    linear_layers,
    own_modules,
    warn_of_what_is_left_out,
    whole_modules,
    wrappers,
)

# Put in and take out --------------------------------------------------------------------------------------------------


def inject(
    model: nn.Module,
    name: str,
    config: LoRAConfig,
    generator: torch.Generator | None = None,
    also_train: str | Iterable[str] = (),
) -> dict[str, LoRAUpdate]:
    """Freeze all of `model` and add adapter `name`, the only thing in it that trains.

    Adapters that are there already stay on, frozen too. If it raises, the model is as it was.

    A UserWarning names what a target seems to mean and cannot have (`Conv1D`, fused experts, quantised layers), and
    weights that a target shares with another module, which then keeps W.

    What a forward pass itself changes is not frozen by this: the running statistics of nn.BatchNorm move in training
    mode, and with them the base. Keep such layers in eval mode.

    Args:
        model: any module; its target layers are replaced by `LoRALinear` in place, wherever they occur in it.
        generator: draws `lora_A`; None takes torch's global one.
        also_train: modules of any kind that the adapter trains whole, as a new classifier has to be: patterns as those
            of targets. It trains a copy that belongs to the adapter; the base keeps its own.

    Returns:
        The new update of every adapted layer, by the layer's name.

    Raises:
        LoRAError: a pattern matches nothing, the rank is above the smaller side of every target, a module to train
            whole has adapters or is trained by one that is on, the model is merged, or it has an adapter of that name,
            or torch cannot store one under it.
    """
    check_name(name, adapter_names(model))
    whole = modules_to_train(model, also_train)
    configs = configs_of(model, config, whole)
    _require_rank(configs, linear_layers(model))
    warn_of_what_is_left_out(model, config, configs, whole)
    return attach(model, name, configs, generator, whole)


def attach(
    model: nn.Module,
    name: str,
    configs: Mapping[str, LoRAConfig],
    generator: torch.Generator | None = None,
    whole: Iterable[str] = (),
) -> dict[str, LoRAUpdate]:
    """`inject`, with a config for each layer by name, and the names of the modules to train whole."""
    check_name(name, adapter_names(model))
    modules = own_modules(model)
    layers = {path: layer for path, layer in linear_layers(model).items() if path in configs}
    for path, layer in layers.items():
        if isinstance(layer.weight, nn.UninitializedParameter):
            raise LoRAError(f"{path} is lazy and has no shape to adapt yet.", "Run the model once before.")
    for adapted in adapted_layers(model).values():
        adapted.require_unmerged("add an adapter")
    with torch.inference_mode(False):  # what is made in that mode can never train
        wrapped = {path: TrainedWhole(modules[path]) for path in whole if not isinstance(modules[path], TrainedWhole)}
        copies = {path: copy.deepcopy(base_of(modules[path])) for path in whole}
        updates = {path: LoRAUpdate(layers[path], own, generator) for path, own in configs.items()}
    for path, update in updates.items():  # nothing can fail from here on
        layer = adapt(layers[path])
        layer.updates[name] = update.train(layer.training)
    for path, part in copies.items():
        if path in wrapped:
            exchange(model, modules[path], wrapped[path])
        wrapper = wrapped.get(path, modules[path])
        assert isinstance(wrapper, TrainedWhole)
        wrapper.updates[name], wrapper.active = part.train(wrapper.training), name
    train_only(model, name)
    return updates


def remove(model: nn.Module, name: str) -> None:
    """Take adapter `name` out; a layer without adapters is the `nn.Linear` it was. The base stays frozen.

    Raises:
        LoRAError: there is no such adapter, or the model is merged.
    """
    require_adapter(model, name)
    for layer in adapted_layers(model).values():
        layer.require_unmerged("remove an adapter")
    for wrapper in wrappers(model).values():
        if name not in wrapper.updates:
            continue
        del wrapper.updates[name]
        if isinstance(wrapper, TrainedWhole):
            wrapper.active = None if wrapper.active == name else wrapper.active
            if not wrapper.updates:
                exchange(model, wrapper, wrapper.base)
        elif not wrapper.updates:
            restore(wrapper)


def modules_to_train(model: nn.Module, patterns: str | Iterable[str]) -> list[str]:
    """The names of the modules that `patterns`, or one, find, without those that lie in another of them.

    Raises:
        LoRAError: a pattern finds none, or one that carries adapters, or is trained by an adapter that is on.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    modules = own_modules(model)
    names = [path for path, module in modules.items() if path and any(True for _ in module.parameters())]
    found = find(patterns, names, "module")
    whole = [path for path in names if path in found and not is_in(path, found - {path})]
    for path in whole:
        module = modules[path]
        if isinstance(module, TrainedWhole):
            if module.active is not None:
                raise LoRAError(f"{path} is trained whole by {module.active!r}, which is on.", "Switch that one off.")
        elif any(isinstance(part, LoRALinear | TrainedWhole) for part in module.modules()):
            raise LoRAError(f"{path} has adapters, so it cannot be trained whole.", "Remove them before.")
    return whole


def _require_rank(configs: Mapping[str, LoRAConfig], layers: Mapping[str, nn.Linear]) -> None:
    sides = [(own.rank, _smaller_side(layers[path])) for path, own in configs.items()]
    if all(rank > side > 0 for rank, side in sides):
        raise LoRAError(
            f"`rank` (={max(rank for rank, _ in sides)}) is above the smaller side of every target layer.",
            f"Choose a rank of at most {max(side for _, side in sides)}.",
        )


def _smaller_side(layer: nn.Linear) -> int:
    return min(layer.in_features, layer.out_features)


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is a child in `model`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old and parent is not new:
                setattr(parent, name, new)


# By name --------------------------------------------------------------------------------------------------------------


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters in `model`, in the order they came."""
    return list(dict.fromkeys(name for layer in adapted_layers(model).values() for name in layer.updates))


def updates_of(model: nn.Module, name: str) -> dict[str, LoRAUpdate]:
    """The updates of adapter `name`, by the name of their layer. Raises LoRAError if there is no such adapter."""
    require_adapter(model, name)
    return {path: layer.updates[name] for path, layer in adapted_layers(model).items() if name in layer.updates}


def copies_of(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """The modules that adapter `name` trains whole, by their name. Raises LoRAError if there is no such adapter."""
    require_adapter(model, name)
    return {path: module.updates[name] for path, module in whole_modules(model).items() if name in module.updates}


def parts_of(model: nn.Module, name: str) -> list[nn.Module]:
    """All that belongs to adapter `name`: its updates and copies. Raises LoRAError if there is no such adapter."""
    require_adapter(model, name)
    return [wrapper.updates[name] for wrapper in wrappers(model).values() if name in wrapper.updates]


def train_only(model: nn.Module, names: str | Iterable[str]) -> None:
    """Let one adapter, or several, require gradients with all that belongs to them, and nothing else in `model`.

    Args:
        names: of them; a string is one.

    Raises:
        LoRAError: there is no such adapter.
    """
    names = [names] if isinstance(names, str) else list(names)
    chosen = [part for name in names for part in parts_of(model, name)]
    model.requires_grad_(False)
    for part in chosen:
        part.requires_grad_(True)


def base_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors without its adapters, under the names they have in the base. Not copies."""
    parts = tuple(f"{path}.updates.".lstrip(".") for path in wrappers(model, every_name=True))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(parts)}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}  # no extra state


def require_adapter(model: nn.Module, name: str) -> None:
    """Raises LoRAError if `model` has no adapter `name`."""
    if name not in adapter_names(model):
        raise LoRAError(
            f"The model has no adapter {name!r}.", f"It has {', '.join(adapter_names(model)) or 'no adapters'}."
        )


# Switch ---------------------------------------------------------------------------------------------------------------


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
        LoRAError: a strength is not finite or too large, there is no such adapter, two of them train the same module
            whole, or the model is merged.
    """
    if not isinstance(wanted, Mapping):
        raise LoRAError(f"`switch` takes strengths by adapter name, not {wanted!r}.", "Write {'name': 1.0}.")
    for name, strength in wanted.items():
        updates = updates_of(model, name).values()
        if not isinstance(strength, Real) or not math.isfinite(strength):
            raise LoRAError(f"`strength` (={strength!r}) must be a finite number.", "1 is as trained, 0 is the base.")
        if any(abs(strength * one.scaling) > torch.finfo(one.lora_B.dtype).max for one in updates):
            raise LoRAError(f"`strength` (={strength!r}) is too large for the weights' dtype.", "Choose a smaller one.")
    for layer in adapted_layers(model).values():
        layer.require_unmerged("switch adapters")
    active = {path: _one_of(path, module, wanted) for path, module in whole_modules(model).items()}
    for layer in adapted_layers(model).values():
        for name, update in layer.updates.items():
            update.strength = float(wanted.get(name, 0.0))
    for path, module in whole_modules(model).items():
        module.active = active[path]


def scale_alpha(model: nn.Module, name: str, factor: float) -> None:
    """Multiply the alpha of every layer of adapter `name` by `factor`, for good: `save_adapter` stores it.

    A and B stay as they are, and so does the strength.

    Raises:
        LoRAError: there is no such adapter, or the model is merged.
    """
    for layer in adapted_layers(model).values():
        layer.require_unmerged("change alpha")
    for update in updates_of(model, name).values():
        update.config = replace(update.config, alpha=update.config.alpha * factor)
        update.scaling = update.config.scaling
        update.strength = update.strength  # which has a factor made of both


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block every adapter is off and the model is the base, bit for bit; merged or not."""
    before = [(wrapper, wrapper.off) for wrapper in wrappers(model).values()]
    try:
        for wrapper, _ in before:
            wrapper.off = True
        yield model
    finally:
        for wrapper, off in before:
            wrapper.off = off


def _one_of(path: str, module: TrainedWhole, wanted: Mapping[str, float]) -> str | None:
    """Which adapter's copy is used if those in `wanted` are on."""
    on = [name for name in module.updates if wanted.get(name)]
    if len(on) > 1:
        raise LoRAError(f"{path} is trained whole by {' and '.join(on)}: it can be but one.", "Switch on one of them.")
    return on[0] if on else None


# Count ----------------------------------------------------------------------------------------------------------------


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
        added: parameters of the adapter, and of the modules that it trains whole.
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
        update = updates.get(path)
        rows.append(
            LayerParameters(
                layer=path,
                weight=tuple(layer.weight.shape),
                bias=None if layer.bias is None else tuple(layer.bias.shape),
                lora_A=None if update is None else tuple(update.lora_A.shape),
                lora_B=None if update is None else tuple(update.lora_B.shape),
                scaling=None if update is None else update.scaling,
            )
        )
    added = sum(parameter.numel() for part in parts_of(model, name) for parameter in part.parameters())
    of_adapters = {id(p) for wrapper in wrappers(model).values() for p in wrapper.updates.parameters()}
    base = sum(p.numel() for p in model.parameters() if id(p) not in of_adapters)
    return ParameterTable(tuple(rows), base, added, base + added, added / base)
