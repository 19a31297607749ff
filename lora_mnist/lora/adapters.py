"""The adapters of a model, by name, and what belongs to each."""

from collections.abc import Iterable

import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora.targets import adapted_layers, whole_modules, wrappers
from lora_mnist.lora.update import LoRAUpdate


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
