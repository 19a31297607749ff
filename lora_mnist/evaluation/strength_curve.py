"""What an adapter does at every strength: the line that starts at the base, on which the guard finds its place."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import LoRAError, UsageError
from lora_mnist.evaluation.metrics import counts_of
from lora_mnist.evaluation.results import StrengthCurve, StrengthPoint
from lora_mnist.evaluation.strength import logits_at, preferred
from lora_mnist.training.model import MLP

STRENGTHS = tuple(step / 4 for step in range(7))  # each takes a forward pass over all images

Ask = Callable[[str, float], torch.Tensor]  # split and strength → logits (N, 10)


def asking(adapted: MLP, name: str, held_out: Mapping[str, Split]) -> Ask:
    """What a network with adapter `name` says of all images of a split; the adapter is left at that strength."""
    return lambda split, strength: logits_at(adapted, name, strength, held_out[split].images)


def measure_strength_curve(
    ask: Ask, labels: Mapping[str, torch.Tensor], digit: int, known: Mapping[str, Sequence[StrengthPoint]]
) -> StrengthCurve:
    """Counts by strength: in quarters, on `test` at the one that `val` recommends too, and wherever they are `known`.

    Recommended is the `preferred` strength. Strengths at which logits are no longer finite are left out.

    Args:
        ask: raises UsageError or LoRAError where logits are not finite.
        labels: int64 (N,) by split.
        known: by split, points that are taken over; 0 is among them.
    """
    measured_on: Literal["val", "test"] = "val" if "val" in labels else "test"
    points = _measure(ask, measured_on, labels, digit, STRENGTHS, known)
    recommended = preferred(points).strength
    splits = {str(measured_on): points}
    if measured_on != "test":
        splits["test"] = _measure(ask, "test", labels, digit, (*STRENGTHS, recommended), known)
    return StrengthCurve(measured_on=measured_on, recommended=recommended, splits=splits)


def _measure(
    ask: Ask,
    split: str,
    labels: Mapping[str, torch.Tensor],
    digit: int,
    strengths: Sequence[float],
    known: Mapping[str, Sequence[StrengthPoint]],
) -> tuple[StrengthPoint, ...]:
    there = {one.strength: one for one in known[split]}
    points = []
    for strength in sorted({*strengths, *there}):
        try:
            points.append(there.get(strength) or _point(strength, ask(split, strength), labels[split], digit))
        except (UsageError, LoRAError):  # too large to apply, or for finite logits
            break
    return tuple(points)


def _point(strength: float, logits: torch.Tensor, labels: torch.Tensor, digit: int) -> StrengthPoint:
    return StrengthPoint(strength=strength, **dict(counts_of(logits, labels, digit)))
