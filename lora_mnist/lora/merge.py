"""Merge adapters into the weights and take them out again, to the last byte.

Adding an update to W and subtracting it again leaves rounding behind. Here W is never written: the merged matrix is
kept beside it, and unmerging drops that matrix.
"""

import copy
from collections import Counter

import torch
from torch import nn
from torch.nn.utils import parametrize

from lora_mnist.errors import LoRAError
from lora_mnist.lora.layer import LoRALinear, require_matrix, require_restorable, require_unsharded, restore
from lora_mnist.lora.model import adapted_layers, replace_module, whole_modules


def merge(model: nn.Module) -> None:
    """Let every adapted layer compute with W + strength · scaling · B A over its adapters, as one matrix.

    Merging again starts from W anew: twice is the same as once. Until `unmerge`, adapters can neither train, nor be
    added, removed or switched. The merged matrix takes the memory of W once more; to serve a model take `merged_copy`.
    Raises LoRAError, and nothing is merged, if there is no adapter, a merged weight would not be finite, a layer has a
    forward of its own, as quantised layers do, or a weight is sharded over processes.
    """
    layers = _mergeable_layers(model)
    weights = {path: _merged_weight(path, layer) for path, layer in layers.items()}
    for path, layer in layers.items():
        layer.merged = weights[path]


def _mergeable_layers(model: nn.Module) -> dict[str, LoRALinear]:
    layers = adapted_layers(model)
    if not layers:
        raise LoRAError("There is nothing to merge: the model has no adapter.", "Add one with `inject`.")
    require_unsharded(model, "merge it")
    for path, layer in layers.items():
        require_matrix(path, layer, "merged")
    return layers


def _merged_weight(path: str, layer: LoRALinear) -> torch.Tensor:
    """W' (out, in), which shares nothing with W."""
    W = layer.weight  # (out, in)
    # in the precision of the weights, whatever mode the caller is in
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(W.device.type, enabled=False):
        merged = layer.merged_weight()
        merged = merged.clone() if merged is W else merged  # W itself where all adapters are off
    if not merged.isfinite().all():
        raise LoRAError(f"Merging would make {path}.weight NaN or infinite.", "Choose a smaller strength.")
    return merged


def unmerge(model: nn.Module) -> None:
    """Undo `merge`: the factored form over the base's own bytes. Does nothing to a model that is not merged."""
    for layer in adapted_layers(model).values():
        layer.merged = None


def is_merged(model: nn.Module) -> bool:
    """Whether `merge` is in force."""
    return any(layer.merged is not None for layer in adapted_layers(model).values())


@torch.no_grad()
def merged_copy(model: nn.Module) -> nn.Module:
    """A copy without adapters that shares nothing: the layers it was before, with the merged weights in them.

    Its parameters do not require gradients. It takes the memory of the copy and of a few matrices of the largest layer.
    Raises LoRAError as `merge` does, and where a layer's weight is made anew by a hook at every call.
    """
    layers = _mergeable_layers(model)
    for path, layer in layers.items():  # before memory is taken
        require_restorable(path, layer)
        if "weight" in vars(layer):  # a parameter, or a parametrization's, is not an attribute of its own
            cause = f"A hook makes {path}.weight anew at every call, so it cannot be merged."
            raise LoRAError(cause, "Take off weight_norm, spectral_norm or pruning first.")
    # what is in the memo is not copied: merged matrices are not wanted
    plain = copy.deepcopy(model, {id(layer.merged): layer.merged for layer in layers.values()})
    unmerge(plain)
    parameters = [parameter for module in plain.modules() for parameter in module.parameters(recurse=False)]
    owners = Counter(parameter.untyped_storage().data_ptr() for parameter in parameters)  # a tied weight has several
    for path, layer in adapted_layers(plain).items():
        merged = _merged_weight(path, layer)
        base = restore(layer)
        parametrized = getattr(base, "parametrizations", nn.ModuleDict())
        values = {name: getattr(base, name).detach().clone() for name in parametrized} | {"weight": merged}
        if not len(parametrized) and owners[base.weight.untyped_storage().data_ptr()] == 1:  # W has memory of its own
            base.weight.requires_grad_(False).copy_(merged)
            continue
        if len(parametrized):
            # not `remove_parametrizations`: it takes the properties off a class that the copy shares with the model
            base.__class__ = parametrize.type_before_parametrizations(base)
            del base.parametrizations
        for name, value in values.items():
            setattr(base, name, nn.Parameter(value, requires_grad=False))
    for whole in whole_modules(plain).values():
        replace_module(plain, whole, whole.module().requires_grad_(False))
    return plain
