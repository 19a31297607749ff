"""An adapter that is kept is not worse than what it was put on, by the rule that the user chose, on `val`."""

from collections.abc import Sequence
from typing import Any

import torch

from lora_mnist.data import Split
from lora_mnist.evaluate import confusion_matrix, logits_of, missed_claimed_errors, require_finite
from lora_mnist.lora.adapters import updates_of
from lora_mnist.model import MLP
from lora_mnist.recipe import Snapshot

RULES = {"errors": "errors", "digit": "missed", "none": None}  # the count on `val` that may not rise


@torch.no_grad()
def choose(
    adapted: MLP, name: str, snapshots: Sequence[Snapshot], rule: str, before: torch.Tensor, val: Split, digit: int
) -> dict[str, Any]:
    """Put the last snapshot that meets `rule` into adapter `name`: the one trained most, and at the lowest rates.

    Args:
        before: logits (N, 10) on `val` without the adapter.
        val: its images and labels; not looked at if the rule is `none`.

    Returns:
        `rule`, `kept`: the step of the snapshot, or None if none meets it; and `before` and `tried`, the counts on
        `val`, of those that were looked at, last first.

    Raises:
        UsageError: a logit is not finite.
    """
    if rule == "none":
        return {"rule": rule, "kept": snapshots[-1].step, "before": None, "tried": []}
    count = RULES[rule]
    limit = missed_claimed_errors(confusion_matrix(before, val.labels).tolist(), digit)
    updates, tried = updates_of(adapted, name), []
    for snapshot in reversed(snapshots):
        for path, (a, b) in snapshot.tensors.items():
            updates[path].lora_A.copy_(a)
            updates[path].lora_B.copy_(b)
        logits = logits_of(adapted, val.images)
        require_finite({"val": logits}, "Choose a lower --learning-rate.")
        matrix = confusion_matrix(logits, val.labels)
        tried.append({"step": snapshot.step, **missed_claimed_errors(matrix.tolist(), digit)})
        if tried[-1][count] <= limit[count]:
            return {"rule": rule, "kept": snapshot.step, "before": limit, "tried": tried}
    return {"rule": rule, "kept": None, "before": limit, "tried": tried}
