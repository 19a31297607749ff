"""Many adapters of one base trained at once: a network whose input holds the batch of every adapter, one after another.

The frozen products run over all rows together, each A and B over the rows of its own adapter: for adapter j,
y_j = x_j Wᵀ + b + scaling · (x_j A_jᵀ) B_jᵀ. No row sees another adapter's numbers, so every gradient is what the
adapter would have by itself, but for the order of sums.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_mnist.errors import LoRAError
from lora_mnist.lora.layer import LoRAUpdate, restore
from lora_mnist.lora.model import adapted_layers, adapter_names, replace_module, updates_of, whole_modules


class StackedLinear(nn.Module):
    """A frozen linear layer `base`, and one update of it for each of several adapters, all of one rank and scaling.

    `lora_A` is (adapters, rank, in), `lora_B` (adapters, out, rank).
    """

    def __init__(self, base: nn.Linear, updates: Sequence[LoRAUpdate]):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.stack([update.lora_A.detach() for update in updates]))
        self.lora_B = nn.Parameter(torch.stack([update.lora_B.detach() for update in updates]))
        self.scaling = updates[0].scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(adapters · batch, in), the rows of one adapter after those of another → (adapters · batch, out)."""
        factors = (self.lora_A, self.lora_B, self.base.weight, self.base.bias)
        y: torch.Tensor = _Stacked.apply(x, *factors, self.scaling)  # type: ignore[no-untyped-call]
        return y


class _Stacked(torch.autograd.Function):
    """The gradients by hand: autograd would make and add a matrix of the size of the input for each adapter."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *layer: Any) -> torch.Tensor:
        A, B, W, bias, scaling = layer
        rows = x.view(len(A), -1, x.shape[1])  # (adapters · batch, in) -> (adapters, batch, in)
        low = torch.bmm(rows, A.transpose(1, 2))  # -> (adapters, batch, rank)
        y: torch.Tensor = F.linear(x, W, bias)  # (adapters · batch, in) -> (adapters · batch, out)
        y.view(len(A), -1, y.shape[1]).baddbmm_(low, B.transpose(1, 2), alpha=scaling)
        ctx.save_for_backward(rows, low, A, B, W)
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, A, B, W = ctx.saved_tensors
        rows = gradient.view(len(A), -1, gradient.shape[1])  # (adapters, batch, out)
        of_B = torch.bmm(rows.transpose(1, 2), low * ctx.scaling)  # (adapters, out, rank)
        of_low = torch.bmm(rows, B) * ctx.scaling  # (adapters, batch, rank)
        of_A = torch.bmm(of_low.transpose(1, 2), x)  # (adapters, rank, in)
        of_x = None
        if ctx.needs_input_grad[0]:  # not in the first layer
            of_x = gradient @ W  # (adapters · batch, out) @ (out, in)
            of_x.view(x.shape).baddbmm_(of_low, A)
        return of_x, of_A, of_B, None, None, None


def stack(models: Sequence[nn.Module], name: str) -> nn.Module:
    """One network for the rows of `models[0]`, then as many of `models[1]`, and so on; only their adapters train in it.

    The models share the very tensors of one base and have one adapter each, `name`; these differ in A and B alone. The
    stack shares the base too, and has copies of A and B, which `unstack` brings back. Raises LoRAError if the models
    differ in more than that, or have dropout, whose random numbers a stack cannot draw alike.
    """

    def signature(model: nn.Module) -> list[tuple[object, ...]]:
        return [
            (path, id(layer.weight), update.lora_A.shape, update.lora_A.dtype, update.scaling, update.strength)
            for path, layer in adapted_layers(model).items()
            for update in layer.updates.values()
        ]

    first = models[0]
    for model in models:
        if adapter_names(model) != [name] or whole_modules(model):
            cause = f"A stack takes models with the one adapter {name!r}, not {adapter_names(model)}."
            raise LoRAError(cause, "Remove the others.")
        if signature(model) != signature(first):
            raise LoRAError("Adapters of one stack have the same layers, rank, scaling and base.", "Stack them apart.")
        if any(update.dropout.p for update in updates_of(model, name).values()):
            raise LoRAError("Adapters with dropout draw random numbers as they train.", "Train them one by one.")
    own = {id(factor) for update in updates_of(first, name).values() for factor in update.parameters()}
    shared = {id(parameter): parameter for parameter in first.parameters() if id(parameter) not in own}
    stacked = copy.deepcopy(first, shared).requires_grad_(False)  # what is in the memo, `shared`, is not copied
    for path, layer in adapted_layers(stacked).items():
        updates = [updates_of(model, name)[path] for model in models]
        replace_module(stacked, layer, StackedLinear(restore(layer), updates))
    return stacked


@torch.no_grad()
def unstack(stacked: nn.Module, models: Sequence[nn.Module], name: str) -> None:
    """Write the A and B of `stacked`, which `stack` made of `models`, into the adapter of each of them."""
    layers = {path: layer for path, layer in stacked.named_modules() if isinstance(layer, StackedLinear)}
    for number, model in enumerate(models):
        for path, update in updates_of(model, name).items():
            update.lora_A.copy_(layers[path].lora_A[number])
            update.lora_B.copy_(layers[path].lora_B[number])
