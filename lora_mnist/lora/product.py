"""The output of an adapted layer as one step of autograd's, which makes fewer matrices of its size than its parts do.

The products with A and B are taken in the order in which the rank is the number of rows: MKL, torch's choice on a CPU,
then takes a third to two thirds of the time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]  # of x, weight and bias


def product_of(kind: type[nn.Module]) -> Product | None:
    """The function x Wᵀ + b that a layer of class `kind` is of its weight and bias; None where it may be another one.

    A class whose forward is not that of nn.Linear says so by a static method `linear_product` beside that forward.
    """
    forward = kind.forward
    for origin in kind.__mro__:
        if vars(origin).get("forward") is forward and "linear_product" in vars(origin):
            product: Product = kind.linear_product  # type: ignore[attr-defined]
            return product
    return F.linear if forward is nn.Linear.forward else None


def lowered(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """x Aᵀ: (N, in), (rank, in) → (N, rank)."""
    return (factor @ x.t()).t()


def adapted(
    product: Product,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scales: Sequence[float],
    factors: Sequence[torch.Tensor],
) -> torch.Tensor:
    """x Wᵀ + b + Σ scale · x Aᵀ Bᵀ, for dense tensors of one dtype.

    Args:
        product: of the layer without adapters; returns a new tensor.
        x: (…, in).
        weight, bias: (out, in) and (out,), without gradients.
        scales: of each adapter.
        factors: A (rank, in) and B (out, rank) of the first adapter, of the second, ….

    Returns:
        (…, out); its gradients by x and the factors can be differentiated again.
    """
    if torch.is_grad_enabled():
        found: torch.Tensor = _Adapted.apply(product, scales, x, weight, bias, *factors)  # type: ignore[no-untyped-call]
        return found
    return _compute(product, scales, x, weight, bias, factors)[0]


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        product: Product,
        scales: Sequence[float],
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        y, lows = _compute(product, scales, x, weight, bias, factors)
        of_x, of_factors = ctx.needs_input_grad[2], any(ctx.needs_input_grad[5:])
        ctx.product, ctx.scales, ctx.shape = product, scales, x.shape
        ctx.save_for_backward(x if of_factors else None, weight if of_x else None, *factors, *lows)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # (…, out)
        x, weight, *saved = ctx.saved_tensors
        count, needed = len(ctx.scales), ctx.needs_input_grad
        gradient = rows_of(gradient)
        of_x = ctx.product(gradient, weight.t(), None) if needed[2] else None  # (N, out) @ (out, in) -> (N, in)
        of_factors: list[torch.Tensor | None] = [None] * (2 * count)
        for i, scale in enumerate(ctx.scales):
            A, B, low = saved[2 * i], saved[2 * i + 1], saved[2 * count + i]
            of_A, of_B = needed[5 + 2 * i], needed[6 + 2 * i]
            if of_B:
                low = lowered(rows_of(x), A) if torch.is_grad_enabled() else low  # to be differentiated again
                of_factors[2 * i + 1] = (scale * low.t() @ gradient).t()  # (rank, N) @ (N, out)
            if of_x is None and not of_A:
                continue
            of_low = scale * lowered(gradient, B.t())  # (N, rank)
            if of_A:
                of_factors[2 * i] = of_low.t() @ rows_of(x)  # (rank, N) @ (N, in)
            if of_x is not None:
                of_x = _plus(of_x, of_low, A, 1.0)
        return None, None, None if of_x is None else of_x.view(ctx.shape), None, None, *of_factors


def _compute(
    product: Product,
    scales: Sequence[float],
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    factors: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output, and x Aᵀ (N, rank) of every adapter."""
    provenance = product(x, weight, bias)
    y, x = rows_of(provenance), rows_of(x)
    lows = [lowered(x, A) for A in factors[::2]]
    for scale, low, B in zip(scales, lows, factors[1::2], strict=True):
        y = _plus(y, low, B.t(), scale)  # (N, rank) @ (rank, out)
    return y.view(provenance.shape), lows


def _plus(y: torch.Tensor, one: torch.Tensor, other: torch.Tensor, scale: float) -> torch.Tensor:
    """y + scale · one · other; in `y` itself, which nobody else has, unless autograd is looking."""
    if torch.is_grad_enabled():
        return torch.addmm(y, one, other, alpha=scale)
    return y.addmm_(one, other, alpha=scale)


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """(…, n) → (N, n)."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
