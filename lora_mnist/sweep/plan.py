"""How long a sweep will take: counted products, at the pace at which this machine makes them."""

import time
from functools import cache
from itertools import pairwise

import torch

from lora_mnist.evaluation.results import SplitResult
from lora_mnist.runs.run import Run
from lora_mnist.settings.strict import Count, Document
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.opening import Asked
from lora_mnist.sweep.rows import Store
from lora_mnist.sweep.sweeping import cores
from lora_mnist.sweep.work import ROWS, TRIED, is_stackable
from lora_mnist.sweep.world import HELD_OUT
from lora_mnist.training.device import prepare
from lora_mnist.training.linear import linear

BESIDE = 1.3  # what a step takes beside the products, measured (benchmarks/sweep.py)
SIZES = {"mnist": (60_000, 10_000), "digits": (1_438, 359)}  # images for training and `val`, and for `test`
LOOK = 0.3  # seconds of measuring


class Plan(Document):
    """What a sweep would do.

    Attributes:
        finished: jobs that are done already, as far as their base is there.
        bases: how many bases it would make first; `jobs` and `seconds` are without them.
        seconds: about; `base_seconds` for all bases.
    """

    folder: str
    jobs: Count
    finished: Count
    bases: Count
    seconds: float
    base_seconds: float


def plan(asked: Asked, engine: str) -> Plan:
    """Count, measure for a moment, and write nothing.

    Raises:
        UsageError, RunError, DataError: as the sweep would.
    """
    jobs, store = asked.jobs(), Store(asked.out)
    left = [job for job in jobs if not _is_done(asked, job, store)]
    prepare(asked.request.device, 1)
    missing = {job.base: job for job in jobs if not Run(asked.run_of(job.base)).base.is_finished}
    processes = asked.request.threads or cores()
    seconds = sum(_products(job) / _pace(_rows(job, engine)) for job in left) / processes
    base_seconds = sum(_base_products(job) / _pace(job.settings.pretrain.batch_size) for job in missing.values())
    return Plan(
        folder=str(asked.out),
        jobs=len(jobs),
        finished=len(jobs) - len(left),
        bases=len(missing),
        seconds=BESIDE * seconds,
        base_seconds=BESIDE * base_seconds / processes,
    )


def _is_done(asked: Asked, job: Job, store: Store) -> bool:
    run = Run(asked.run_of(job.base))
    if not run.base.is_finished:
        return False
    found, sha256 = run.base.evaluation, run.record.dataset.sha256 + (HELD_OUT if asked.hold_out else "")
    if job.settings.finetune.digit != "weakest":
        return job.key(found.base_fingerprint, sha256) in store.rows
    if asked.hold_out or "val" not in found.splits:  # that of half of `val` stands nowhere
        return False
    digits = _weakest(found.splits["val"])
    return any(job.repairing(digit).key(found.base_fingerprint, sha256) in store.rows for digit in digits)


def _weakest(found: SplitResult) -> list[int]:
    """Those with the highest error rate; of several the loss decides, which a count does not tell."""
    rates = [wrong / max(1, images) for wrong, images in zip(found.wrong, found.images, strict=True)]
    return [digit for digit, rate in enumerate(rates) if rate == max(rates)]


def _rows(job: Job, engine: str) -> int:
    """Rows in one product."""
    tuning = job.settings.finetune
    stacks = engine != "local" and is_stackable(job)
    return max(tuning.batch_size, ROWS // 2) if stacks else tuning.batch_size


def _products(job: Job) -> float:
    """Multiplications of a fine-tuning and its judging."""
    settings, tuning = job.settings, job.settings.finetune
    first, rest = _multiplications(job)
    images, test = SIZES[settings.data.dataset]
    val = settings.data.val_share * images * (1 if tuning.guard == "none" else TRIED)
    of_weights = first + rest if job.method == "full" else 0
    return job.rounds * (tuning.steps * tuning.batch_size * (first + 2 * rest + of_weights) + (val + test) * rest)


def _base_products(job: Job) -> float:
    first, rest = _multiplications(job)
    images, _ = SIZES[job.settings.data.dataset]
    return job.settings.pretrain.epochs * images * (2 * first + 3 * rest)


def _multiplications(job: Job) -> tuple[int, int]:
    """Of one image in the first layer, and in all others."""
    first, *rest = (before * after for before, after in pairwise([28 * 28, *job.settings.model.hidden, 10]))
    return first, sum(rest)


@cache
@torch.inference_mode()
def _pace(rows: int) -> float:
    """Multiplications a second of a product with so many rows."""
    x, weight = torch.ones(rows, 1000), torch.ones(1000, 1000)
    linear(x, weight)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < LOOK:
        linear(x, weight)
        count += 1
    return count * rows * 1000 * 1000 / (time.perf_counter() - started)
