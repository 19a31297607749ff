"""Train and evaluate one job, or a stack of jobs at once, in this process. Every engine does its work by this."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from lora_mnist import SCHEMA
from lora_mnist.datasets.dataset import Dataset, Split
from lora_mnist.errors import LoraMnistError, UsageError
from lora_mnist.evaluation.baselines import find_shift, shifted_on_test, shifted_to_miss
from lora_mnist.evaluation.guard import Guard, select_scale
from lora_mnist.evaluation.metrics import compare, counts_of, held_out_logits, require_finite, summarise, weakest_digit
from lora_mnist.evaluation.results import Analysis, Threshold
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.lora import parameter_table, scale_alpha
from lora_mnist.settings.config import Settings
from lora_mnist.sweep.grid import CONTROLS, Job
from lora_mnist.sweep.rows import Failure, Round, Row, SplitCounts
from lora_mnist.training.model import MLP
from lora_mnist.training.progress import CallbackProgress
from lora_mnist.training.train import NAME, shape_of, train_on_digit, train_stack

Outcome = Row | Failure

SPLITS = ("train", "val", "test")
TOO_HIGH = "Choose a lower --learning-rate."
FAILURES = (LoraMnistError, MemoryError, RuntimeError)  # of torch: too little memory, a product that cannot be
GUARDED_PASSES = 7  # over `val` by a job with a guard: six scales, and the one that is kept

STACK_IMAGES = 2048  # in one step of a stack: more is no faster, and its activations take 80 MB
GPU_STACK_IMAGES = 16_384  # on a GPU, which is no longer idle between products then (docs/sweep.md)
STACK_BYTES = 512 << 20  # of A and B, their gradients and Adam's moments in one stack
COPIES = 6  # of A and B that a stack holds: two of each weight, its gradient, two moments, and one in passing
FEW = 50  # jobs: they are done sooner than another process has started, and in smaller stacks a job takes longer


@dataclass(frozen=True)
class Base:
    """A base that jobs start from."""

    fingerprint: str
    network: MLP
    logits: Mapping[str, torch.Tensor]  # (N, 10) fp32 on the CPU of `val`, where there is one, and `test`
    uncertainty: torch.Tensor | None  # float64 (N,) of the training images (see `least_confidence`), if a job asks


@dataclass(frozen=True)
class Trained:
    """What the training of a job came to."""

    logits: Mapping[str, torch.Tensor]  # (N, 10) fp32 on the CPU, by split, of what is kept; the base's if nothing is
    scale: float | None  # that the guard selected; None: none, and nothing is kept
    parameters: int  # how many numbers were trained
    rounds: tuple[Round, ...] = ()


@dataclass(frozen=True)
class SweepContext:
    """What all jobs share: the images, on the device where the jobs run, and the bases by their key."""

    dataset: Dataset
    bases: Mapping[str, Base]
    held_out: bool = False  # whether `val` and `test` are halves of the images held out of the training

    def flatten(self) -> dict[str, Any]:
        """The same as tensors, numbers and text by name, which other processes can map without a copy."""
        flat: dict[str, Any] = {"dataset": self.dataset.name, "sha256": self.dataset.sha256, "held_out": self.held_out}
        flat["bases"] = {key: (base.fingerprint, base.network.architecture) for key, base in self.bases.items()}
        for split in SPLITS:
            part: Split = getattr(self.dataset, split)
            flat |= {f"{split}/images": part.images, f"{split}/labels": part.labels}
        for key, base in self.bases.items():
            flat[f"{key}/uncertainty"] = base.uncertainty
            flat |= {f"{key}/weights/{name}": weight for name, weight in base.network.state_dict().items()}
            flat |= {f"{key}/logits/{split}": logits for split, logits in base.logits.items()}
        return flat


def restore(flat: Mapping[str, Any], device: str = "cpu") -> SweepContext:
    """The context that was flattened, made of these very tensors if they are on `device` already."""
    splits = [Split(flat[f"{split}/images"].to(device), flat[f"{split}/labels"].to(device)) for split in SPLITS]
    dataset, bases = Dataset(flat["dataset"], flat["sha256"], *splits), {}
    for key, (fingerprint, architecture) in flat["bases"].items():
        with torch.device("meta"):  # takes no memory
            network = MLP(**architecture).requires_grad_(False).eval()
        weights = {name: flat[f"{key}/weights/{name}"].to(device) for name in network.state_dict()}
        network.load_state_dict(weights, assign=True)
        logits = {split: flat[f"{key}/logits/{split}"] for split in dataset.held_out}
        bases[key] = Base(fingerprint, network, logits, flat[f"{key}/uncertainty"])
    return SweepContext(dataset, bases, flat["held_out"])


def run_jobs(
    context: SweepContext, jobs: Sequence[Job], show: Callable[[float], None] = lambda done: None
) -> list[Outcome]:
    """One outcome for each of `jobs`, which start from one base; several are trained as a stack.

    What fails is an outcome too. If a stack as a whole fails, its jobs are done one by one, so that each fails, or
    not, by itself.

    Args:
        show: called with how many jobs' work is done by now.
    """
    base, dataset, first = context.bases[jobs[0].base], context.dataset, jobs[0].settings.finetune
    # the share of training in a job's work, by images that pass through the network; a step costs three passes
    in_training = 3 * first.steps * first.batch_size
    in_evaluation = len(dataset.test) + len(dataset.val) * (1 if first.guard == "none" else GUARDED_PASSES)
    share = in_training / (in_training + in_evaluation)

    networks: list[MLP | None] = [None] * len(jobs)
    started, seconds = time.perf_counter(), 0.0
    if len(jobs) > 1:
        progress = CallbackProgress(tell=lambda now: show(len(jobs) * share * now.step / now.steps), steps=first.steps)
        with suppress(*FAILURES):
            given = [(job.digit, settings_of(job, dataset)) for job in jobs]
            networks = [*train_stack(base.network, given, dataset, progress, base.uncertainty)]
            seconds = (time.perf_counter() - started) / len(jobs)

    outcomes: list[Outcome] = []
    for job, network in zip(jobs, networks, strict=True):
        outcomes.append(_run(context, job, network, seconds))
        show(share * len(jobs) + (1 - share) * len(outcomes))
    return outcomes


def failure_of(context: SweepContext, job: Job, cause: str) -> Failure:
    """The outcome of a job that failed."""
    key = job.key(context.bases[job.base].fingerprint, context.dataset.sha256)
    return Failure(key=key, digit=job.digit, rank=job.rank, seed=job.settings.seed, cause=cause)


def _run(context: SweepContext, job: Job, stacked: MLP | None = None, seconds: float = 0.0) -> Outcome:
    """Args: stacked: what a stack has made of the job, in `seconds`; None trains it here."""
    started = time.perf_counter()
    base, dataset, settings, digit = context.bases[job.base], context.dataset, job.settings, job.digit
    try:
        trained = _train(job, base, dataset, stacked)
    except FAILURES as error:
        return failure_of(context, job, str(error) or type(error).__name__)
    labels = {split: part.labels.cpu() for split, part in dataset.held_out.items()}
    logits = trained.logits
    shifted = find_shift(base.logits, logits, labels, digit)
    on_test = shifted_on_test(base.logits, logits, labels, digit)
    splits, threshold = compare(base.logits, logits, labels, digit), Threshold(**dict(shifted), curve=())
    analysis = Analysis(
        schema_version=SCHEMA, splits=splits, threshold=threshold, threshold_on_test=on_test, examples=()
    )
    return Row(
        key=job.key(base.fingerprint, dataset.sha256),
        base=base.fingerprint,
        dataset=dataset.name,
        data=settings.data,
        model=settings.model,
        pretrain=settings.pretrain,
        held_out=context.held_out,
        method=job.method,
        digit=digit,
        rank=job.rank,
        seed=settings.seed,
        settings=settings.finetune.model_copy(update={"name": None}),
        scale=trained.scale,
        parameters=trained.parameters,
        before=split_counts(base.logits, labels, digit),
        after=split_counts(logits, labels, digit),
        threshold=shifted.splits,
        threshold_on_test=on_test.splits["test"],
        shifted=shifted_to_miss(logits, labels, digit) if job.method in CONTROLS else (),
        rounds=trained.rounds,
        verdict=None if trained.scale is None else verdict_of(analysis, digit).kind,
        seconds=round(seconds + time.perf_counter() - started, 4),
        engine="alone" if stacked is None else "stacked",
    )


def settings_of(job: Job, dataset: Dataset) -> Settings:
    """What an adapter or a control is trained with: a control sees the digit as often as it is among the images."""
    if job.method not in CONTROLS:
        return job.settings
    uniform = {"hard_examples": 0.0} if job.method == "control" else {}
    share = float((dataset.train.labels == job.digit).float().mean())
    return job.with_finetune(focus=share, **uniform).settings


def _train(job: Job, base: Base, dataset: Dataset, network: MLP | None) -> Trained:
    """Train a job, unless a stack has made a `network` of it, and select its scale as `finetune` does."""
    if job.method == "rounds":
        return _train_rounds(job, base, dataset)
    if job.method == "full":  # on the batches that an adapter would see, without a guard: what one could reach
        network, _ = train_on_digit(base.network, None, job.digit, job.settings, dataset, uncertainty=base.uncertainty)
        return Trained(_logits_of(network, dataset), 1.0, sum(weight.numel() for weight in network.parameters()))
    if network is None:
        settings = settings_of(job, dataset)
        network, _ = train_on_digit(base.network, NAME, job.digit, settings, dataset, uncertainty=base.uncertainty)
    elif not all(bool(weight.isfinite().all()) for weight in network.parameters() if weight.requires_grad):
        raise UsageError("A weight became NaN or infinite.", TOO_HIGH)
    return _select(network, NAME, Guard(job.settings.finetune.guard), base.logits, dataset, job.digit)


def _train_rounds(job: Job, base: Base, dataset: Dataset) -> Trained:
    """Repair the digit that is weakest, then on top the one that is weakest then, and so on, as `run --rounds` does."""
    network, logits, rounds = base.network, base.logits, list[Round]()
    scale, parameters = None, 0
    for number in range(job.rounds):
        digit, name = weakest_digit(logits["val"], dataset.val.labels), f"round{number + 1}"
        network, _ = train_on_digit(network, name, digit, job.settings, dataset)
        # one more adapter has to save at least one image
        guard = Guard(job.settings.finetune.guard, gain=1 if number else 0)
        found = _select(network, name, guard, logits, dataset, digit)
        before, after = (counts_of(one["test"], dataset.test.labels, digit) for one in (logits, found.logits))
        rounds.append(Round(digit=digit, scale=found.scale, before=before, after=after))
        if found.scale is None:
            break
        logits, scale, parameters = found.logits, found.scale, parameters + found.parameters
    return Trained(logits, scale, parameters, tuple(rounds))


def _select(
    network: MLP, name: str, guard: Guard, before: Mapping[str, torch.Tensor], dataset: Dataset, digit: int
) -> Trained:
    """Adapter `name` of `network` at the scale that its guard selects; `before` are the logits without it."""
    scale = select_scale(network, name, guard, before.get("val"), dataset.val, digit).scale
    if scale is not None:
        scale_alpha(network, name, scale)
        before = _logits_of(network, dataset)
    return Trained(before, scale, parameter_table(network, name).added)


def _logits_of(network: MLP, dataset: Dataset) -> Mapping[str, torch.Tensor]:
    logits = held_out_logits(network, dataset)
    require_finite(logits, TOO_HIGH)
    return logits


def split_counts(
    logits: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor], digit: int
) -> dict[str, SplitCounts]:
    """What a network does, by split, from its logits (N, 10) and the labels (N,)."""
    found = {}
    for split, truth in labels.items():
        result, counts = summarise(logits[split], truth), counts_of(logits[split], truth, digit)
        found[split] = SplitCounts(**dict(counts), wrong=result.wrong, images=tuple(result.images))
    return found


def adapter_size(context: SweepContext, job: Job) -> int:
    """How many numbers a job's adapter has, at most: every layer at its highest rank."""
    recipe = job.settings.finetune
    rank = max([recipe.rank, *(recipe.rank_pattern or {}).values()])
    weights = (weight for weight in context.bases[job.base].network.parameters() if weight.dim() == 2)  # (out, in)
    return sum(rank * sum(weight.shape) for weight in weights)


def stacks_of(context: SweepContext, jobs: Iterable[Job], processes: int = 1, on_gpu: bool = False) -> list[list[Job]]:
    """Jobs by what can be trained at once, those that cannot by themselves.

    So many `processes` do them at the same time and share the memory; several stacks of one kind become as many for
    each of them, so that none is without work at the end, if there are jobs enough.
    """
    most_images = GPU_STACK_IMAGES if on_gpu else STACK_IMAGES
    groups: dict[tuple[str, str], list[Job]] = {}
    stacks, alone = list[list[Job]](), list[list[Job]]()
    for job in jobs:
        # with dropout, a stack cannot draw its random numbers as each job alone would
        if job.method in ("lora", *CONTROLS) and not job.settings.finetune.dropout:
            groups.setdefault((job.base, shape_of(job.settings.finetune)), []).append(job)
        else:
            alone.append([job])
    for group in groups.values():
        group.sort(key=lambda job: job.settings.finetune.learning_rate)  # one pass of Adam for those of the same rate
        job_bytes = 4 * COPIES * adapter_size(context, group[0])
        most = max(1, min(most_images // group[0].settings.finetune.batch_size, STACK_BYTES // processes // job_bytes))
        count = math.ceil(len(group) / most)
        if count > 1 and len(group) >= processes * FEW:
            count = processes * math.ceil(count / processes)
        size = math.ceil(len(group) / count)
        stacks += [group[start : start + size] for start in range(0, len(group), size)]
    return stacks + alone
