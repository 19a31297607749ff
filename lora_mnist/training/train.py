"""Settings and a data set → a trained base, or a base with a trained adapter. The seed decides every bit of both."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from lora_mnist.datasets.dataset import Dataset, Split, thin_out
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.model import inject
from lora_mnist.lora.stacked import stack, unstack
from lora_mnist.settings.config import LORA_SETTINGS, AdapterSettings, FinetuneSettings, Settings
from lora_mnist.training.augment import draw_warps
from lora_mnist.training.batches import epoch_batches, mixed_batches, prior_offsets
from lora_mnist.training.loop import History, TrainingData, train
from lora_mnist.training.model import MLP, logits_of
from lora_mnist.training.progress import SILENT, Progress

NAME = "job"  # of the adapter in every network of a stack
ALIKE = (  # what the jobs of one stack have in common; the rest of a recipe may differ
    *("rank", "alpha", "rank_pattern", "alpha_pattern", "rslora", "targets"),
    *("batch_size", "steps", "optimizer", "schedule", "weight_decay", "label_smoothing"),
)


def train_base(
    settings: Settings, dataset: Dataset, device: torch.device, progress: Progress = SILENT
) -> tuple[MLP, History]:
    """A new base and its history."""
    torch.manual_seed(settings.seed)
    # initialised on the CPU, so that every device starts the same
    model = MLP(**settings.model.model_dump()).to(device)
    recipe, seen = settings.pretrain, dataset.train
    if recipe.rare_digit != "none":  # fine-tuning sees all of its images
        seen = thin_out(seen, recipe.rare_digit, recipe.rare_share, settings.data.split_seed)
    batches = epoch_batches(len(seen), recipe.batch_size, recipe.epochs, torch.default_generator)
    data = TrainingData(seen.images, seen.labels, batches)
    return model, train(model, data, recipe, "pretraining", progress, val=val_sample(dataset.val, batches))


def train_on_digit(
    start: MLP,
    name: str | None,
    digit: int,
    settings: Settings,
    dataset: Dataset,
    progress: Progress = SILENT,
    uncertainty: torch.Tensor | None = None,
) -> tuple[MLP, History]:
    """A copy of `start` (a base, with or without adapters), fine-tuned; and its history.

    Args:
        name: of the adapter that is trained; None trains all weights, on the batches that an adapter would see.
        uncertainty: (N,), how unsure `start` is of each training image (see `least_confidence`); None computes it.
    """
    recipe = settings.finetune
    if name is None:
        model = copy.deepcopy(start).requires_grad_(True)
        recipe = recipe.model_copy(update={"learning_rate": recipe.full_learning_rate})
    else:
        model = with_adapter(start, name, recipe, settings.seed)
    if recipe.hard_examples and uncertainty is None:
        uncertainty = least_confidence(model, dataset.train.images)  # still `start`: lora_B is 0
    data = finetuning_data(digit, settings, dataset, uncertainty)
    return model, train(
        model, data, recipe, f"fine-tuning {digit}", progress, val=val_sample(dataset.val, data.batches)
    )


def val_sample(val: Split, batches: torch.Tensor) -> Split:
    """Images of `val` to measure on ten times while `batches` are trained on: 1,000 of them at most, and no more than
    take about 3 % of that time, but 100.
    """
    count = min(len(val), 1000, max(100, batches.numel() // 128))
    chosen = torch.linspace(0, max(0, len(val) - 1), count).long()  # evenly, as they may lie in the order of digits
    return Split(val.images[chosen], val.labels[chosen])


def train_on_drawings(
    base: MLP,
    name: str,
    drawings: Split,
    settings: Settings,
    dataset: Dataset,
    progress: Progress = SILENT,
    uncertainty: torch.Tensor | None = None,
) -> tuple[MLP, History]:
    """A copy of `base` with an adapter `name`, trained on `drawings` beside training images; and its history.

    Images are drawn by `uncertainty` (N,), how unsure `base` is of each (see `least_confidence`), or alike if it is
    None. Raises UsageError if the share of a batch rounds to no drawing at all.
    """
    recipe, known = settings.teach, dataset.train
    adapted = with_adapter(base, name, recipe, settings.seed)
    images = torch.cat([known.images, drawings.images.to(known.images.device)])
    labels = torch.cat([known.labels, drawings.labels.to(known.labels.device)])
    is_drawing = torch.arange(len(labels)) >= len(known)
    weights = None
    if uncertainty is not None:
        weights = torch.cat([uncertainty**recipe.hard_examples, uncertainty.new_ones(len(drawings))])
    generator = torch.Generator().manual_seed(settings.seed)
    batches = mixed_batches(is_drawing, recipe.share, recipe.batch_size, recipe.steps, generator, weights, "share")
    data = _augmented(Split(images, labels), batches, generator, recipe)
    return adapted, train(adapted, data, recipe, "teaching", progress)


def shape_of(recipe: FinetuneSettings) -> str:
    """Jobs fit into one stack if this is the same for all of them."""
    return recipe.model_dump_json(include=set(ALIKE)) + f" moved: {recipe.moves is not None}"


def train_stack(
    start: MLP,
    jobs: Sequence[tuple[int, Settings]],
    dataset: Dataset,
    progress: Progress = SILENT,
    uncertainty: torch.Tensor | None = None,
) -> list[MLP]:
    """Fine-tune `start` once for every job, all of them in the same steps of one loop (see `lora.stacked`).

    Every job draws its A, its batches and its warps as it would alone, so the results differ by the order of sums only.
    The weights of one whose learning rate was too high are not finite.

    Args:
        start: the base. It is not changed, and the networks that come out share its tensors.
        jobs: digit and settings of each, of the same `shape_of`, without dropout.
        uncertainty: (N,), how unsure `start` is of each training image (see `least_confidence`), if a job asks.

    Raises UsageError if the settings of a job are none to draw batches by.
    """
    networks = [with_adapter(start, NAME, job.finetune, job.seed, share_base=True).eval() for _, job in jobs]
    stacked = stack(networks, NAME)
    assert isinstance(stacked, MLP)
    parts = [finetuning_data(digit, job, dataset, uncertainty) for digit, job in jobs]
    warps = [part.warps for part in parts if part.warps is not None]  # all or none, by `shape_of`
    data = replace(
        parts[0],
        batches=torch.stack([part.batches for part in parts]),  # (steps, batch) each -> (jobs, steps, batch)
        warps=torch.stack(warps) if warps else None,
        offsets=torch.stack([part.offsets for part in parts if part.offsets is not None]),
    )
    common = jobs[0][1].finetune.model_copy(update={"learning_rate": 1.0})  # `rates` are factors on it
    rates = [job.finetune.learning_rate for _, job in jobs]
    train(stacked, data, common, f"fine-tuning {len(jobs)} at once", progress, rates)
    unstack(stacked, networks, NAME)
    return networks


def with_adapter(start: MLP, name: str, recipe: AdapterSettings, seed: int, share_base: bool = False) -> MLP:
    """A copy of `start` with an adapter `name` that does nothing yet, and is all that trains.

    If `share_base`, it has the tensors of `start` itself, so that many of them need little memory.
    """
    shared = {id(parameter): parameter for parameter in start.parameters()} if share_base else {}
    adapted = copy.deepcopy(start, shared)
    torch.manual_seed(seed)  # draws A
    inject(adapted, name, LoRAConfig(**recipe.model_dump(include=set(LORA_SETTINGS), exclude_none=True)))
    return adapted


def finetuning_data(digit: int, settings: Settings, dataset: Dataset, uncertainty: torch.Tensor | None) -> TrainingData:
    """What each step of a fine-tuning sees, as the seed draws it. `uncertainty` counts if `hard_examples` is not 0."""
    # its own generator, so that adapters of every rank, and all weights, are trained on the same batches
    generator, recipe = torch.Generator().manual_seed(settings.seed), settings.finetune
    weights = uncertainty**recipe.hard_examples if recipe.hard_examples and uncertainty is not None else None
    is_digit = dataset.train.labels.cpu() == digit
    batches = mixed_batches(is_digit, recipe.focus, recipe.batch_size, recipe.steps, generator, weights)
    return _augmented(dataset.train, batches, generator, recipe)


def _augmented(
    images: Split, batches: torch.Tensor, generator: torch.Generator, recipe: AdapterSettings
) -> TrainingData:
    """Those images in those batches, with the warps, offsets and smoothing of `recipe`."""
    warps = None
    if recipe.moves:
        warps = draw_warps(recipe.steps, recipe.batch_size, *recipe.moves, generator).to(images.images.device)
    offsets = prior_offsets(images.labels.cpu(), batches, recipe.logit_adjustment)
    return TrainingData(images.images, images.labels, batches, warps, offsets, recipe.label_smoothing)


def least_confidence(model: MLP, images: torch.Tensor) -> torch.Tensor:
    """1 - p with p the probability that `model` gives to the digit it takes an image for, float64 (N,), on the CPU.

    To the power of `hard_examples`, it says how often an image is drawn (uncertainty sampling, "least confident":
    Settles 2009, Active Learning Literature Survey, section 3.1). The label plays no part: by its own probability, an
    image with a wrong label would be the hardest of all, and be drawn over and over. `model` is the one at the start.
    """
    return (1 - logits_of(model, images).double().softmax(1).amax(1)).clamp(min=0)
