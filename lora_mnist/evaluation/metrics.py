"""Logits → confusion matrix, errors per digit, and what changed between two models on the same images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.errors import UsageError
from lora_mnist.training.model import normalise

BATCH = 1000  # images per forward pass: 8 MB of activations in the widest layer


@torch.inference_mode()
def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """uint8 images (N, 28, 28) → logits (N, 10) fp32 on the CPU. The model is left in eval mode."""
    model.eval()
    parts = [model(normalise(part)).cpu() for part in images.split(BATCH)]
    return torch.cat(parts) if parts else torch.empty(0, 10)


def require_finite(logits: Mapping[str, torch.Tensor], way_out: str) -> None:
    """Raises UsageError if a logit is not finite: weights can be so and yet be too large."""
    if not all(bool(part.isfinite().all()) for part in logits.values()):
        raise UsageError("The network's logits are no longer finite numbers.", way_out)


def confusion_matrix(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N, 10), (N,) → int64 (10, 10): row true digit, column predicted digit."""
    return torch.bincount(labels.cpu() * 10 + logits.argmax(1), minlength=100).view(10, 10)


def summarise(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """One split's entry in evaluation.json: count, accuracy, wrong per digit, confusion."""
    confusion = confusion_matrix(logits, labels)
    right = confusion.diagonal()
    return {
        "count": len(labels),
        "accuracy": int(right.sum()) / len(labels),
        "wrong": (confusion.sum(1) - right).tolist(),
        "confusion": confusion.tolist(),
    }


def weakest_digit(logits: torch.Tensor, labels: torch.Tensor) -> int:
    """The digit with the highest error rate; ties go to the higher mean loss. Digits without images do not count."""
    losses = F.cross_entropy(logits, labels.cpu(), reduction="none")
    wrong = (logits.argmax(1) != labels.cpu()).float()
    of_digit = {digit: labels.cpu() == digit for digit in labels.unique().tolist()}
    return max(
        of_digit, key=lambda digit: (float(wrong[of_digit[digit]].mean()), float(losses[of_digit[digit]].mean()))
    )


def missed_claimed_errors(confusion: list[list[int]], digit: int) -> dict[str, int]:
    """Images of `digit` taken for another, images of others taken for it, and all errors of all digits."""
    right = sum(confusion[d][d] for d in range(10))
    return {
        "missed": sum(confusion[digit]) - confusion[digit][digit],
        "claimed": sum(row[digit] for row in confusion) - confusion[digit][digit],
        "errors": sum(map(sum, confusion)) - right,
    }


def counts_of(logits: torch.Tensor, labels: torch.Tensor, digit: int) -> dict[str, int]:
    """`missed_claimed_errors` of logits (N, 10) on labels (N,)."""
    return missed_claimed_errors(confusion_matrix(logits, labels).tolist(), digit)


def compare(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
    digit: int,
) -> dict[str, Any]:
    """What an adapter did, split by split, on the same images.

    Args:
        before, after: logits (N, 10) of each split.
        labels: int64 (N,) of each split.
        digit: the target digit.

    Returns:
        For every split `before` and `after` (missed, claimed, errors); per digit, `fixed` (wrong before, right after)
        and `broken` (the reverse); and the same two numbers for the images that missed, claimed and errors count.
    """
    result = {}
    for split, truth in labels.items():
        truth = truth.cpu()
        right_before, right_after = before[split].argmax(1) == truth, after[split].argmax(1) == truth
        other = truth != digit
        free_before, free_after = (part[split].argmax(1) != digit for part in (before, after))
        pairs = {
            "missed": _paired(right_before[~other], right_after[~other]),
            "claimed": _paired(free_before[other], free_after[other]),
            "errors": _paired(right_before, right_after),
        }
        result[split] = {
            "before": counts_of(before[split], truth, digit),
            "after": counts_of(after[split], truth, digit),
            "fixed": torch.bincount(truth[~right_before & right_after], minlength=10).tolist(),
            "broken": torch.bincount(truth[right_before & ~right_after], minlength=10).tolist(),
            "pairs": pairs,
        }
    return result


def _paired(good_before: torch.Tensor, good_after: torch.Tensor) -> dict[str, int]:
    fixed, broken = (~good_before & good_after).sum(), (good_before & ~good_after).sum()
    return {"fixed": int(fixed), "broken": int(broken)}
