"""The one-number baseline: what adding one number to the target digit's logit does, without any training for it.

Whoever only wants fewer missed nines can move the threshold of nine. An adapter that does no better at the same number
of missed nines has repaired nothing. Added to the logit of the control, the number tells what focus itself is worth: the
control was trained as long.
"""

from collections.abc import Mapping
from typing import Literal

import torch

from lora_mnist.evaluation.metrics import compare, counts_of
from lora_mnist.evaluation.results import Counts, ShiftedLogit, ShiftPoint, Threshold

STEPS = 20  # of the curve, up to the chosen shift


def shifted_threshold(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
    digit: int,
) -> Threshold:
    """`shifted_logit` of the network before the repair, and its way there. If there is no need to shift, the curve goes
    up to 1 and a quarter."""
    found = shifted_logit(before, after, labels, digit)
    shifts = [(found.shift or 1.0) * step / STEPS for step in range(STEPS + STEPS // 4 + 1)]
    curve = tuple(
        ShiftPoint(shift=one, **dict(counts_of(_shifted(before["test"], digit, one), labels["test"], digit)))
        for one in shifts
    )
    return Threshold(**dict(found), curve=curve)


def shifted_logit(
    network: Mapping[str, torch.Tensor],
    repaired: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
    digit: int,
) -> ShiftedLogit:
    """The smallest shift of the digit's logit with which a network misses no more images than the repaired one does.

    It is chosen on `val`, or on `test` where there is no `val`.

    Args:
        network, repaired: logits (N, 10) by split.
        labels: int64 (N,) by split.
    """
    chosen_on: Literal["val", "test"] = "val" if "val" in network else "test"
    truth = labels[chosen_on].cpu()
    shift = _shift(network[chosen_on], truth, digit, _missed(repaired[chosen_on], truth, digit))
    found = compare({split: _shifted(network[split], digit, shift) for split in labels}, repaired, labels, digit)
    return ShiftedLogit(
        shift=shift,
        chosen_on=chosen_on,
        splits={split: one.before for split, one in found.items()},
        pairs={split: one.pairs.errors for split, one in found.items()},
    )


def shifted_to_miss(
    network: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor], digit: int
) -> tuple[Counts, ...]:
    """What a network does on `test` with the smallest shift with which it misses no image on `val`, one, two, and so
    on; the last is without a shift. Empty if there is no `val`."""
    if "val" not in network:
        return ()
    val, test, truth = network["val"], labels["test"].cpu(), labels["val"].cpu()
    shifts = [_shift(val, truth, digit, allowed) for allowed in range(_missed(val, truth, digit) + 1)]
    return tuple(counts_of(_shifted(network["test"], digit, one), test, digit) for one in shifts)


def _shifted(logits: torch.Tensor, digit: int, shift: float) -> torch.Tensor:
    moved = logits.double()
    moved[:, digit] += shift
    return moved


def _missed(logits: torch.Tensor, labels: torch.Tensor, digit: int) -> int:
    return int((logits[labels == digit].argmax(1) != digit).sum())


def _shift(before: torch.Tensor, labels: torch.Tensor, digit: int, allowed: int) -> float:
    of_digit = labels == digit
    logits = before[of_digit].double()
    own = logits[:, digit].clone()
    logits[:, digit] = -torch.inf
    lacking = (logits.max(1).values - own).sort(descending=True).values  # what each image lacks to be recognised
    if allowed >= _missed(before, labels, digit):
        return 0.0
    # a little more than enough: at exactly enough, two logits tie
    return float(lacking[allowed]) + 1e-6 * max(1.0, abs(float(lacking[allowed])))
