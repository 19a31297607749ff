"""What all jobs share: the images, and every base with what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lora_mnist.datasets.dataset import Dataset, Split
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.training.model import MLP
from lora_mnist.training.train import doubts_of


@dataclass(frozen=True)
class Base:
    """A base that jobs start from.

    Attributes:
        seal: SHA-256 of its weights.
        logits: (N, 10) fp32 on the CPU of `val`, where there is one, and `test`.
        doubts: float64 (N,), how unsure it is of every training image (see `doubts_of`); None if no job asks.
    """

    seal: str
    network: MLP
    logits: Mapping[str, torch.Tensor]
    doubts: torch.Tensor | None


@dataclass(frozen=True)
class World:
    """The images, on the device where the jobs run, and the bases by their key."""

    dataset: Dataset
    bases: Mapping[str, Base]

    def to(self, device: torch.device) -> "World":
        """On another device; itself if it is there."""
        dataset = self.dataset
        if dataset.train.images.device == device:
            return self
        splits = (dataset.train, dataset.val, dataset.test)
        moved = [Split(split.images.to(device), split.labels.to(device)) for split in splits]
        bases = {key: Base(one.seal, one.network.to(device), one.logits, one.doubts) for key, one in self.bases.items()}
        return World(Dataset(dataset.name, dataset.sha256, *moved), bases)


def base_of(work: Workspace, hardness: bool) -> Base:
    """What jobs need of the base of a run.

    Args:
        hardness: whether a job draws images by how unsure the base is of them.
    """
    network = work.base.requires_grad_(False).eval()
    doubts = doubts_of(network, work.dataset.train.images) if hardness else None
    return Base(work.sealed.sha256, network, work.logits_of_stack(()), doubts)
