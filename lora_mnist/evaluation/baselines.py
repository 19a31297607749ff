"""What a repair is compared with: a shifted threshold, which needs no training, and a control, trained as long.

Somebody who only wants fewer missed nines can add one number to the logit of nine (threshold moving). An adapter that
does no better at the same number of missed nines has repaired nothing. With the control instead of the base, the same
comparison shows what focus itself is worth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from lora_mnist.evaluation.metrics import compare, counts_of
from lora_mnist.evaluation.results import (
    ControlCounts,
    ControlResult,
    Counts,
    Pair,
    PairedControl,
    ShiftedLogit,
    ShiftPoint,
    Threshold,
)
from lora_mnist.evaluation.significance import mcnemar

STEPS = 20  # of the curve, up to the chosen shift

Logits = Mapping[str, torch.Tensor]  # (N, 10) by split


@dataclass(frozen=True)
class Control:
    """A control: the scale that its guard selected (None: none), and its logits."""

    scale: float | None
    logits: Logits


def compare_control(control: Control, after: Logits, labels: Mapping[str, torch.Tensor], digit: int) -> ControlResult:
    """The control beside the adapter, whose logits are `after`, on the same images; and the control with a threshold.

    Args:
        labels: int64 (N,) by split.
    """

    def only(pair: Pair) -> PairedControl:
        return PairedControl(
            only_adapter_right=pair.fixed, only_control_right=pair.broken, p=mcnemar(pair.fixed, pair.broken)
        )

    splits = {
        split: ControlCounts(**dict(one.before), all=only(one.pairs.errors), digit=only(one.pairs.missed))
        for split, one in compare(control.logits, after, labels, digit).items()
    }
    threshold = shifted_logit(control.logits, after, labels, digit)
    return ControlResult(scale=control.scale, splits=splits, threshold=threshold)


def shifted_threshold(before: Logits, after: Logits, labels: Mapping[str, torch.Tensor], digit: int) -> Threshold:
    """`shifted_logit` of the network before the repair, and the curve up to it and a quarter beyond.

    If no shift is needed, the curve goes up to 1 and a quarter.
    """
    found = shifted_logit(before, after, labels, digit)
    shifts = [(found.shift or 1.0) * step / STEPS for step in range(STEPS + STEPS // 4 + 1)]
    curve = tuple(
        ShiftPoint(shift=one, **dict(counts_of(_shifted(before["test"], digit, one), labels["test"], digit)))
        for one in shifts
    )
    return Threshold(**dict(found), curve=curve)


def shifted_logit(network: Logits, repaired: Logits, labels: Mapping[str, torch.Tensor], digit: int) -> ShiftedLogit:
    """The smallest shift of the digit's logit with which a network misses no more images than the repaired one.

    It is chosen on `val`, or on `test` where there is no `val`.

    Args:
        labels: int64 (N,) by split.
    """
    chosen_on: Literal["val", "test"] = "val" if "val" in network else "test"
    truth = labels[chosen_on].cpu()
    shift = _smallest_shift(network[chosen_on], truth, digit, _missed(repaired[chosen_on], truth, digit))
    found = compare({split: _shifted(network[split], digit, shift) for split in labels}, repaired, labels, digit)
    return ShiftedLogit(
        shift=shift,
        chosen_on=chosen_on,
        splits={split: one.before for split, one in found.items()},
        pairs={split: one.pairs.errors for split, one in found.items()},
    )


def shifted_to_miss(network: Logits, labels: Mapping[str, torch.Tensor], digit: int) -> tuple[Counts, ...]:
    """Counts on `test` with the smallest shift with which the network misses no image on `val`, one, two, and so on.

    The last is without a shift. Empty if there is no `val`.
    """
    if "val" not in network:
        return ()
    val, test, truth = network["val"], labels["test"].cpu(), labels["val"].cpu()
    shifts = [_smallest_shift(val, truth, digit, allowed) for allowed in range(_missed(val, truth, digit) + 1)]
    return tuple(counts_of(_shifted(network["test"], digit, one), test, digit) for one in shifts)


def _shifted(logits: torch.Tensor, digit: int, shift: float) -> torch.Tensor:
    moved = logits.double()
    moved[:, digit] += shift
    return moved


def _missed(logits: torch.Tensor, labels: torch.Tensor, digit: int) -> int:
    return int((logits[labels == digit].argmax(1) != digit).sum())


def _smallest_shift(before: torch.Tensor, labels: torch.Tensor, digit: int, allowed: int) -> float:
    """With which no more than `allowed` images of `digit` are missed."""
    if allowed >= _missed(before, labels, digit):
        return 0.0
    logits = before[labels == digit].double()
    own = logits[:, digit].clone()
    logits[:, digit] = -torch.inf
    lacking = (logits.max(1).values - own).sort(descending=True).values  # what each image lacks to be recognised
    # a little more than enough: at exactly enough, two logits tie
    return float(lacking[allowed]) + 1e-6 * max(1.0, abs(float(lacking[allowed])))
