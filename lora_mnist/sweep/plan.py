"""What a sweep would do: how many jobs, how many of them finished, how many bases."""

from lora_mnist.evaluation.results import SplitResult
from lora_mnist.runs.run import Run
from lora_mnist.settings.strict import Count, Document
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.opening import Asked
from lora_mnist.sweep.rows import Store
from lora_mnist.sweep.world import HELD_OUT


class Plan(Document):
    """What a sweep would do.

    Attributes:
        finished: jobs that are done already, as far as their base is there.
        bases: how many bases it would train first.
    """

    folder: str
    jobs: Count
    finished: Count
    bases: Count


def plan(asked: Asked) -> Plan:
    """Count jobs and bases; write nothing.

    Raises:
        UsageError, RunError, DataError: as the sweep would.
    """
    jobs, store = asked.jobs(), Store(asked.out)
    finished = sum(_is_done(asked, job, store) for job in jobs)
    missing = {job.base for job in jobs if not Run(asked.run_of(job.base)).base.is_finished}
    return Plan(folder=str(asked.out), jobs=len(jobs), finished=finished, bases=len(missing))


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
