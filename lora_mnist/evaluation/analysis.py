"""What a repair did, beside what would have needed none, and what the adapter learnt: the document of analysis.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lora_mnist import SCHEMA
from lora_mnist.datasets.dataset import Dataset
from lora_mnist.evaluation.effects import first_directions, layer_effects
from lora_mnist.evaluation.metrics import compare
from lora_mnist.evaluation.results import (
    Analysis,
    Comparison,
    ControlCounts,
    ControlResult,
    Example,
    Guess,
    LayerEffect,
    Pair,
    PairedControl,
    StrengthCurve,
    StrengthPoint,
)
from lora_mnist.evaluation.significance import mcnemar
from lora_mnist.evaluation.strength_curve import Ask, asking, measure_strength_curve
from lora_mnist.evaluation.threshold import shifted_logit, shifted_threshold
from lora_mnist.lora.switching import set_strength
from lora_mnist.training.model import MLP

MOST = 24  # examples of either kind
MOST_WRONG = 2000  # images that the report can show one by one: 1.6 MB on disk


@dataclass(frozen=True)
class Control:
    """What an adapter is compared with: at what strength it was kept (None: not at all), and its logits by split."""

    strength: float | None
    logits: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Learnt:
    """What an adapter does at other strengths, layer by layer, and in the first layer (see `first_directions`)."""

    strength_curve: StrengthCurve
    layers: dict[str, LayerEffect]
    directions: torch.Tensor


def analyse(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
    digit: int,
    control: Control | None = None,
) -> Analysis:
    """What changed on the same images, which of them, and what one shifted logit, or a control, would have done.

    Args:
        before, after: logits (N, 10) by split.
        labels: int64 (N,) by split.
    """
    truth = {split: part.cpu() for split, part in labels.items()}
    beside = None
    if control is not None:
        splits = {split: _beside(part) for split, part in compare(control.logits, after, truth, digit).items()}
        number = shifted_logit(control.logits, after, truth, digit)
        beside = ControlResult(strength=control.strength, splits=splits, threshold=number)
    return Analysis(
        schema_version=SCHEMA,
        splits=compare(before, after, truth, digit),
        threshold=shifted_threshold(before, after, truth, digit),
        examples=changed_images(before["test"], after["test"], truth["test"]),
        control=beside,
    )


def inspect(
    adapted: MLP,
    name: str,
    digit: int,
    dataset: Dataset,
    splits: Mapping[str, Comparison],
    tried: Sequence[StrengthPoint] = (),
    ask: Ask | None = None,
) -> Learnt:
    """What adapter `name` does at other strengths and layer by layer.

    Args:
        adapted: a base with the adapter at strength 1, and those it was trained on top of.
        splits: what it did at strength 1, from `analyse`.
        tried: counts on `val` at other strengths that are known already.
        ask: what it says at a strength; None asks about all images.
    """
    known = {
        split: [
            StrengthPoint(strength=0.0, **dict(comparison.before)),
            StrengthPoint(strength=1.0, **dict(comparison.after)),
        ]
        for split, comparison in splits.items()
    }
    if "val" in known:
        known["val"] += tried
    labels = {split: part.labels for split, part in dataset.held_out.items()}
    strength_curve = measure_strength_curve(ask or asking(adapted, name, dataset.held_out), labels, digit, known)
    set_strength(adapted, name, 1.0)
    of_digit = dataset.test.images[dataset.test.labels == digit]
    return Learnt(strength_curve, layer_effects(adapted, name, of_digit, digit), first_directions(adapted, name))


def changed_images(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor) -> tuple[Example, ...]:
    """The fixed and then the broken images, those first whose true digit's probability changed most; `MOST` of each.

    Args:
        before, after: logits (N, 10).
        labels: int64 (N,).
    """
    index = torch.arange(len(labels))
    predictions = [logits.argmax(1) for logits in (before, after)]
    probabilities = [logits.double().softmax(1)[index, labels] for logits in (before, after)]
    right_before, right_after = (prediction == labels for prediction in predictions)
    swing = probabilities[1] - probabilities[0]

    def guess(when: int, i: int) -> Guess:
        return Guess(prediction=int(predictions[when][i]), probability=float(probabilities[when][i]))

    kinds: dict[Literal["fixed", "broken"], torch.Tensor] = {
        "fixed": ~right_before & right_after,
        "broken": right_before & ~right_after,
    }
    rows = []
    for kind, chosen in kinds.items():
        places = index[chosen]
        for i in places[swing[chosen].abs().sort(descending=True, stable=True).indices][:MOST].tolist():
            rows.append(Example(index=i, kind=kind, label=int(labels[i]), before=guess(0, i), after=guess(1, i)))
    return tuple(rows)


def wrong_images(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which images are wrong before or after, in ascending order; `MOST_WRONG` at the most.

    Of more, those are left out that go the most trodden ways (true digit, what it was taken for, what it is taken for),
    so that no way is left without an image.

    Args:
        before, after: logits (N, 10).
        labels: int64 (N,).

    Returns:
        int64 (n,).
    """
    taken = before.argmax(1), after.argmax(1)
    wrong = ((taken[0] != labels) | (taken[1] != labels)).nonzero()[:, 0]
    way, order = (labels * 100 + taken[0] * 10 + taken[1])[wrong].sort(stable=True)
    lengths = way.unique_consecutive(return_counts=True)[1]
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    place = torch.arange(len(way)) - first  # in the queue of its way
    return wrong[order[place.sort(stable=True).indices[:MOST_WRONG]]].sort().values


def pictures(analysis: Analysis, wrong: torch.Tensor, dataset: Dataset) -> dict[str, torch.Tensor]:
    """Test images for the report, uint8 (n, 28, 28): those of `examples`, and the wrong ones with index and label.

    Args:
        wrong: int64 (n,), from `wrong_images`.
    """
    images, labels = dataset.test.images.cpu(), dataset.test.labels.cpu()
    examples = images[[example.index for example in analysis.examples]]
    return {"examples": examples, "wrong": images[wrong], "wrong_index": wrong, "wrong_label": labels[wrong]}


def _beside(control: Comparison) -> ControlCounts:
    """From a comparison of the control with the adapter: its counts, and which of the two alone gets how many right."""
    return ControlCounts(**dict(control.before), all=_only(control.pairs.errors), digit=_only(control.pairs.missed))


def _only(pair: Pair) -> PairedControl:
    p = mcnemar(pair.fixed, pair.broken)
    return PairedControl(only_adapter_right=pair.fixed, only_control_right=pair.broken, p=p)
