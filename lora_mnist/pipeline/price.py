"""What an adapter that was taught drawings gained and cost: found when it is trained, and again when it is verified."""

from collections.abc import Callable, Iterator

import torch

from lora_mnist.datasets.drawings import Drawings
from lora_mnist.evaluation.metrics import compare
from lora_mnist.evaluation.predict import logits_of
from lora_mnist.evaluation.price import Judged, OnVal, Price
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.runs.artifact import Artifact
from lora_mnist.runs.drawings import load_drawings
from lora_mnist.training.model import MLP


def right(model: MLP, drawings: Drawings) -> torch.Tensor:
    """bool (K,): which of `drawings` the network takes for what they are."""
    images = drawings.images.to(next(model.parameters()).device)
    return logits_of(model, images).argmax(1) == drawings.labels.cpu()


def parts_of(drawings: Drawings, folds: int) -> list[torch.Tensor]:
    """bool (K,) masks of as many parts, with about as many drawings of each digit; none for fewer than two a part.

    The same drawing twice is in one part, so that no adapter is judged by what it was trained on.
    """
    rows = torch.cat([drawings.labels[:, None].cpu(), drawings.images.cpu().flatten(1)], 1)
    different, which = rows.unique(dim=0, return_inverse=True)  # sorted by digit
    if len(different) < 2 * folds:
        return []
    return [which % folds == part for part in range(folds)]


def without(drawings: Drawings, part: torch.Tensor) -> Drawings:
    """The drawings that are not in `part`, a mask (K,)."""
    return Drawings(drawings.images[~part], drawings.labels[~part])


def judged(
    drawings: Drawings,
    parts: list[torch.Tensor],
    before: torch.Tensor,
    trained: Callable[[int, Drawings], MLP],
    steps: int,
) -> Judged | None:
    """How many of the drawings are right with an adapter that was trained without them; None if there are no parts.

    Args:
        before: bool (K,), which are right with the base.
        trained: number of a part, and drawings → a network with an adapter that was trained on those for `steps`.
    """
    if not parts:
        return None
    after = torch.zeros_like(before)
    for number, part in enumerate(parts):
        after[part] = right(trained(number, without(drawings, part)), drawings)[part]
    return Judged(
        images=len(before),
        before=int(before.sum()),
        after=int(after.sum()),
        fixed=int((~before & after).sum()),
        broken=int((before & ~after).sum()),
        folds=len(parts),
        steps=steps,
    )


def price_of(
    work: Workspace, drawings: Drawings, adapted: MLP, digit: int, strength: float | None, unseen: Judged | None
) -> Price:
    """The price of the adapter in `adapted`, at the strength that it has there.

    Args:
        digit: that it is judged by on `val`.
        strength: that the guard allowed, if any.
        unseen: from `judged`.
    """
    return Price(
        drawings=drawings.counts,
        before=int(right(work.base, drawings).sum()),
        after=int(right(adapted, drawings).sum()),
        judged=unseen,
        val=on_val(work, adapted, digit),
        strength=strength,
    )


def on_val(work: Workspace, adapted: MLP, digit: int) -> OnVal | None:
    """What `adapted` changes on `val`; None where there is none."""
    val = work.dataset.val
    if not len(val):
        return None
    before, after = work.logits_of_stack(())["val"], logits_of(adapted, val.images)
    found = compare({"val": before}, {"val": after}, {"val": val.labels}, digit)["val"]
    errors = found.before.errors, found.after.errors
    return OnVal(images=len(val), before=errors[0], after=errors[1], fixed=found.fixed, broken=found.broken)


def most_wrong(drawings: Drawings, before: torch.Tensor) -> int:
    """The digit with the most wrong drawings; of equals, the one with the most drawings, then the smallest.

    Args:
        before: bool (K,), which are right with the base.
    """
    wrong, labels = torch.bincount(drawings.labels.cpu()[~before], minlength=10).tolist(), drawings.counts
    return max(range(10), key=lambda digit: (wrong[digit], labels[digit], -digit))


def unlike_price(work: Workspace, saved: Artifact, adapted: MLP) -> Iterator[str]:
    """What in the price of a taught adapter does not follow from its drawings and weights, a clause each.

    How those were judged that an adapter had not seen cannot be found again without training anew.

    Args:
        adapted: the base with it.

    Raises:
        AlteredError: its drawings are not those that were saved.
    """
    price = saved.tuning.price
    if price is None:
        return
    drawings = load_drawings(saved)
    if drawings.counts != price.drawings:
        yield "its drawings are not those that its price counts"
        return
    before = right(work.base, drawings)
    if saved.tuning.digit != most_wrong(drawings, before):
        yield "its digit is not the one of which most drawings were wrong"
    found = [int(before.sum()), int(right(adapted, drawings).sum())]
    if found != [price.before, price.after]:
        yield f"of its drawings, {found[0]} → {found[1]} are right, and not {price.before} → {price.after}"
    if price.val != on_val(work, adapted, saved.tuning.digit):
        yield "what its price says of val is not what its weights do"
