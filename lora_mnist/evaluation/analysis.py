"""What a repair did, compared with what needs no repair, and what the adapter learnt: the document of analysis.json."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch

from lora_mnist import SCHEMA
from lora_mnist.datasets.dataset import Dataset, Split
from lora_mnist.errors import LoRAError, UsageError
from lora_mnist.evaluation.baselines import Control, compare_control, shifted_on_test, shifted_threshold
from lora_mnist.evaluation.guard import logits_at
from lora_mnist.evaluation.metrics import compare, counts_in, summarise
from lora_mnist.evaluation.results import (
    Analysis,
    Example,
    Guess,
    LayerEffect,
    SplitResult,
    StrengthCurve,
    StrengthPoint,
)
from lora_mnist.lora.lowrank import factorise_product
from lora_mnist.lora.model import adapted_layers, updates_of
from lora_mnist.training.model import MLP, logits_of

STRENGTHS = tuple(step / 4 for step in range(7))  # of the strength curve; each takes a forward pass over all images
PICTURES = 8  # directions of the first layer that the report shows
MOST = 24  # examples of either kind
MOST_WRONG = 2000  # images that the report can show one by one: 1.6 MB on disk


def analyse(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
    digit: int,
    control: Control | None = None,
) -> Analysis:
    """What follows from logits (N, 10) on labels (N,) by split alone: the comparison, the shifted threshold, examples,
    and the control if there is one.
    """
    truth = {split: part.cpu() for split, part in labels.items()}
    return Analysis(
        schema_version=SCHEMA,
        splits=compare(before, after, truth, digit),
        threshold=shifted_threshold(before, after, truth, digit),
        threshold_on_test=shifted_on_test(before, after, truth, digit),
        examples=changed_images(before["test"], after["test"], truth["test"]),
        control=compare_control(control, after, truth, digit) if control else None,
    )


def strength_curve(
    adapted: MLP,
    name: str,
    held_out: Mapping[str, Split],
    digit: int,
    known: Mapping[float, Mapping[str, SplitResult]],
) -> StrengthCurve:
    """Counts by strength: in quarters from 0 to 1.5, and on `test` also at the recommended one.

    That is the strength with the fewest errors of all digits on `val`; of equals, the largest. The curve ends where
    logits are no longer finite.

    Args:
        adapted: a network with adapter `name` at strength 1, all on.
        known: by strength and split, the results that need no forward pass.
    """

    def measure(split: str, strengths: Iterable[float]) -> tuple[StrengthPoint, ...]:
        part, points = held_out[split], []
        for strength in sorted(strengths):
            try:
                found = known.get(strength, {}).get(split)
                found = found or summarise(logits_at(adapted, name, strength, part.images), part.labels)
            except (UsageError, LoRAError):  # too large to apply, or for finite logits
                break
            counts = counts_in(found.confusion, digit)
            points.append(StrengthPoint(strength=strength, **dict(counts), wrong=found.wrong))
        return tuple(points)

    measured_on: Literal["val", "test"] = "val" if "val" in held_out else "test"
    splits = {str(measured_on): measure(measured_on, STRENGTHS)}
    recommended = min(reversed(splits[measured_on]), key=lambda one: one.errors).strength
    if measured_on != "test":
        splits["test"] = measure("test", {*STRENGTHS, recommended})
    return StrengthCurve(measured_on=measured_on, recommended=recommended, splits=splits)


def changed_images(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor) -> tuple[Example, ...]:
    """The fixed and then the broken images, from logits (N, 10) on labels (N,); `MOST` of each, those first whose true
    digit's probability changed most.
    """
    index = torch.arange(len(labels))
    guesses = [(logits.argmax(1), logits.double().softmax(1)[index, labels]) for logits in (before, after)]
    (was, p_before), (now, p_after) = guesses
    swing = (p_after - p_before).abs()
    kinds: dict[Literal["fixed", "broken"], torch.Tensor] = {
        "fixed": (was != labels) & (now == labels),
        "broken": (was == labels) & (now != labels),
    }
    rows = []
    for kind, chosen in kinds.items():
        for i in index[chosen][swing[chosen].sort(descending=True, stable=True).indices][:MOST].tolist():
            old, new = (Guess(prediction=int(taken[i]), probability=float(p[i])) for taken, p in guesses)
            rows.append(Example(index=i, kind=kind, label=int(labels[i]), before=old, after=new))
    return tuple(rows)


def wrong_images(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """int64 (n,), ascending: images that logits (N, 10) on labels (N,) get wrong before or after; `MOST_WRONG` at most.

    If there are more, it drops images from the largest groups of (true digit, prediction before, prediction after), so
    that every group keeps some.
    """
    taken = before.argmax(1), after.argmax(1)
    wrong = ((taken[0] != labels) | (taken[1] != labels)).nonzero()[:, 0]
    group, order = (labels * 100 + taken[0] * 10 + taken[1])[wrong].sort(stable=True)
    sizes = group.unique_consecutive(return_counts=True)[1]
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    rank = torch.arange(len(group)) - first  # the first image of every group, then the second of every group, …
    return wrong[order[rank.sort(stable=True).indices[:MOST_WRONG]]].sort().values


def pictures(analysis: Analysis, wrong: torch.Tensor, dataset: Dataset) -> dict[str, torch.Tensor]:
    """Test images for the report, uint8 (n, 28, 28): the examples, and the `wrong` ones with index and label."""
    images, labels = dataset.test.images.cpu(), dataset.test.labels.cpu()
    examples = images[[example.index for example in analysis.examples]]
    return {"examples": examples, "wrong": images[wrong], "wrong_index": wrong, "wrong_label": labels[wrong]}


def layer_effects(adapted: MLP, name: str, images: torch.Tensor, digit: int) -> dict[str, LayerEffect]:
    """Every layer's update ΔW = scaling · B A, by the layer's name.

    Args:
        adapted: a network with adapter `name`, all on.
        images: uint8 (N, 28, 28), all of `digit`.
    """
    effects = {}
    for path, update in updates_of(adapted, name).items():
        weight = adapted_layers(adapted)[path].weight
        *_, kept = factorise_product(update.lora_B * update.scaling, update.lora_A, update.config.rank)
        norm = sum(value**2 for value in kept.singular_values) ** 0.5
        strength, update.strength = update.strength, 0.0
        missed = int((logits_of(adapted, images).argmax(1) != digit).sum())
        update.strength = strength
        effects[path] = LayerEffect(
            relative_norm=norm / float(weight.double().norm()),
            singular_values=kept.singular_values,
            missed_without=missed,
        )
    return effects


def first_directions(adapted: MLP, name: str) -> torch.Tensor:
    """What the first layer's update looks for in an image: the right singular vectors of its B A, strongest first.

    At rank 1 that is `lora_A` itself but for length and sign, which mean nothing; the largest pixel is made positive.

    Returns:
        float32 (up to `PICTURES`, 28, 28); (0, 28, 28) if the first layer is not adapted.
    """
    update = updates_of(adapted, name).get("linear1")
    if update is None:
        return torch.empty(0, 28, 28)
    rank = min(PICTURES, update.config.rank)
    vectors, _, _ = factorise_product(update.lora_B * update.scaling, update.lora_A, rank)  # (rank, 784)
    peak = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))  # (rank, 1)
    return (vectors * peak.sign()).float().view(-1, 28, 28).cpu()
