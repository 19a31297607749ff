"""What the stages store as JSON, apart from what `proof` and `evaluate` return ready-made."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from lora_mnist import SCHEMA, __version__
from lora_mnist.config import Settings
from lora_mnist.data import Dataset
from lora_mnist.evaluate import compare, counts_of, summarise
from lora_mnist.integrity import Seal
from lora_mnist.significance import mcnemar
from lora_mnist.threshold import shifted_threshold


def evaluation_of(
    dataset: Dataset, sealed: Seal, adapters: Sequence[Mapping[str, Any]], logits: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The document of evaluation.json."""
    return {
        "schema_version": SCHEMA,
        "dataset": {"name": dataset.name, "sha256": dataset.sha256},
        "base_seal": sealed.sha256,
        "adapters": list(adapters),
        "splits": {split: summarise(logits[split], part.labels) for split, part in dataset.held_out.items()},
    }


def record_of_run(
    settings: Settings, dataset: Dataset, sealed: Seal, device: torch.device, seconds: float
) -> dict[str, Any]:
    """The document of run.json."""
    return {
        "schema_version": SCHEMA,
        "settings": settings.model_dump(mode="json"),
        "dataset": {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "train": len(dataset.train),
            "val": len(dataset.val),
            "test": len(dataset.test),
        },
        "base_seal": sealed.sha256,
        "seconds": seconds,
        **environment(device),
    }


def record_of_tuning(
    method: str,
    name: str,
    digit: int,
    settings: Mapping[str, Any],
    parameters: Mapping[str, Any],
    proof: Mapping[str, Any] | None,
    **more: Any,
) -> dict[str, Any]:
    """The document of finetune.json.

    Args:
        method: `lora` (a trained adapter), `full` (all weights trained) or `svd` (an adapter from two networks).
        proof: what `prove` found; None where no adapter is involved.
    """
    return {
        "schema_version": SCHEMA,
        "method": method,
        "name": name,
        "digit": digit,
        "settings": dict(settings),
        "parameters": parameters,
        "proof": proof,
        **more,
    }


@dataclass(frozen=True)
class Twin:
    """What an adapter is compared with: at what strength it was kept (None: not at all), and its logits by split."""

    strength: float | None
    logits: Mapping[str, torch.Tensor]


def analysis_of(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
    digit: int,
    twin: Twin | None = None,
) -> dict[str, Any]:
    """The document of analysis.json: what changed, beside what one shifted logit would have done, and the twin.

    Args:
        before, after: logits (N, 10) by split.
        labels: int64 (N,) by split.
    """
    document = {
        "schema_version": SCHEMA,
        "splits": compare(before, after, labels, digit),
        "threshold": shifted_threshold(before, after, labels, digit),
    }
    if twin is not None:
        splits = {split: _paired(twin.logits[split], after[split], labels[split].cpu(), digit) for split in labels}
        document["twin"] = {"strength": twin.strength, "splits": splits}
    return document


def _paired(twin: torch.Tensor, adapter: torch.Tensor, labels: torch.Tensor, digit: int) -> dict[str, Any]:
    """The twin's counts, and for all images and for those of the digit which of the two got more of them right."""
    right_twin, right_adapter = twin.argmax(1) == labels, adapter.argmax(1) == labels
    pairs = {}
    for key, chosen in (("all", torch.ones_like(right_twin)), ("digit", labels == digit)):
        fixed, broken = (
            int((~right_twin & right_adapter & chosen).sum()),
            int((right_twin & ~right_adapter & chosen).sum()),
        )
        pairs[key] = {"only_adapter_right": fixed, "only_twin_right": broken, "p": mcnemar(fixed, broken)}
    return {**counts_of(twin, labels, digit), **pairs}


def environment(device: torch.device) -> dict[str, Any]:
    """Where it ran, and with what."""
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "lora-mnist": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
    }
