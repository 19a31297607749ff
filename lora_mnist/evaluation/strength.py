"""How strongly an adapter is kept, and whether at all: judged on `val`, by the rule that the user chose.

Trained weights lie at the end of a line that starts at the base; on the way, the digit is won back sooner than others
are lost. So the adapter is kept at the place on that line that is best on `val` (the idea of WiSE-FT, arXiv 2109.01903,
section 3), and not at all if every place is worse than the start.
"""

from typing import Any

import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.dial import cost, counts_at
from lora_mnist.evaluation.metrics import counts_of
from lora_mnist.lora.adapters import set_strength, updates_of
from lora_mnist.training.model import MLP

COUNTED = {"errors": "errors", "digit": "missed"}  # by rule: the count on `val` that may not rise
STRENGTHS = tuple(step / 10 for step in range(10, 0, -1))


@torch.no_grad()
def choose(
    adapted: MLP, name: str, rule: str, before: torch.Tensor | None, val: Split, digit: int, gain: int = 0
) -> dict[str, Any]:
    """Scale adapter `name` so that its strength 1 is the best one on `val` of those that meet `rule`.

    Best is the least `cost`; ties go to the larger strength.

    Args:
        rule: `errors`: all errors on `val` not up; `digit`: the digit's missed images not up; `none`: as trained.
        before: logits (N, 10) on `val` without the adapter.
        val: its images and labels; not looked at if the rule is `none`.
        gain: by how many images, at the least, what the rule counts has to fall.

    Returns:
        `rule`; `counted`: the count that may not rise; `gain`; `strength`: the share of the trained update that is
        kept, None if none meets the rule; and, on `val`, the counts `before` and those `tried`, from strength 1 on
        downwards.

    Raises:
        UsageError: a rule, but no images to judge by; or a logit that is not finite.
    """
    if rule == "none":
        return {"rule": rule, "counted": None, "gain": 0, "strength": 1.0, "before": None, "tried": []}
    require_val(rule, val)
    start, count, tried = counts_of(before, val.labels, digit), COUNTED[rule], []
    limit = start[count] - gain
    for strength in STRENGTHS:
        if strength < 0.5 and any(one[count] <= limit for one in tried):
            break  # hardly anything is left of the repair there: looked at only if nothing above will do
        tried.append(counts_at(adapted, name, strength, val, digit))
    set_strength(adapted, name, 1.0)
    allowed = [one for one in tried if one[count] <= limit]
    found = {"rule": rule, "counted": count, "gain": gain, "before": start, "tried": tried}
    if not allowed:
        return {**found, "strength": None}
    best = min(allowed, key=cost)  # the first of equals is the strongest
    for update in updates_of(adapted, name).values():
        update.lora_B.mul_(best["strength"])
    return {**found, "strength": best["strength"]}


def require_val(rule: str, val: Split) -> None:
    """Raises UsageError if there is a rule, but no images to judge by."""
    if rule != "none" and not len(val):
        raise UsageError(f"`guard` (={rule!r}) is judged on `val`, and this run has none.", "Use --guard none.")
