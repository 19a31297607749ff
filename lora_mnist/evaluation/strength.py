"""What an adapter does at every strength, and how strongly it is kept, if at all: judged on `val`.

Trained weights lie at the end of a line that starts at the base; on the way, the digit is won back sooner than others
are lost. So the guard keeps the adapter at the place on that line that is best on `val` (the idea of WiSE-FT, arXiv
2109.01903, section 3), and not at all if every place is worse than the start. The dial shows the line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import LoRAError, UsageError
from lora_mnist.evaluation.findings import Counts, Dial, GuardDecision, StrengthPoint
from lora_mnist.evaluation.metrics import counts_of
from lora_mnist.evaluation.predict import logits_of, require_finite
from lora_mnist.lora.adapters import set_strength, updates_of
from lora_mnist.training.model import MLP

COUNTED: dict[str, Literal["errors", "missed"]] = {"errors": "errors", "digit": "missed"}  # by rule: what may not rise
GUARD_STRENGTHS = tuple(step / 10 for step in range(10, 0, -1))
DIAL_STRENGTHS = tuple(step / 4 for step in range(7))  # each takes a forward pass over all images


@dataclass(frozen=True)
class Guard:
    """What an adapter has to meet on `val` to be kept.

    Attributes:
        rule: `errors`: all errors not up; `digit`: the digit's missed images not up; `none`: kept as trained.
        gain: by how many images, at the least, what the rule counts has to fall.
    """

    rule: Literal["errors", "digit", "none"]
    gain: int = 0


@torch.no_grad()
def counts_at(adapted: MLP, name: str, strength: float, split: Split, digit: int) -> StrengthPoint:
    """Missed, claimed and errors with adapter `name` at `strength`; it is left there.

    Raises:
        UsageError: a logit is not finite.
    """
    set_strength(adapted, name, strength)
    logits = logits_of(adapted, split.images)
    require_finite({"": logits}, "Choose a lower --learning-rate or a smaller strength.")
    return StrengthPoint(strength=strength, **dict(counts_of(logits, split.labels, digit)))


def cost(counts: Counts) -> int:
    """What a strength is chosen by: the fewest errors in all, the digit's missed images counted three times."""
    return counts.errors + 2 * counts.missed


# The guard ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def choose(adapted: MLP, name: str, guard: Guard, before: torch.Tensor | None, val: Split, digit: int) -> GuardDecision:
    """Scale adapter `name` so that its strength 1 is the best one on `val` of those that meet `guard`.

    Best is the least `cost`; ties go to the larger strength. If none meets it, the adapter is left as trained.

    Args:
        before: logits (N, 10) on `val` without the adapter.
        val: its images and labels; neither is looked at if the rule is `none`.

    Raises:
        UsageError: a rule, but no images to judge by; or a logit that is not finite.
    """
    if guard.rule == "none":
        return GuardDecision(rule="none", counted=None, gain=0, before=None, tried=(), strength=1.0)
    require_val(guard.rule, val)
    assert before is not None  # there is a `val`
    start, counted = counts_of(before, val.labels, digit), COUNTED[guard.rule]
    limit = start.of(counted) - guard.gain
    tried: list[StrengthPoint] = []
    for strength in GUARD_STRENGTHS:
        if strength < 0.5 and any(one.of(counted) <= limit for one in tried):
            break  # hardly anything is left of the repair there: looked at only if nothing above will do
        tried.append(counts_at(adapted, name, strength, val, digit))
    set_strength(adapted, name, 1.0)
    allowed = [one for one in tried if one.of(counted) <= limit]
    best = min(allowed, key=cost).strength if allowed else None  # the first of equals is the strongest
    if best is not None:
        for update in updates_of(adapted, name).values():
            update.lora_B.mul_(best)
    return GuardDecision(
        rule=guard.rule, counted=counted, gain=guard.gain, before=start, tried=tuple(tried), strength=best
    )


def require_val(rule: str, val: Split) -> None:
    """Raises UsageError if there is a rule, but no images to judge by."""
    if rule != "none" and not len(val):
        raise UsageError(f"`guard` (={rule!r}) is judged on `val`, and this run has none.", "Use --guard none.")


# The dial -------------------------------------------------------------------------------------------------------------


def turn_dial(
    adapted: MLP,
    name: str,
    held_out: Mapping[str, Split],
    digit: int,
    known: Mapping[str, Sequence[StrengthPoint]],
) -> Dial:
    """Counts by strength: in quarters, on `test` at the one that `val` recommends too, and wherever they are `known`.

    Recommended is the strength of the least `cost` among those without more errors than at 0. Strengths at which logits
    are no longer finite are left out.

    Args:
        adapted: a base with adapter `name`, left at strength 1.
        known: by split, points that are taken over; 0 is among them.
    """
    measured_on: Literal["val", "test"] = "val" if "val" in held_out else "test"
    points = _measure(adapted, name, held_out[measured_on], digit, DIAL_STRENGTHS, known[measured_on])
    allowed = [one for one in points if one.errors <= points[0].errors]
    recommended = min(allowed, key=lambda one: (cost(one), -one.strength)).strength
    splits = {str(measured_on): points}
    if measured_on != "test":
        strengths = (*DIAL_STRENGTHS, recommended)
        splits["test"] = _measure(adapted, name, held_out["test"], digit, strengths, known["test"])
    set_strength(adapted, name, 1.0)
    return Dial(measured_on=measured_on, recommended=recommended, splits=splits)


def _measure(
    adapted: MLP, name: str, split: Split, digit: int, strengths: Sequence[float], known: Sequence[StrengthPoint]
) -> tuple[StrengthPoint, ...]:
    there = {one.strength: one for one in known}
    points = []
    for strength in sorted({*strengths, *there}):
        try:
            points.append(there.get(strength) or counts_at(adapted, name, strength, split, digit))
        except (UsageError, LoRAError):  # too large to apply, or for finite logits
            break
    return tuple(points)
