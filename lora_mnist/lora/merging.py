"""Merge adapters into the weights and take them out again, to the last byte.

Adding an update to W and subtracting it again leaves rounding behind. Here W is never written: the merged matrix stands
beside it, and unmerging drops that matrix.
"""

import copy

import torch
from torch import nn

from lora_mnist.errors import UsageError
from lora_mnist.lora.adapters import adapted_layers
from lora_mnist.lora.layers import LoRALinear


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Let every adapted layer compute with W + strength · scaling · B A over its adapters, as one matrix.

    Merging again takes the weights as they are then, from W anew: twice is the same as once. Costs the memory of W once
    more. Until `unmerge`, adapters can neither train, nor be added, removed or switched.

    Raises:
        UsageError: a merged weight would not be finite; nothing is merged then.
    """
    weights = {path: layer.merged_weight() for path, layer in adapted_layers(model).items()}
    for path, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise UsageError(f"Merging would make {path}.weight NaN or infinite.", "Choose a smaller strength.")
    for path, layer in adapted_layers(model).items():
        # a copy even where no adapter is on: then the sum is W itself, and what is merged must not follow it
        layer.merged = weights[path].clone() if weights[path] is layer.base.weight else weights[path]


def unmerge(model: nn.Module) -> None:
    """Undo `merge`: the factored form over the base's own bytes. Does nothing to a model that is not merged."""
    for layer in adapted_layers(model).values():
        layer.merged = None


def is_merged(model: nn.Module) -> bool:
    """Whether `merge` is in force."""
    return any(layer.merged is not None for layer in adapted_layers(model).values())


@torch.no_grad()
def merged_copy(model: nn.Module) -> nn.Module:
    """A copy without any adapter: plain `nn.Linear` layers that hold the merged weights, and share nothing.

    Its parameters do not require gradients. Raises UsageError as `merge` does.
    """
    plain = copy.deepcopy(model)
    unmerge(plain)
    merge(plain)
    layers = adapted_layers(plain)
    if "" in layers:
        return _plain(layers[""])
    by_identity = {id(layer): _plain(layer) for layer in layers.values()}
    for parent in list(plain.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in by_identity:
                setattr(parent, name, by_identity[id(child)])
    return plain


def _plain(layer: LoRALinear) -> nn.Linear:
    linear = copy.deepcopy(layer.base)
    linear.weight = nn.Parameter(layer.merged, requires_grad=False)
    return linear
