"""Merge adapters into the weights and take them out again, to the last byte.

Adding an update to W and subtracting it again leaves rounding behind. Here W is never written: the merged matrix is
kept beside it, and unmerging drops that matrix.
"""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

from lora_mnist.errors import LoRAError
from lora_mnist.lora.layer import restore
from lora_mnist.lora.model import adapted_layers, exchange, whole_modules


def merge(model: nn.Module) -> None:
    """Let every adapted layer compute with W + strength · scaling · B A over its adapters, as one matrix.

    Merging again starts from W anew: twice is the same as once. Until `unmerge`, adapters can neither train, nor be
    added, removed or switched. The merged matrix takes the memory of W once more; to serve a model take `merged_copy`.
    Raises LoRAError, and nothing is merged, if there is no adapter, a merged weight would not be finite, or a layer has
    a forward of its own, as quantised layers do.
    """
    layers = adapted_layers(model)
    if not layers:
        raise LoRAError("There is nothing to merge: the model has no adapter.", "Add one with `inject`.")
    weights = {}
    for path, layer in layers.items():
        if layer.plain_forward is not None or layer.plain_class.forward is not nn.Linear.forward:
            kind = layer.plain_class.__name__
            raise LoRAError(f"{path} ({kind}) has a forward of its own, so it cannot be merged.", "Use it factored.")
        W = layer.weight  # (out, in)
        # in the precision of the weights, whatever mode the caller is in
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(W.device.type, enabled=False):
            merged = layer.merged_weight()
            weights[path] = merged.clone() if merged is W else merged  # W itself where all adapters are off
        if not weights[path].isfinite().all():
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
    """A copy without adapters that shares nothing: the layers it was before, with the merged weights in them.

    Its parameters do not require gradients. Raises LoRAError as `merge` does.
    """
    plain = copy.deepcopy(model)
    unmerge(plain)
    merge(plain)
    for layer in adapted_layers(plain).values():
        merged = layer.merged
        base = restore(layer)
        parametrized = getattr(base, "parametrizations", nn.ModuleDict())
        values = {name: getattr(base, name).detach().clone() for name in parametrized} | {"weight": merged}
        if len(parametrized):
            # not `remove_parametrizations`: it takes the properties off a class that the copy shares with the model
            base.__class__ = parametrize.type_before_parametrizations(base)
            del base.parametrizations
        for name, value in values.items():
            setattr(base, name, nn.Parameter(value, requires_grad=False))
    for whole in whole_modules(plain).values():
        exchange(plain, whole, whole.module().requires_grad_(False))
    return plain
