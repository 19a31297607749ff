"""Put adapters into a model and take them out.

A model stays what it is; only its target layers are exchanged for `LoRALinear`, in place.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora.adapters import adapter_names, require_adapter, train_only
from lora_mnist.lora.config import LoRAConfig, find
from lora_mnist.lora.layers import LoRALinear
from lora_mnist.lora.targets import (
    adapted_layers,
    base_of,
    configs_of,
    is_in,
    linear_layers,
    own_modules,
    plain_linear,
    warn_of_what_is_left_out,
    wrappers,
)
from lora_mnist.lora.update import LoRAUpdate
from lora_mnist.lora.whole import TrainedWhole
from lora_mnist.lora.wrapper import Wrapper, check_name, exchange


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
    """`inject` with the config of every layer, and the names of the modules to train whole."""
    check_name(name, adapter_names(model))
    modules = own_modules(model)
    layers = {path: layer for path, layer in linear_layers(model).items() if path in configs}
    if not all(map(_smaller_side, layers.values())):
        raise LoRAError("A lazy linear layer has no shape to adapt yet.", "Run the model once before.")
    for layer in adapted_layers(model).values():
        layer.require_unmerged("add an adapter")
    if "" in layers and not isinstance(model, LoRALinear):
        raise LoRAError("A model that is one linear layer cannot be exchanged in place.", "Adapt LoRALinear(model).")
    with torch.inference_mode(False):  # what is made in that mode can never train
        parts: dict[str, nn.Module] = {path: copy.deepcopy(base_of(modules[path])) for path in whole}
        updates = {path: LoRAUpdate(plain_linear(layers[path]), own, generator) for path, own in configs.items()}
    for path, part in (parts | updates).items():  # nothing can fail from here on
        wrapper = found = modules[path]
        if not isinstance(wrapper, Wrapper):
            wrapper = TrainedWhole(found) if path in parts else LoRALinear(plain_linear(layers[path]))
            exchange(model, found, wrapper)
        wrapper.updates[name] = part.train(wrapper.training)
        if isinstance(wrapper, TrainedWhole):
            wrapper.active = name
    train_only(model, name)
    return updates


def remove(model: nn.Module, name: str) -> None:
    """Take adapter `name` out; a layer without adapters is the `nn.Linear` it was. The base stays frozen.

    Raises:
        LoRAError: there is no such adapter, or the model is merged.
    """
    require_adapter(model, name)
    carriers = {path: wrapper for path, wrapper in wrappers(model).items() if name in wrapper.updates}
    for wrapper in carriers.values():
        wrapper.require_unmerged("remove an adapter")
    for path, wrapper in carriers.items():
        del wrapper.updates[name]
        if isinstance(wrapper, TrainedWhole) and wrapper.active == name:
            wrapper.active = None
        if path and not wrapper.updates:
            exchange(model, wrapper, wrapper.base)


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
        elif any(isinstance(part, Wrapper) for part in module.modules()):
            raise LoRAError(f"{path} has adapters, so it cannot be trained whole.", "Remove them before.")
    return whole


def _require_rank(configs: Mapping[str, LoRAConfig], layers: Mapping[str, nn.Linear | LoRALinear]) -> None:
    sides = [(own.rank, _smaller_side(layers[path])) for path, own in configs.items()]
    if all(rank > side > 0 for rank, side in sides):
        raise LoRAError(
            f"`rank` (={max(rank for rank, _ in sides)}) is above the smaller side of every target layer.",
            f"Choose a rank of at most {max(side for _, side in sides)}.",
        )


def _smaller_side(layer: nn.Linear | LoRALinear) -> int:
    return min(layer.in_features, layer.out_features)
