"""What an adapter does at strengths between those that are known, without asking about every image again."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import LoRAError, UsageError
from lora_mnist.evaluation.results import StrengthPoint
from lora_mnist.evaluation.strength import logits_at
from lora_mnist.evaluation.strength_curve import STRENGTHS
from lora_mnist.training.model import MLP

D = TypeVar("D", bound=StrengthPoint)

ROUNDING = 4e-6  # of the largest logit: each of two is off by less than 1e-6 where sums go in another order, twice that
SURE = 2.0  # of a logit ahead of all others: seven times as probable


class Between:
    """Logits (N, 10) by split and strength, as `evaluation.strength_curve.Ask` gives them; but an image of which both networks
    around are sure, and take for the same digit, is not asked about in between: it gets the row of the one below.

    A count that comes out as it was stored is settled by that; for one that does not, all images have to be asked.

    Args:
        adapted: with adapter `name`; left at the last strength that was asked for.
        known: logits (N, 10) by split and strength; the strengths 0 and 1 are among them.
    """

    def __init__(
        self,
        adapted: MLP,
        name: str,
        held_out: Mapping[str, Split],
        known: Mapping[str, Mapping[float, torch.Tensor]],
    ):
        self.adapted, self.name, self.held_out = adapted, name, held_out
        self.known = {split: dict(logits) for split, logits in known.items()}

    def __call__(self, split: str, strength: float) -> torch.Tensor:
        """Raises UsageError or LoRAError where logits are not finite."""
        known, images = self.known[split], self.held_out[split].images
        if strength in known:
            return known[strength]
        if strength > max(known):
            top = max(strength, STRENGTHS[-1])
            try:
                known[top] = logits_at(self.adapted, self.name, top, images)
            except (UsageError, LoRAError):  # so far up; this one may still do
                return logits_at(self.adapted, self.name, strength, images)
            return self(split, strength)
        below = known[max(one for one in known if one < strength)].clone()
        above = known[min(one for one in known if one > strength)]
        digits = below.argmax(1)
        settled = (digits == above.argmax(1)) & (lead(below) > SURE) & (lead(above) > SURE)
        if not bool(settled.all()):
            below[~settled] = logits_at(self.adapted, self.name, strength, images[~settled.to(images.device)])
        return below


def same_points(stored: Sequence[D], found: Sequence[D], ask: Callable[[float], torch.Tensor]) -> bool:
    """Whether counts at the same strengths differ by no more images than rounding decides, as on another machine.

    Args:
        ask: logits (N, 10) of all images at a strength.
    """
    if [one.strength for one in stored] != [other.strength for other in found]:
        return False
    for one, other in zip(stored, found, strict=True):
        ties = 0 if one == other else tied(ask(one.strength))
        apart = max(abs(a - b) for a, b in zip(one.numbers, other.numbers, strict=True))
        if one != other and (not ties or apart > ties):
            return False
    return True


def tied(logits: torch.Tensor) -> int:
    """Of how many rows (N, 10) rounding decides which logit is the highest."""
    return int((lead(logits) <= ROUNDING * logits.abs().max()).sum())


def lead(logits: torch.Tensor) -> torch.Tensor:
    """How far the highest of each row (N, 10) is ahead of the second, (N,)."""
    first, second = logits.topk(2, dim=1).values.unbind(1)
    return first - second
