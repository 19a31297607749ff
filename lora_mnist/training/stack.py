"""Many fine-tunings of one base at once, on one device, by the same loop as one (see `lora.stack`).

Every job draws its A, its batches and its warps as it would alone, so the two differ in the order of sums only.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch

from lora_mnist.datasets.dataset import Dataset
from lora_mnist.lora.stacked import stack, unstack
from lora_mnist.settings.config import FinetuneSettings, Settings
from lora_mnist.training.loop import TrainingData, learning_rates, minimise
from lora_mnist.training.model import MLP
from lora_mnist.training.optimizer import StackedAdam
from lora_mnist.training.progress import SILENT, Progress
from lora_mnist.training.train import drawn, inject_seeded

ALIKE = (  # what the jobs of one stack have in common; the rest of a recipe may differ
    *("rank", "alpha", "rank_pattern", "alpha_pattern", "rslora", "targets"),
    *("batch_size", "steps", "optimizer", "schedule", "weight_decay", "label_smoothing"),
)
NAME = "job"  # of the adapter in the network of a job


@dataclass(frozen=True)
class Tuned:
    """What became of one job: the base with its adapter, which is `finite` unless the learning rate was too high."""

    network: MLP
    finite: bool


def can_be_stacked(recipe: FinetuneSettings) -> bool:
    """Whether a stack draws all of its random numbers alike: those of dropout it cannot."""
    return recipe.dropout == 0


def shape_of(recipe: FinetuneSettings) -> str:
    """Jobs with the same one fit into one stack."""
    moved = recipe.moves is not None
    return recipe.model_dump_json(include=set(ALIKE)) + f" moved: {moved}"


def train_stack(
    start: MLP,
    jobs: Sequence[tuple[int, Settings]],
    dataset: Dataset,
    progress: Progress = SILENT,
    uncertainty: torch.Tensor | None = None,
) -> list[Tuned]:
    """Fine-tune `start` once for every job, all of them in the same steps.

    Args:
        start: the base. It is not changed, and the networks that come out share its tensors.
        jobs: digit and settings of each, of the same `shape_of`.
        uncertainty: those of `start`, if a job asks for them (see `uncertainty_of`).

    Raises:
        UsageError: the settings of a job are none to draw batches by.
    """
    networks = [_prepared(start, settings) for _, settings in jobs]
    recipes = [settings.finetune for _, settings in jobs]
    data = _together([drawn(digit, job.finetune, job.seed, dataset, uncertainty) for digit, job in jobs])
    stacked = stack(networks, NAME)
    weights = [parameter for parameter in stacked.parameters() if parameter.requires_grad]
    recipe = recipes[0]
    rates = [*map(attrgetter("learning_rate"), recipes)]
    optimizer = StackedAdam(weights, rates, recipe.weight_decay, decoupled=recipe.optimizer == "adamw")
    schedule = learning_rates(recipe.model_copy(update={"learning_rate": 1.0}), recipe.steps)
    losses = torch.zeros(recipe.steps, device=data.images.device)
    with progress.of(f"fine-tuning {len(jobs)} at once", losses) as show:
        minimise(stacked, data, optimizer, schedule, losses, show)
    unstack(stacked, networks, NAME)
    finite = torch.stack([weight.isfinite().flatten(1).all(1) for weight in weights]).all(0).tolist()
    return [Tuned(network, good) for network, good in zip(networks, finite, strict=True)]


def _prepared(start: MLP, settings: Settings) -> MLP:
    """A network with the adapter of one job as it begins; its base is that of `start`, not a copy."""
    network = copy.deepcopy(start, {id(parameter): parameter for parameter in start.parameters()})
    inject_seeded(network, NAME, settings.finetune, settings.seed)
    return network.eval()


def _together(jobs: Sequence[TrainingData]) -> TrainingData:
    first = jobs[0]
    warps = [job.warps for job in jobs if job.warps is not None]
    offsets = [job.offsets for job in jobs if job.offsets is not None]
    return TrainingData(
        first.images,
        first.labels,
        torch.stack([job.batches for job in jobs]),
        torch.stack(warps) if warps else None,
        torch.stack(offsets) if offsets else None,
        first.smoothing,
    )
