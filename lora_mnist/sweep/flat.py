"""A world as tensors by name, which other processes can map from a file or from shared memory without a copy."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lora_mnist.datasets.dataset import Dataset, Split
from lora_mnist.settings.config import KnownDataset
from lora_mnist.settings.strict import Count, Document, Many
from lora_mnist.sweep.world import Base, SweepContext
from lora_mnist.training.model import MLP

FACTS = "lora_mnist"
SPLITS = ("train", "val", "test")


class BaseFacts(Document):
    """What of a base is no tensor."""

    fingerprint: str
    hidden: Many[Count]


class Facts(Document):
    """What of a world is no tensor; bases by their key."""

    dataset: KnownDataset
    sha256: str
    held_out: bool
    bases: dict[str, BaseFacts]


def flatten(world: SweepContext) -> tuple[Facts, dict[str, torch.Tensor]]:
    """Everything in `world`; the tensors are not copied."""
    tensors: dict[str, torch.Tensor] = {}
    for name in SPLITS:
        split: Split = getattr(world.dataset, name)
        tensors |= {f"{name}/images": split.images, f"{name}/labels": split.labels}
    for key, base in world.bases.items():
        tensors |= {f"{key}/weights/{name}": weight for name, weight in base.network.state_dict().items()}
        tensors |= {f"{key}/logits/{split}": logits for split, logits in base.logits.items()}
        tensors |= {} if base.uncertainty is None else {f"{key}/uncertainty": base.uncertainty}
    bases = {
        key: BaseFacts(fingerprint=base.fingerprint, hidden=base.network.hidden) for key, base in world.bases.items()
    }
    named = {"dataset": world.dataset.name, "sha256": world.dataset.sha256, "held_out": world.held_out}
    return Facts.model_validate(named | {"bases": bases}), tensors


def restore(facts: Facts, tensors: Mapping[str, torch.Tensor]) -> SweepContext:
    """The world that was flattened, made of these very tensors."""
    splits = [Split(tensors[f"{name}/images"], tensors[f"{name}/labels"]) for name in SPLITS]
    bases = {key: _base(key, one, tensors) for key, one in facts.bases.items()}
    return SweepContext(Dataset(facts.dataset, facts.sha256, *splits), bases, facts.held_out)


def save(world: SweepContext, path: Path) -> None:
    """Write it into a file."""
    facts, tensors = flatten(world)
    save_file(tensors, path, {FACTS: facts.model_dump_json()})


def load(path: Path) -> SweepContext:
    """A world in a file of `save`, on the CPU: mapped, so that processes that do the same share its memory."""
    with safe_open(path, framework="pt") as file:
        facts = Facts.model_validate_json(file.metadata()[FACTS])
        names = list(file.keys())  # it is no dict, and iterates over nothing
        return restore(facts, {name: file.get_tensor(name) for name in names})


def _base(key: str, facts: BaseFacts, tensors: Mapping[str, torch.Tensor]) -> Base:
    with torch.device("meta"):
        network = MLP(facts.hidden)
    weights = {name: tensors[f"{key}/weights/{name}"] for name in network.state_dict()}
    network.load_state_dict(weights, assign=True)
    logits = {split: tensors[f"{key}/logits/{split}"] for split in SPLITS if f"{key}/logits/{split}" in tensors}
    return Base(facts.fingerprint, network.requires_grad_(False).eval(), logits, tensors.get(f"{key}/uncertainty"))
