"""The strength dial: what an adapter does between off and half as much again as trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import LoRAError, UsageError
from lora_mnist.evaluation.metrics import counts_of, logits_of, require_finite
from lora_mnist.lora.adapters import set_strength
from lora_mnist.training.model import MLP

STRENGTHS = tuple(step / 4 for step in range(7))  # each takes a forward pass over all images


@torch.no_grad()
def counts_at(adapted: MLP, name: str, strength: float, split: Split, digit: int) -> dict[str, Any]:
    """`strength`, and missed, claimed and errors with adapter `name` at it; it is left there.

    Raises:
        UsageError: a logit is not finite.
    """
    set_strength(adapted, name, strength)
    logits = logits_of(adapted, split.images)
    require_finite({"": logits}, "Choose a lower --learning-rate or a smaller strength.")
    return {"strength": strength, **counts_of(logits, split.labels, digit)}


def cost(counts: Mapping[str, int]) -> int:
    """What a strength is chosen by: the fewest errors in all, the digit's missed images counted three times."""
    return counts["errors"] + 2 * counts["missed"]


def turn_dial(
    adapted: MLP, name: str, held_out: Mapping[str, Split], digit: int, known: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Counts by strength: in quarters, on `test` at the one that `val` recommends too, and wherever they are `known`.

    Args:
        adapted: a base with adapter `name`, left at strength 1.
        known: by split, entries as `counts_at` makes them, which are taken over; 0 is among them.

    Returns:
        `measured_on`: the split that recommends, `test` where there is no `val`; `recommended`: the strength of the
        least `cost` among those without more errors than at 0; and `splits`, each a list of counts by rising strength.
        Strengths at which logits are no longer finite are left out.
    """
    measured_on = "val" if "val" in held_out else "test"
    points = _measure(adapted, name, held_out[measured_on], digit, STRENGTHS, known[measured_on])
    allowed = [one for one in points if one["errors"] <= points[0]["errors"]]
    recommended = min(allowed, key=lambda one: (cost(one), -one["strength"]))["strength"]
    splits = {measured_on: points}
    if measured_on != "test":
        splits["test"] = _measure(adapted, name, held_out["test"], digit, (*STRENGTHS, recommended), known["test"])
    set_strength(adapted, name, 1.0)
    return {"measured_on": measured_on, "recommended": recommended, "splits": splits}


def _measure(
    adapted: MLP,
    name: str,
    split: Split,
    digit: int,
    strengths: Sequence[float],
    known: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    there = {one["strength"]: dict(one) for one in known}
    points = []
    for strength in sorted({*strengths, *there}):
        try:
            points.append(there.get(strength) or counts_at(adapted, name, strength, split, digit))
        except (UsageError, LoRAError):  # too large to apply, or for finite logits
            break
    return points
