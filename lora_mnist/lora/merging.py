"""Merge adapters into the weights and take them out again, to the last byte.

Adding an update to W and subtracting it again leaves rounding behind. Here W is never written: the merged matrix stands
beside it, and unmerging drops that matrix.
"""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

from lora_mnist.errors import LoRAError
from lora_mnist.lora.adapters import adapted_layers, exchange
from lora_mnist.lora.layers import LoRALinear


def merge(model: nn.Module) -> None:
    """Let every adapted layer compute with W + strength · scaling · B A over its adapters, as one matrix.

    Merging again takes the weights as they are then, from W anew: twice is the same as once. Costs the memory of W once
    more. Until `unmerge`, adapters can neither train, nor be added, removed or switched.

    Raises:
        LoRAError: a merged weight would not be finite, or a layer has forward hooks, which one matrix would go past;
            nothing is merged then.
    """
    layers = adapted_layers(model)
    weights = {}
    for path, layer in layers.items():
        if layer.base._forward_hooks or layer.base._forward_pre_hooks:
            raise LoRAError(f"{path} has forward hooks, which a merged weight would go past.", "Remove them before.")
        weights[path] = _merged(layer)
        if not bool(weights[path].isfinite().all()):
            raise LoRAError(f"Merging would make {path}.weight NaN or infinite.", "Choose a smaller strength.")
    for path, layer in layers.items():
        layer.merged = weights[path]


def unmerge(model: nn.Module) -> None:
    """Undo `merge`: the factored form over the base's own bytes. Does nothing to a model that is not merged."""
    for layer in adapted_layers(model).values():
        layer.merged = None


def is_merged(model: nn.Module) -> bool:
    """Whether `merge` is in force."""
    return any(layer.merged is not None for layer in adapted_layers(model).values())


def merged_copy(model: nn.Module) -> nn.Module:
    """A copy without any adapter: the layers it was before, with the merged weights in them, which shares nothing.

    Its parameters do not require gradients. Raises LoRAError as `merge` does.
    """
    plain = copy.deepcopy(model)
    unmerge(plain)
    merge(plain)
    layers = adapted_layers(plain)
    if "" in layers:
        return _plain(layers[""])
    for layer in layers.values():
        exchange(plain, layer, _plain(layer))
    return plain


def _merged(layer: LoRALinear) -> torch.Tensor:
    """In the precision of the weights, and fit for training around it, whatever mode the caller is in."""
    kind = layer.base.weight.device.type
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
        weight = layer.merged_weight()
        # a copy even where no adapter is on: then the sum is W itself, and what is merged must not follow it
        return weight.clone() if weight is layer.base.weight else weight


def _plain(layer: LoRALinear) -> nn.Linear:
    """The layer's own base, which belongs to a copy, with the merged weight in place of W and nothing parametrized."""
    base, weight = layer.base, layer.merged
    assert weight is not None, "`merged_copy` has merged it"
    made = getattr(base, "parametrizations", nn.ModuleDict())
    values = {name: getattr(base, name).detach().clone() for name in made} | {"weight": weight}
    # not `remove_parametrizations`: it takes the properties off a class that the copy has in common with the model
    base.__class__ = parametrize.type_before_parametrizations(base)
    base._modules.pop("parametrizations", None)
    for name, value in values.items():
        setattr(base, name, nn.Parameter(value, requires_grad=False))
    return base.requires_grad_(False).train(layer.training)
