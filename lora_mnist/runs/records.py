"""What the stages store as JSON, apart from what `proof` and `evaluate` return ready-made."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch

from lora_mnist import SCHEMA, __version__
from lora_mnist.datasets.dataset import Dataset
from lora_mnist.evaluation.metrics import summarise
from lora_mnist.lora.seal import Seal
from lora_mnist.settings.config import Settings


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
