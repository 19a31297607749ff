"""Jobs → outcomes, in this process: one by one, or a stack of them at once. Every engine does its work by this."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from lora_mnist.datasets.dataset import Dataset
from lora_mnist.errors import LoraMnistError, UsageError
from lora_mnist.lora.model import parameter_table
from lora_mnist.settings.config import Settings
from lora_mnist.sweep.grid import CONTROLS, Job
from lora_mnist.sweep.judging import TOO_HIGH, Judge, Judgement
from lora_mnist.sweep.rounds import repaired_in_rounds
from lora_mnist.sweep.rows import Failure, Row
from lora_mnist.sweep.world import Base, SweepContext
from lora_mnist.training.progress import Progress
from lora_mnist.training.stack import NAME, Tuned, can_be_stacked, shape_of, train_stack
from lora_mnist.training.train import train_adapter, train_all_weights

Outcome = Row | Failure

FAILURES = (LoraMnistError, MemoryError, RuntimeError)  # of torch: too little memory, a product that cannot be
TRIED = 7  # forward passes of a guarded job over `val`: six strengths, and the one that is kept

ROWS = 2048  # images in one step of a stack: more is no faster, and its activations take 80 MB
GPU_ROWS = 16_384  # on a GPU, which is no longer idle between products then (docs/sweep.md)
STACK_BYTES = 512 << 20  # of A and B, their gradients and Adam's moments in one stack
FEW = 50  # jobs: they are done sooner than another process has started, and in smaller stacks a job takes longer
COPIES = 6  # of A and B that a stack holds: two of each weight, its gradient, two moments, and one in passing


@dataclass(frozen=True)
class Within(Progress):
    """The training of a stack as a part of the sweep, in which it is shown.

    Attributes:
        told: of how many jobs the work is done, before each step.
        jobs: how many jobs' work the training is.
    """

    told: Callable[[float], None] = lambda jobs: None
    jobs: float = 0.0

    @contextmanager
    def of(self, description: str, losses: torch.Tensor) -> Iterator[Callable[[int], None]]:
        """Tell it in jobs."""
        yield lambda done: self.told(self.jobs * done / len(losses))


class Worker:
    """Does jobs in this process. It remembers what it made for the base of its last job."""

    def __init__(self, world: SweepContext):
        self.world = world
        self._judge: tuple[str, Judge] | None = None

    def do(self, jobs: Sequence[Job], told: Callable[[float], None] = lambda jobs: None) -> list[Outcome]:
        """One outcome for each of `jobs`, which start from one base; several are trained as a stack.

        What fails is an outcome too. If a stack as a whole fails, its jobs are done one by one, so that each fails, or
        not, by itself.

        Args:
            told: of how many jobs the work is done by now.
        """
        if len(jobs) == 1:
            return [self._alone(jobs[0])]
        base, share = self.world.bases[jobs[0].base], self._share_of_training(jobs[0])
        started = time.perf_counter()
        try:
            given = [(job.digit, settings_of(job, self.world.dataset)) for job in jobs]
            progress = Within(told=told, jobs=share * len(jobs))
            tuned = train_stack(base.network, given, self.world.dataset, progress, base.uncertainty)
        except FAILURES:
            return [self._alone(job) for job in jobs]
        seconds = (time.perf_counter() - started) / len(jobs)
        outcomes = []
        for job, one in zip(jobs, tuned, strict=True):
            outcomes.append(self._judged(job, one, seconds))
            told(share * len(jobs) + (1 - share) * len(outcomes))
        return outcomes

    def _share_of_training(self, job: Job) -> float:
        """Of the work of a job, by the images that pass through the network: three times where it trains."""
        tuning, dataset = job.settings.finetune, self.world.dataset
        trained = 3 * tuning.steps * tuning.batch_size
        judged = len(dataset.test) + len(dataset.val) * (1 if tuning.guard == "none" else TRIED)
        return trained / (trained + judged)

    def _alone(self, job: Job) -> Outcome:
        return self._outcome(job, self._train_alone, 0.0, "alone")

    def _train_alone(self, job: Job, base: Base) -> tuple[Judgement, int]:
        judge, dataset = self._judge_of(job), self.world.dataset
        if job.method == "full":
            whole, _ = train_all_weights(base.network, job.digit, job.settings, dataset, uncertainty=base.uncertainty)
            return judge.whole(whole, job.digit), sum(weight.numel() for weight in whole.parameters())
        if job.method == "rounds":
            return repaired_in_rounds(job, judge)
        settings = settings_of(job, dataset)
        network, _ = train_adapter(base.network, NAME, job.digit, settings, dataset, uncertainty=base.uncertainty)
        count = parameter_table(network, NAME).added
        return judge.adapter(network, NAME, job.digit, job.settings.finetune.guard), count

    def _judged(self, job: Job, tuned: Tuned, seconds: float) -> Outcome:
        def judged(job: Job, base: Base) -> tuple[Judgement, int]:
            if not tuned.finite:
                raise UsageError("A weight became NaN or infinite.", TOO_HIGH)
            count = parameter_table(tuned.network, NAME).added
            judge = self._judge_of(job)
            return judge.adapter(tuned.network, NAME, job.digit, job.settings.finetune.guard), count

        return self._outcome(job, judged, seconds, "stacked")

    def _outcome(
        self, job: Job, work: Callable[[Job, Base], tuple[Judgement, int]], seconds: float, engine: str
    ) -> Outcome:
        base, dataset = self.world.bases[job.base], self.world.dataset
        key, tuning = job.key(base.fingerprint, dataset.sha256), job.settings.finetune
        started = time.perf_counter()
        try:
            found, parameters = work(job, base)
        except FAILURES as error:
            return failure_of(self.world, job, str(error) or type(error).__name__)
        return Row.model_validate(
            {
                **{"key": key, "base": base.fingerprint, "dataset": dataset.name, "data": job.settings.data},
                **{"held_out": self.world.held_out, "method": job.method, "digit": job.digit},
                **{"rank": job.rank, "seed": job.settings.seed},
                **{"model": job.settings.model, "pretrain": job.settings.pretrain},
                **{"settings": tuning.model_copy(update={"name": None}), "parameters": parameters, "engine": engine},
                **{"strength": found.strength, "verdict": found.verdict, "rounds": found.rounds},
                **{"threshold": dict(found.threshold), "threshold_on_test": found.threshold_on_test},
                "shifted": found.shifted if job.method in CONTROLS else (),
                "before": self._judge_of(job).before(job.digit),
                "after": dict(found.after),
                "seconds": round(seconds + time.perf_counter() - started, 4),
            }
        )

    def _judge_of(self, job: Job) -> Judge:
        if self._judge is None or self._judge[0] != job.base:
            self._judge = job.base, Judge(self.world.bases[job.base], self.world.dataset)
        return self._judge[1]


def failure_of(world: SweepContext, job: Job, cause: str) -> Failure:
    """The outcome of a job that failed."""
    key = job.key(world.bases[job.base].fingerprint, world.dataset.sha256)
    return Failure(key=key, digit=job.digit, rank=job.rank, seed=job.settings.seed, cause=cause)


def settings_of(job: Job, dataset: Dataset) -> Settings:
    """What a job is trained with: those of its adapter, or of a control."""
    if job.method not in CONTROLS:
        return job.settings
    control: dict[str, float] = {"focus": float((dataset.train.labels == job.digit).float().mean())}
    control |= {"hard_examples": 0.0} if job.method == "control" else {}
    return job.settings.model_copy(update={"finetune": job.settings.finetune.model_copy(update=control)})


def stacks_of(
    jobs: Iterable[Job],
    numbers: Callable[[Job], int],
    most_bytes: int = STACK_BYTES,
    rows: int = ROWS,
    processes: int = 1,
) -> list[list[Job]]:
    """Jobs by what can be trained at once, those that cannot by themselves.

    Args:
        numbers: how many a job trains.
        most_bytes: see `STACK_BYTES`.
        rows: see `ROWS`.
        processes: that do them at the same time; several stacks of one kind become as many for each of them, so that
            none is without work at the end, if there are jobs enough.
    """
    groups: dict[tuple[str, str], list[Job]] = {}
    alone: list[list[Job]] = []
    for job in jobs:
        if is_stackable(job):
            groups.setdefault((job.base, shape_of(job.settings.finetune)), []).append(job)
        else:
            alone.append([job])
    stacks: list[list[Job]] = []
    for group in groups.values():
        group.sort(key=lambda job: job.settings.finetune.learning_rate)  # one pass of Adam for those of the same rate
        batch, each = group[0].settings.finetune.batch_size, 4 * COPIES * numbers(group[0])
        most = max(1, min(rows // batch, most_bytes // each))
        count = math.ceil(len(group) / most)
        if count > 1 and len(group) >= processes * FEW:
            count = processes * math.ceil(count / processes)
        even = math.ceil(len(group) / count)
        stacks += [group[start : start + even] for start in range(0, len(group), even)]
    return stacks + alone


def is_stackable(job: Job) -> bool:
    """Whether it can be trained with others at once."""
    return job.method in ("lora", *CONTROLS) and can_be_stacked(job.settings.finetune)


def numbers_of(world: SweepContext) -> Callable[[Job], int]:
    """How many numbers a job's adapter has, at most: every layer at its highest rank."""
    return partial(_numbers, world)


def _numbers(world: SweepContext, job: Job) -> int:
    recipe = job.settings.finetune
    rank = max(recipe.rank, *(recipe.rank_pattern or {}).values(), 1)
    sizes = [784, *world.bases[job.base].network.hidden, 10]
    return sum(rank * (before + after) for before, after in pairwise(sizes))
