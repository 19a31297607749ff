"""Adapters that are computed rather than trained: from two networks, or from other adapters.

The best approximation of a matrix by one of rank R keeps its R largest singular values (Eckart and Young 1936, "The
approximation of one matrix by another of lower rank"). With D = U S Vᵀ: B = U_R S_R and A = V_Rᵀ.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.layer import LoRAUpdate, gather_shards, require_matrix, require_unsharded
from lora_mnist.lora.model import (
    adapter_names,
    attach,
    base_tensors,
    linear_layers,
    switch,
    updates_of,
    whole_modules_of,
)

Factors = tuple[torch.Tensor, torch.Tensor, torch.dtype]  # A (rank, in), B (out, rank), both fp64; their dtype at last


@dataclass(frozen=True)
class Approximation:
    """What a layer's matrix became."""

    singular_values: tuple[float, ...]  # all of the matrix, largest first
    rank: int  # how many were kept

    @property
    def energy(self) -> float:
        """Share of the squared Frobenius norm that was kept; 1 for a matrix of zeros."""
        squares = [value**2 for value in self.singular_values]
        return sum(squares[: self.rank]) / sum(squares) if sum(squares) else 1.0

    @property
    def error(self) -> float:
        """Frobenius norm of what was left out, relative to that of the matrix: sqrt(1 − energy)."""
        squares = [value**2 for value in self.singular_values]
        return math.sqrt(sum(squares[self.rank :]) / sum(squares)) if sum(squares) else 0.0


def factorise(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, Approximation]:
    """The best approximation B A of `matrix` (out, in) of at most `rank`, computed in fp64.

    Returns A (rank, in) and B (out, rank), both fp64, with a rank of at most the smaller side; and what was kept.
    Raises LoRAError if `matrix` has NaN or infinity in it, or `rank` is not a whole number from 1.
    """
    if type(rank) is not int or rank < 1:
        raise LoRAError(f"`rank` (={rank!r}) must be a whole number from 1.", "Correct that value.")
    if not matrix.isfinite().all():
        raise LoRAError("A matrix with NaN or infinity in it has no singular values.", "Check the weights.")
    u, s, vh = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    kept = min(rank, len(s))
    return vh[:kept], u[:, :kept] * s[:kept], Approximation(tuple(s.tolist()), kept)


def factorise_product(b: torch.Tensor, a: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, Approximation]:
    """`factorise` of b (out, k) @ a (k, in), without making that matrix if k is small."""
    # B A = Q_b (R_b R_aᵀ) Q_aᵀ with orthonormal Q: only the small core needs a decomposition
    q_b, r_b = torch.linalg.qr(b.detach().double())
    q_a, r_a = torch.linalg.qr(a.detach().double().T)
    a_core, b_core, kept = factorise(r_b @ r_a.T, rank)
    return a_core @ q_a.T, q_b @ b_core, kept


def extract(model: nn.Module, name: str, tuned: nn.Module, rank: int) -> dict[str, Approximation]:
    """Turn the difference between two networks into adapter `name` of `model`: what full fine-tuning did, at low rank.

    Only the weights of linear layers are in it; `changes_left_out` measures what else differs. The new adapter is on
    alone; others stay, switched off.

    Returns what each layer's difference, `tuned` less the base of `model`, became, by the layer's name. Raises
    LoRAError if the two are not of one architecture, a weight is not finite or only a part of what its layer computes
    with, and as `inject` does.
    """
    _require_same_shapes(model, tuned)
    for network in (model, tuned):
        require_unsharded(network, "extract an adapter")
    after = linear_layers(tuned)
    factors, kept = {}, {}
    for path, layer in linear_layers(model).items():
        require_matrix(path, layer, "extracted from")
        require_matrix(path, after[path], "extracted from")
        a, b, kept[path] = factorise(after[path].weight.double() - layer.weight.double(), rank)
        factors[path] = (a, b, LoRAConfig().dtype_beside(layer.weight.dtype))
    _install(model, name, factors)
    return kept


def changes_left_out(model: nn.Module, tuned: nn.Module) -> dict[str, float]:
    """How far each tensor moved that `extract` leaves out, from `model` to `tuned`: ‖after − before‖ / ‖before‖.

    It is inf where that is no number: from 0, or from or to NaN or infinity. Raises LoRAError if the two are not of one
    architecture.
    """
    _require_same_shapes(model, tuned)
    before, after = base_tensors(model), base_tensors(tuned)
    inside = {f"{path}.weight" for path in linear_layers(tuned, every_name=True)}
    moved = {}
    for name in sorted(after.keys() - inside):
        one, other = gather_shards(before[name]).double(), gather_shards(after[name]).double()
        norm, way = float(one.norm()), float((other - one).norm())
        share = way / norm if norm else 0.0 if way == 0 else math.inf
        moved[name] = share if math.isfinite(share) else math.inf  # a caller's `max` would skip NaN
    return moved


def combine_cat(model: nn.Module, name: str, weights: Mapping[str, float]) -> dict[str, LoRAUpdate]:
    """Weighted sum of adapters as one adapter `name`, exactly: A and B side by side, ranks add up. Returns its updates.

    `weights` has the factor of every adapter that takes part; the strengths they have now do not count. The new adapter
    is on alone; those it was made of are off, and stay. Raises LoRAError if no adapter is given, one does not exist or
    trains a module whole, or a weight is not finite, and as `inject` does.
    """
    return _install(model, name, _side_by_side(model, weights))


def combine_svd(model: nn.Module, name: str, weights: Mapping[str, float], rank: int) -> dict[str, Approximation]:
    """Weighted sum of adapters as one adapter `name` of a chosen rank, the best there is.

    As `combine_cat`, but for `rank`: of every layer; where its smaller side is smaller, that. Returns what was kept of
    each layer's sum, by the layer's name; `error` is the rest. Raises LoRAError also if `rank` is not a whole number
    from 1.
    """
    factors, kept = {}, {}
    for path, (a, b, dtype) in _side_by_side(model, weights).items():
        a, b, kept[path] = factorise_product(b, a, rank)
        factors[path] = (a, b, dtype)
    _install(model, name, factors)
    return kept


def _side_by_side(model: nn.Module, weights: Mapping[str, float]) -> dict[str, Factors]:
    """For each layer, the A of all its adapters one below the other, and their B, weighted and scaled, side by side."""
    if not isinstance(weights, Mapping):
        raise LoRAError(f"Adapters are combined by weights, not {weights!r}.", "Write {'name': 1.0}.")
    if not weights:
        raise LoRAError("There is nothing to combine.", f"The adapters are {', '.join(adapter_names(model))}.")
    factors: dict[str, Factors] = {}
    for name, weight in weights.items():
        if not isinstance(weight, Real) or not math.isfinite(weight):
            raise LoRAError(f"The weight of {name!r} (={weight!r}) must be a finite number.", "Correct that value.")
        if whole := whole_modules_of(model, name):
            raise LoRAError(f"{name!r} trains {next(iter(whole))} whole, which has no sum.", "Combine other adapters.")
        for path, update in updates_of(model, name).items():
            a = update.lora_A.detach().double()
            b = update.lora_B.detach().double() * (weight * update.scaling)
            before_a, before_b, dtype = factors.get(path, (a[:0], b[:, :0], update.lora_A.dtype))
            dtype = torch.promote_types(dtype, update.lora_A.dtype)
            factors[path] = (torch.cat([before_a, a]), torch.cat([before_b, b], dim=1), dtype)  # rank1 + rank2 + …
    return factors


@torch.no_grad()
def _install(model: nn.Module, name: str, factors: Mapping[str, Factors]) -> dict[str, LoRAUpdate]:
    """Add adapter `name` with the given factors of each layer, cast to their dtype, and a scaling of 1; on alone."""
    configs = {}
    for path, (a, b, dtype) in factors.items():
        if not (a.to(dtype).isfinite().all() and b.to(dtype).isfinite().all()):
            raise LoRAError(f"The update of {path} is too large for {dtype}.", "Choose smaller weights.")
        configs[path] = LoRAConfig((path,), rank=len(a), alpha=float(len(a)), dtype=dtype)
    updates = attach(model, name, configs, torch.Generator(), [])  # of its own: what it draws is overwritten
    for path, (a, b, _) in factors.items():
        updates[path].lora_A.copy_(a)
        updates[path].lora_B.copy_(b)
    switch(model, {name: 1.0})
    return updates


def _require_same_shapes(model: nn.Module, tuned: nn.Module) -> None:
    one, other = ({name: t.shape for name, t in base_tensors(network).items()} for network in (model, tuned))
    if one != other:
        raise LoRAError("The two networks have different tensors.", "Take a network tuned from this base.")
