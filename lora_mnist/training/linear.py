"""A fully connected layer with the faster of the two libraries that torch has for matrix products on a CPU.

torch takes MKL, which is made for Intel's processors: on an AMD EPYC it takes twice as long as oneDNN for the gradient
of a batch of 10 by the layer's input, and about a tenth longer for a whole fine-tuning step.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# where torch would take MKL; on other processors, and in builds that lack one of the two, its own choice stands
ONEDNN = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """`nn.Linear` in all but the time it takes and the last bits of its results."""

    linear_product = staticmethod(lambda x, weight, bias: linear(x, weight, bias))  # lets lora/ adapt it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in) → (N, out)."""
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`, x Wᵀ + b, by oneDNN where that is to be had: for matrices in fp32 on a CPU, without autocast.

    Args:
        x: (N, in); other shapes are F.linear's.
        weight: (out, in).
        bias: (out,).

    Returns:
        (N, out). Its gradients cannot be differentiated again.
    """
    fp32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not (ONEDNN and fp32 and x.is_cpu and x.dim() == 2 and _operator() is not None):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Product.apply(x, weight, bias)
    return _product(x, weight, bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if of_x else None,  # (N, out) @ (out, in) -> (N, in)
            gradient.t() @ x if of_weight else None,  # (out, N) @ (N, in) -> (out, in)
            gradient.sum(0) if of_bias else None,
        )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    operator = _operator()
    assert operator is not None  # `linear` has asked
    return operator(x, weight, bias, "none", [], "")


@cache
def _operator() -> Callable[..., torch.Tensor] | None:
    """The one that torch's compiler takes for a linear layer on a CPU: private to torch, so tried before it is trusted.

    At the first product and not when this is imported: threads that start before `prepare` keep denormal numbers.

    Returns:
        None where it is missing, or gives another result than a sum done by hand.
    """
    known = ([[1, 2]], [[3, 4], [5, 6]], [7, 8])
    x, weight, bias = (torch.tensor(numbers, dtype=torch.float32, device="cpu") for numbers in known)
    try:
        operator = torch.ops.mkldnn._linear_pointwise
        right = operator(x, weight, bias, "none", [], "").tolist() == [[18, 25]]
    except Exception:  # whatever a torch raises that has no such operator, or another of that name
        return None
    return operator if right else None
