"""What all jobs share: the images, and every base with what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from lora_mnist.datasets.dataset import Dataset, Split
from lora_mnist.evaluation.metrics import held_out_logits
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.training.model import MLP
from lora_mnist.training.train import uncertainty_of

HELD_OUT = " held out"  # after the hash of images that were halved


@dataclass(frozen=True)
class Base:
    """A base that jobs start from.

    Attributes:
        fingerprint: SHA-256 of its weights.
        logits: (N, 10) fp32 on the CPU of `val`, where there is one, and `test`.
        uncertainty: float64 (N,), how unsure it is of every training image (see `uncertainty_of`); None if no job asks.
    """

    fingerprint: str
    network: MLP
    logits: Mapping[str, torch.Tensor]
    uncertainty: torch.Tensor | None


@dataclass(frozen=True)
class SweepContext:
    """The images, on the device where the jobs run, and the bases by their key.

    Attributes:
        held_out: whether `val` and `test` are halves of the images that were held out of the training (see `halved`).
    """

    dataset: Dataset
    bases: Mapping[str, Base]
    held_out: bool = False

    def to(self, device: torch.device) -> "SweepContext":
        """On another device; itself if it is there."""
        dataset = self.dataset
        if dataset.train.images.device == device:
            return self
        splits = (dataset.train, dataset.val, dataset.test)
        moved = [Split(split.images.to(device), split.labels.to(device)) for split in splits]
        bases = {
            key: Base(one.fingerprint, one.network.to(device), one.logits, one.uncertainty)
            for key, one in self.bases.items()
        }
        return replace(self, dataset=Dataset(dataset.name, dataset.sha256, *moved), bases=bases)


def base_of(work: Workspace, hard_examples: bool, halves: Dataset | None = None) -> Base:
    """What jobs need of the base of a run.

    Args:
        hard_examples: whether a job draws images by how unsure the base is of them.
        halves: the `halved` images, if they are counted on.
    """
    network = work.base.requires_grad_(False).eval()
    uncertainty = uncertainty_of(network, work.dataset.train.images) if hard_examples else None
    logits = work.logits_of_stack(()) if halves is None else held_out_logits(network, halves)
    return Base(work.fingerprint.sha256, network, logits, uncertainty)


def halved(dataset: Dataset, seed: int) -> Dataset:
    """One half of `val` as `val`, the other in place of `test`, which nobody looks at: for a search."""
    order = torch.randperm(len(dataset.val), generator=torch.Generator().manual_seed(seed))
    halves = [Split(dataset.val.images[half], dataset.val.labels[half]) for half in order.chunk(2)]
    return Dataset(dataset.name, dataset.sha256 + HELD_OUT, dataset.train, *halves)
