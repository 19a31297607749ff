"""The guard: at which scale an adapter is kept, if at all, judged on `val`.

Training moves the weights along a line from the base, and the fewest errors are often made before its end. So the guard
keeps the adapter at the scale that is best on `val` (the idea of WiSE-FT, arXiv 2109.01903, section 3), and not at all
if every scale makes something worse. Best is the fewest errors of all digits; of equals, the largest scale.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import compare_split, counts_of, require_finite
from lora_mnist.evaluation.results import GuardDecision, TriedScale
from lora_mnist.evaluation.verdict import changes_by_digit
from lora_mnist.lora import set_strength
from lora_mnist.settings.config import GuardRule
from lora_mnist.training.model import MLP, logits_of

SCALES = tuple(step / 10 for step in range(10, 0, -1))


@dataclass(frozen=True)
class Guard:
    """What an adapter has to meet on `val` to be kept.

    The rule `every-digit` allows no more errors in all, and of no digit more than chance allows (McNemar's exact test,
    p corrected for ten digits, as in the verdict); `errors` allows no more errors in all, `digit` no more missed images
    of the digit; `none` keeps the adapter as trained.
    """

    rule: GuardRule
    gain: int = 0  # the adapter has to save at least so many of the images that the rule counts
    strongest: bool = False  # take the largest scale that is allowed: for an adapter made for other images than val's


@torch.no_grad()
def select_scale(
    adapted: MLP, name: str, guard: Guard, before: torch.Tensor | None, val: Split, digit: int
) -> GuardDecision:
    """Try adapter `name` on `val` at scales from 1 to 0.5, below only if none of these will do; select the best that
    meets `guard`, if one does.

    The adapter stays as it was; `lora.scale_alpha` applies the scale.

    Args:
        before: logits (N, 10) on `val` without the adapter. The rule `none` looks at neither.

    Raises UsageError if there is a rule, but no images to judge by; or a logit is not finite.
    """
    require_val(guard.rule, val)
    if guard.rule == "none":
        return GuardDecision(rule="none", counted=None, gain=0, before=None, tried=(), scale=1.0)
    assert before is not None  # a rule goes with a `val`
    counted: Literal["errors", "missed"] = "missed" if guard.rule == "digit" else "errors"  # what must not rise
    counts_before = counts_of(before, val.labels, digit)
    tried, allowed = list[TriedScale](), list[TriedScale]()
    for scale in SCALES:
        if allowed and (guard.strongest or scale < 0.5):
            break  # below a half hardly anything is left of the repair: tried only if nothing above will do
        after = logits_at(adapted, name, scale, val.images)  # not stored yet, so its strength is its scale
        found = compare_split(before, after, val.labels, digit)
        worse = tuple(other for other, change in enumerate(changes_by_digit(found)) if change.is_more)
        tried.append(TriedScale(scale=scale, **dict(found.after), worse=worse))
        hurts = guard.rule == "every-digit" and worse
        if not hurts and found.after.of(counted) <= counts_before.of(counted) - guard.gain:
            allowed.append(tried[-1])
    best = min(allowed, key=lambda one: one.errors, default=None)  # the first of equals, which is the largest
    return GuardDecision(
        rule=guard.rule,
        counted=counted,
        gain=guard.gain,
        before=counts_before,
        tried=tuple(tried),
        scale=best.scale if best else None,
    )


def require_val(rule: str, val: Split) -> None:
    """Raises UsageError if there is a rule, but no images to judge by."""
    if rule != "none" and not len(val):
        raise UsageError(f"`guard` (={rule!r}) is judged on `val`, and this run has none.", "Use --guard none.")


@torch.no_grad()
def logits_at(adapted: MLP, name: str, strength: float, images: torch.Tensor) -> torch.Tensor:
    """(N, 10) with adapter `name` at `strength`; then it is at 1 again. Raises UsageError if one is not finite."""
    set_strength(adapted, name, strength)
    try:
        logits = logits_of(adapted, images)
    finally:
        set_strength(adapted, name, 1.0)
    require_finite({"": logits}, "Choose a lower --learning-rate or a smaller strength.")
    return logits
