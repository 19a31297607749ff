"""How strongly an adapter is kept, if at all: judged on `val`.

Trained weights lie at the end of a line that starts at the base, and the fewest errors are often made before that end.
So the guard keeps the adapter at the place on that line that is best on `val` (the idea of WiSE-FT, arXiv 2109.01903,
section 3), and not at all if every place hurts somebody. The strength_curve (`evaluation.strength_curve`) shows the line.

One preference decides everywhere: of the strengths that are allowed, the one with the fewest errors of all digits; of
equals, the largest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import compare, counts_of
from lora_mnist.evaluation.predict import logits_of, require_finite
from lora_mnist.evaluation.results import GuardDecision, StrengthPoint, TriedStrength
from lora_mnist.evaluation.significance import LEVEL, mcnemar
from lora_mnist.lora.adapters import updates_of
from lora_mnist.lora.switching import set_strength
from lora_mnist.settings.config import GuardRule
from lora_mnist.training.model import MLP

COUNTED: dict[str, Literal["errors", "missed"]] = {  # by rule: what may not rise
    "every-digit": "errors",
    "errors": "errors",
    "digit": "missed",
}
GUARD_STRENGTHS = tuple(step / 10 for step in range(10, 0, -1))


@dataclass(frozen=True)
class Guard:
    """What an adapter has to meet on `val` to be kept.

    Attributes:
        rule: `every-digit`: all errors not up, and those of no digit up by more than chance allows (McNemar's exact
            test, p of no more than `LEVEL`; not corrected for ten digits, since in doubt a digit counts as hurt);
            `errors`: all errors not up; `digit`: the digit's missed images not up; `none`: kept as trained.
        gain: by how many images, at the least, what the rule counts has to fall.
        strongest: keep the strongest that is allowed, in place of the one with the fewest errors, where `val` is not
            what the adapter was made for.
    """

    rule: GuardRule
    gain: int = 0
    strongest: bool = False

    def allows(self, tried: TriedStrength, before: int) -> bool:
        """Whether it may be kept at that strength; `before` is what the rule counts without the adapter."""
        if self.rule == "every-digit" and tried.hurt:
            return False
        return tried.of(COUNTED[self.rule]) <= before - self.gain


def preferred(points: Sequence[StrengthPoint]) -> StrengthPoint:
    """The one with the fewest errors of all digits; of equals, the strongest."""
    return min(points, key=lambda one: (one.errors, -one.strength))


@torch.no_grad()
def logits_at(adapted: MLP, name: str, strength: float, images: torch.Tensor) -> torch.Tensor:
    """(N, 10) with adapter `name` at `strength`; it is left there.

    Raises:
        UsageError: a logit is not finite.
    """
    set_strength(adapted, name, strength)
    logits = logits_of(adapted, images)
    require_finite({"": logits}, "Choose a lower --learning-rate or a smaller strength.")
    return logits


@torch.no_grad()
def choose(adapted: MLP, name: str, guard: Guard, before: torch.Tensor | None, val: Split, digit: int) -> GuardDecision:
    """Scale adapter `name` so that its strength 1 is the best one on `val` of those that meet `guard`.

    Best is the `preferred` one, or the strongest. If none meets it, the adapter is left as trained.

    Args:
        before: logits (N, 10) on `val` without the adapter.
        val: its images and labels; neither is looked at if the rule is `none`.

    Raises:
        UsageError: a rule, but no images to judge by; or a logit that is not finite.
    """
    require_val(guard.rule, val)
    decision = decide(guard, before, val.labels, digit, lambda strength: logits_at(adapted, name, strength, val.images))
    set_strength(adapted, name, 1.0)
    for update in updates_of(adapted, name).values():
        update.lora_B.mul_(1.0 if decision.strength is None else decision.strength)
    return decision


def decide(
    guard: Guard,
    before: torch.Tensor | None,
    labels: torch.Tensor,
    digit: int,
    ask: Callable[[float], torch.Tensor],
) -> GuardDecision:
    """The `preferred` strength of those that meet `guard`, and what was tried.

    Args:
        before: logits (N, 10) on `val` without the adapter.
        labels: int64 (N,) of `val`; neither is looked at if the rule is `none`.
        ask: logits (N, 10) on `val` at a strength of the update as trained.
    """
    if guard.rule == "none":
        return GuardDecision(rule="none", counted=None, gain=0, before=None, tried=(), strength=1.0)
    assert before is not None  # a rule goes with a `val`
    start, counted = counts_of(before, labels, digit), COUNTED[guard.rule]
    tried: list[TriedStrength] = []
    allowed: list[TriedStrength] = []
    for strength in GUARD_STRENGTHS:
        if allowed and (guard.strongest or strength < 0.5):
            break  # below a half hardly anything is left of the repair: looked at only if nothing above will do
        tried.append(_tried(strength, before, ask(strength), labels, digit))
        if guard.allows(tried[-1], start.of(counted)):
            allowed.append(tried[-1])
    best = preferred(allowed).strength if allowed else None
    return GuardDecision(
        rule=guard.rule, counted=counted, gain=guard.gain, before=start, tried=tuple(tried), strength=best
    )


def _tried(
    strength: float, before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor, digit: int
) -> TriedStrength:
    found = compare({"val": before}, {"val": after}, {"val": labels}, digit)["val"]
    pairs = enumerate(zip(found.fixed, found.broken, strict=True))
    hurt = tuple(d for d, (fixed, broken) in pairs if broken > fixed and mcnemar(fixed, broken) <= LEVEL)
    return TriedStrength(strength=strength, **dict(found.after), hurt=hurt)


def require_val(rule: str, val: Split) -> None:
    """Raises UsageError if there is a rule, but no images to judge by."""
    if rule != "none" and not len(val):
        raise UsageError(f"`guard` (={rule!r}) is judged on `val`, and this run has none.", "Use --guard none.")
