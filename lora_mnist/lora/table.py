"""What an adapter costs, layer by layer."""

from dataclasses import dataclass

from torch import nn

from lora_mnist.lora.adapters import parts_of, updates_of
from lora_mnist.lora.targets import linear_layers, plain_linear, wrappers


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
    added = sum(parameter.numel() for part in parts_of(model, name) for parameter in part.parameters())
    of_adapters = {id(p) for wrapper in wrappers(model).values() for p in wrapper.updates.parameters()}
    base = sum(p.numel() for p in model.parameters() if id(p) not in of_adapters)
    return ParameterTable(tuple(rows), base, added, base + added, added / base)
