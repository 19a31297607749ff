"""Merge adapters into the weights and take them out again, to the last byte.

Adding an update to W and subtracting it again leaves rounding behind. Here W is never written: the merged matrix stands
beside it, and unmerging drops that matrix.
"""

import copy

from torch import nn
from torch.nn.utils import parametrize

from lora_mnist.errors import LoRAError
from lora_mnist.lora.layers import LoRALinear
from lora_mnist.lora.targets import adapted_layers, whole_modules
from lora_mnist.lora.wrapper import exchange


def merge(model: nn.Module) -> None:
    """Let every adapted layer compute with W + strength · scaling · B A over its adapters, as one matrix.

    Merging again takes the weights as they are then, from W anew: twice is the same as once. Until `unmerge`, adapters
    can neither train, nor be added, removed or switched. The merged matrix stands beside W and takes its memory once
    more; to serve a model take `merged_copy`, which holds one.

    Raises:
        LoRAError: there is no adapter, a merged weight would not be finite, or a layer's base has hooks, which one
            matrix would go past; nothing is merged then.
    """
    layers = adapted_layers(model)
    if not layers:
        raise LoRAError("There is nothing to merge: the model has no adapter.", "Add one with `inject`.")
    weights = {}
    for path, layer in layers.items():
        layer.refuse_hooks(path)
        weights[path] = layer.plain_weight()
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
    for whole in whole_modules(plain).values():
        exchange(plain, whole, whole.module().requires_grad_(False))
    return plain


def _plain(layer: LoRALinear) -> nn.Linear:
    """The layer's own base, which belongs to a copy, with the merged weight in place of W and nothing parametrized."""
    base, weight = layer.base, layer.merged
    assert weight is not None, "`merged_copy` has merged it"
    provenance = getattr(base, "parametrizations", nn.ModuleDict())
    values = {name: getattr(base, name).detach().clone() for name in provenance} | {"weight": weight}
    # not `remove_parametrizations`: it takes the properties off a class that the copy has in common with the model
    base.__class__ = parametrize.type_before_parametrizations(base)
    base._modules.pop("parametrizations", None)
    for name, value in values.items():
        setattr(base, name, nn.Parameter(value, requires_grad=False))
    return base.requires_grad_(False).train(layer.training)
