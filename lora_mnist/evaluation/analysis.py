"""What a repair did, beside what would have needed none, and what the adapter learnt: the document of analysis.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_mnist import SCHEMA
from lora_mnist.datasets.dataset import Dataset
from lora_mnist.evaluation.dial import turn_dial
from lora_mnist.evaluation.effects import first_directions, layer_effects
from lora_mnist.evaluation.examples import changed_images
from lora_mnist.evaluation.metrics import compare
from lora_mnist.evaluation.significance import mcnemar
from lora_mnist.evaluation.threshold import shifted_threshold
from lora_mnist.training.model import MLP


@dataclass(frozen=True)
class Twin:
    """What an adapter is compared with: at what strength it was kept (None: not at all), and its logits by split."""

    strength: float | None
    logits: Mapping[str, torch.Tensor]


def analyse(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
    digit: int,
    twin: Twin | None = None,
) -> dict[str, Any]:
    """What changed on the same images, which of them, and what one shifted logit, or a twin, would have done.

    Args:
        before, after: logits (N, 10) by split.
        labels: int64 (N,) by split.
    """
    truth = {split: part.cpu() for split, part in labels.items()}
    document = {
        "schema_version": SCHEMA,
        "splits": compare(before, after, truth, digit),
        "threshold": shifted_threshold(before, after, truth, digit),
        "examples": changed_images(before["test"], after["test"], truth["test"]),
    }
    if twin is not None:
        splits = {split: _beside(part) for split, part in compare(twin.logits, after, truth, digit).items()}
        document["twin"] = {"strength": twin.strength, "splits": splits}
    return document


def inspect(
    adapted: MLP, name: str, digit: int, dataset: Dataset, analysis: Mapping[str, Any], tried: Sequence[Mapping] = ()
) -> tuple[dict[str, Any], torch.Tensor]:
    """What adapter `name` does at other strengths and layer by layer.

    Args:
        adapted: a base with the adapter at strength 1, and those it was trained on top of.
        analysis: of it, from `analyse`.
        tried: counts on `val` at other strengths that are known already.

    Returns:
        Entries `dial` and `layers` of the document, and the `first_directions`.
    """
    known = {
        split: [{"strength": 0.0, **part["before"]}, {"strength": 1.0, **part["after"]}]
        for split, part in analysis["splits"].items()
    }
    if "val" in known:
        known["val"] += tried
    of_digit = dataset.test.images[dataset.test.labels == digit]
    learnt = {
        "dial": turn_dial(adapted, name, dataset.held_out, digit, known),
        "layers": layer_effects(adapted, name, of_digit, digit),
    }
    return learnt, first_directions(adapted, name)


def pictures(analysis: Mapping[str, Any], dataset: Dataset) -> torch.Tensor:
    """The test images of `examples`, uint8 (n, 28, 28)."""
    return dataset.test.images.cpu()[[example["index"] for example in analysis["examples"]]]


def _beside(twin: Mapping[str, Any]) -> dict[str, Any]:
    """From a comparison of the twin with the adapter: its counts, and which of the two alone gets how many right."""
    pairs = {}
    for key, of in (("all", "errors"), ("digit", "missed")):
        fixed, broken = twin["pairs"][of]["fixed"], twin["pairs"][of]["broken"]
        pairs[key] = {"only_adapter_right": fixed, "only_twin_right": broken, "p": mcnemar(fixed, broken)}
    return {**twin["before"], **pairs}
