"""The guard: at which scale an adapter is kept, if at all, judged on `val`. And what it does at every strength.

Trained weights are at the end of a line that starts at the base, and the fewest errors are often made before that end.
So the guard keeps the adapter at the scale that is best on `val` (the idea of WiSE-FT, arXiv 2109.01903, section 3),
and not at all if every scale makes something worse.

One preference decides everywhere: of the scales that are allowed, the one with the fewest errors of all digits; of
equals, the largest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import LoRAError, UsageError
from lora_mnist.evaluation.metrics import compare, counts_of, logits_of, require_finite
from lora_mnist.evaluation.results import Counts, GuardDecision, StrengthCurve, StrengthPoint, TriedScale
from lora_mnist.evaluation.significance import LEVEL, mcnemar
from lora_mnist.lora import set_strength
from lora_mnist.settings.config import GuardRule
from lora_mnist.training.model import MLP

C = TypeVar("C", bound=Counts)

COUNTED: dict[str, Literal["errors", "missed"]] = {  # by rule: the count that must not rise
    "every-digit": "errors",
    "errors": "errors",
    "digit": "missed",
}
SCALES = tuple(step / 10 for step in range(10, 0, -1))
STRENGTHS = tuple(step / 4 for step in range(7))  # of the strength curve; each takes a forward pass over all images


@dataclass(frozen=True)
class Guard:
    """What an adapter has to meet on `val` to be kept.

    Attributes:
        rule: `every-digit`: all errors not up, and those of no digit up by more than chance allows (McNemar's exact
            test, p of no more than `LEVEL`; not corrected for ten digits, so in doubt a digit counts as worse);
            `errors`: all errors not up; `digit`: the digit's missed images not up; `none`: kept as trained.
        gain: by how many images, at the least, what the rule counts has to fall.
        strongest: keep the largest scale that is allowed, in place of the one with the fewest errors, where `val` is
            not what the adapter was made for.
    """

    rule: GuardRule
    gain: int = 0
    strongest: bool = False

    def allows(self, tried: TriedScale, before: int) -> bool:
        """Whether the adapter may be kept at that scale; `before` is what the rule counts without the adapter."""
        if self.rule == "every-digit" and tried.worse:
            return False
        return tried.of(COUNTED[self.rule]) <= before - self.gain


@torch.no_grad()
def select_scale(
    adapted: MLP, name: str, guard: Guard, before: torch.Tensor | None, val: Split, digit: int
) -> GuardDecision:
    """Try adapter `name` at scales from 1 downwards on `val`, and select one that meets `guard`. It is left at 1.

    Args:
        before: logits (N, 10) on `val` without the adapter.
        val: its images and labels; neither is looked at if the rule is `none`.

    Raises:
        UsageError: there is a rule, but no images to judge by; or a logit is not finite.
    """
    require_val(guard.rule, val)
    return decide(guard, before, val.labels, digit, lambda scale: logits_at(adapted, name, scale, val.images))


def decide(
    guard: Guard,
    before: torch.Tensor | None,
    labels: torch.Tensor,
    digit: int,
    logits_of_scale: Callable[[float], torch.Tensor],
) -> GuardDecision:
    """Which scale `guard` selects, and what was tried.

    Args:
        before: logits (N, 10) on `val` without the adapter.
        labels: int64 (N,) of `val`; neither is looked at if the rule is `none`.
        logits_of_scale: logits (N, 10) on `val` at a scale of the trained update.
    """
    if guard.rule == "none":
        return GuardDecision(rule="none", counted=None, gain=0, before=None, tried=(), scale=1.0)
    assert before is not None  # a rule goes with a `val`
    start, counted = counts_of(before, labels, digit), COUNTED[guard.rule]
    tried: list[TriedScale] = []
    allowed: list[TriedScale] = []
    for scale in SCALES:
        if allowed and (guard.strongest or scale < 0.5):
            break  # below a half hardly anything is left of the repair: tried only if nothing above will do
        found = compare({"val": before}, {"val": logits_of_scale(scale)}, {"val": labels}, digit)["val"]
        pairs = enumerate(zip(found.fixed, found.broken, strict=True))
        worse = tuple(d for d, (fixed, broken) in pairs if broken > fixed and mcnemar(fixed, broken) <= LEVEL)
        tried.append(TriedScale(scale=scale, **dict(found.after), worse=worse))
        if guard.allows(tried[-1], start.of(counted)):
            allowed.append(tried[-1])
    selected = preferred(allowed, lambda one: one.scale).scale if allowed else None
    return GuardDecision(
        rule=guard.rule, counted=counted, gain=guard.gain, before=start, tried=tuple(tried), scale=selected
    )


def preferred(points: Sequence[C], factor: Callable[[C], float]) -> C:
    """The point with the fewest errors of all digits; of equals, the one with the largest factor."""
    return min(points, key=lambda one: (one.errors, -factor(one)))


def require_val(rule: str, val: Split) -> None:
    """Raises UsageError if there is a rule, but no images to judge by."""
    if rule != "none" and not len(val):
        raise UsageError(f"`guard` (={rule!r}) is judged on `val`, and this run has none.", "Use --guard none.")


@torch.no_grad()
def logits_at(adapted: MLP, name: str, strength: float, images: torch.Tensor) -> torch.Tensor:
    """(N, 10) with adapter `name` at `strength`; it is at 1 again afterwards.

    Raises:
        UsageError: a logit is not finite.
    """
    set_strength(adapted, name, strength)
    try:
        logits = logits_of(adapted, images)
    finally:
        set_strength(adapted, name, 1.0)
    require_finite({"": logits}, "Choose a lower --learning-rate or a smaller strength.")
    return logits


def strength_curve(
    adapted: MLP,
    name: str,
    held_out: Mapping[str, Split],
    digit: int,
    known: Mapping[str, Sequence[StrengthPoint]],
) -> StrengthCurve:
    """Counts by strength: in quarters from 0 to 1.5, and on `test` also at the strength that `val` recommends.

    Recommended is the strength with the fewest errors; of equals, the largest. It ends where logits are no longer
    finite.

    Args:
        adapted: a base with adapter `name` at strength 1.
        known: by split, points that need no forward pass; 0 and 1 are among them.
    """

    def measure(split: str, strengths: Sequence[float]) -> tuple[StrengthPoint, ...]:
        there = {one.strength: one for one in known[split]}
        images, labels = held_out[split].images, held_out[split].labels
        points = []
        for strength in sorted({*strengths, *there}):
            try:
                counts = there.get(strength) or counts_of(logits_at(adapted, name, strength, images), labels, digit)
            except (UsageError, LoRAError):  # too large to apply, or for finite logits
                break
            points.append(StrengthPoint(strength=strength, **counts.model_dump(exclude={"strength"})))
        return tuple(points)

    measured_on: Literal["val", "test"] = "val" if "val" in held_out else "test"
    points = measure(measured_on, STRENGTHS)
    recommended = preferred(points, lambda one: one.strength).strength
    splits = {str(measured_on): points}
    if measured_on != "test":
        splits["test"] = measure("test", (*STRENGTHS, recommended))
    return StrengthCurve(measured_on=measured_on, recommended=recommended, splits=splits)
