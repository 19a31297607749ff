"""Which adapters of a model are on, and how strongly."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real

import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora.adapters import adapter_names, updates_of
from lora_mnist.lora.targets import adapted_layers, whole_modules, wrappers
from lora_mnist.lora.whole import TrainedWhole


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
