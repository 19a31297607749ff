"""What a repair is compared with: a shifted threshold, which needs no training, and a control, trained as long.

Somebody who only wants fewer missed nines can add one number to the logit of nine (threshold moving). An adapter that
does no better at the same number of missed nines has repaired nothing. Compared with the control, it shows what focus
itself is worth.
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
Labels = Mapping[str, torch.Tensor]  # int64 (N,) by split


@dataclass(frozen=True)
class Control:
    """A control: the scale that its guard selected (None: none), and its logits."""

    scale: float | None
    logits: Logits


def compare_control(control: Control, after: Logits, labels: Labels, digit: int) -> ControlResult:
    """The control beside the adapter, whose logits are `after`; and the control with a shifted threshold."""

    def paired(pair: Pair) -> PairedControl:
        p = mcnemar(pair.fixed, pair.broken)
        return PairedControl(only_adapter_right=pair.fixed, only_control_right=pair.broken, p=p)

    splits = {
        split: ControlCounts(**dict(one.before), all=paired(one.pairs.errors), digit=paired(one.pairs.missed))
        for split, one in compare(control.logits, after, labels, digit).items()
    }
    return ControlResult(
        scale=control.scale,
        splits=splits,
        threshold=find_shift(control.logits, after, labels, digit),
        threshold_on_test=shifted_on_test(control.logits, after, labels, digit),
    )


def shifted_threshold(before: Logits, after: Logits, labels: Labels, digit: int) -> Threshold:
    """`find_shift` of the network before the repair, and the curve from 0 to a quarter beyond that shift (or 1)."""
    found = find_shift(before, after, labels, digit)
    shifts = [(found.shift or 1.0) * step / STEPS for step in range(STEPS + STEPS // 4 + 1)]
    counts = [counts_of(_shifted(before["test"], digit, shift), labels["test"], digit) for shift in shifts]
    curve = tuple(ShiftPoint(shift=shift, **dict(one)) for shift, one in zip(shifts, counts, strict=True))
    return Threshold(**dict(found), curve=curve)


def find_shift(network: Logits, repaired: Logits, labels: Labels, digit: int) -> ShiftedLogit:
    """The smallest shift of the digit's logit with which a network misses no more images than the repaired one.

    It is chosen on `val`, or on `test` where there is no `val`.
    """
    chosen_on: Literal["val", "test"] = "val" if "val" in network else "test"
    truth = labels[chosen_on].cpu()
    shift = _smallest_shift(network[chosen_on], truth, digit, counts_of(repaired[chosen_on], truth, digit).missed)
    found = compare({split: _shifted(network[split], digit, shift) for split in labels}, repaired, labels, digit)
    return ShiftedLogit(
        shift=shift,
        chosen_on=chosen_on,
        splits={split: one.before for split, one in found.items()},
        pairs={split: one.pairs.errors for split, one in found.items()},
    )


def shifted_on_test(network: Logits, repaired: Logits, labels: Labels, digit: int) -> ShiftedLogit:
    """`find_shift`, chosen on `test`: nothing that could be used, but the best that a threshold can do there."""
    test, other, truth = ({"test": part["test"]} for part in (network, repaired, labels))
    return find_shift(test, other, truth, digit)


def shifted_to_miss(network: Logits, labels: Labels, digit: int) -> tuple[Counts, ...]:
    """Counts on `test` with the smallest shift that misses no image on `val`, one, two, … up to no shift at all.

    Empty if there is no `val`.
    """
    if "val" not in network:
        return ()
    val, test, truth = network["val"], labels["test"].cpu(), labels["val"].cpu()
    missed = counts_of(val, truth, digit).missed
    shifts = [_smallest_shift(val, truth, digit, allowed) for allowed in range(missed + 1)]
    return tuple(counts_of(_shifted(network["test"], digit, shift), test, digit) for shift in shifts)


def _shifted(logits: torch.Tensor, digit: int, shift: float) -> torch.Tensor:
    moved = logits.double()
    moved[:, digit] += shift
    return moved


def _smallest_shift(before: torch.Tensor, labels: torch.Tensor, digit: int, allowed: int) -> float:
    """The smallest that leaves no more than `allowed` images of `digit` missed."""
    if allowed >= counts_of(before, labels, digit).missed:
        return 0.0
    logits = before[labels == digit].double()
    own = logits[:, digit].clone()
    logits[:, digit] = -torch.inf
    gaps = (logits.max(1).values - own).sort(descending=True).values  # what each image lacks to be recognised
    gap = float(gaps[allowed])
    return gap + 1e-6 * max(1.0, abs(gap))  # at exactly the gap, two logits tie
