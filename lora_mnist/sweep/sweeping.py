"""The whole sweep: bases, jobs, an engine, and a row a job, kept as soon as it is known."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from lora_mnist.errors import UsageError
from lora_mnist.runs.run import Run
from lora_mnist.settings.strict import Count, Document, Many, Maybe
from lora_mnist.sweep.answer import Answer, Metric, SplitName, answer, judged_of
from lora_mnist.sweep.grid import MOST_JOBS, Job
from lora_mnist.sweep.keeping import Kept
from lora_mnist.sweep.opening import Asked, open_world
from lora_mnist.sweep.rows import Failure, Row, Store
from lora_mnist.sweep.work import Outcome
from lora_mnist.sweep.world import SweepContext
from lora_mnist.training.device import require_threads
from lora_mnist.training.progress import Progress

log = logging.getLogger("lora_mnist")

Engine = Callable[[SweepContext, Sequence[Job], Callable[[float], None]], Iterator[list[Outcome]]]


class Sweep(Document):
    """What a sweep came to.

    Attributes:
        folder: where the results lie.
        rows: of every job asked for that is done, in the order of the grid.
        failures: of those that failed this time.
        made: how many jobs were done just now; the others were there before.
        seconds: that the jobs of now took, bases apart.
        label: what an adapter is called if nothing is varied.
    """

    folder: str
    label: str
    rows: Many[Row]
    failures: Many[Failure]
    trained: Count
    seconds: float

    def answered(self, by: str = "rank", metric: Metric = "errors", split: SplitName = "test") -> "Answered":
        """Itself with its answer. Raises UsageError as `answer` does, if there is a row."""
        found = answer(self.rows, by, metric, split, self.label) if judged_of(self.rows) else None
        return Answered(sweep=self, answer=found)


class Answered(Document):
    """A sweep, what its rows say, on what page (both None if no job is done), and the adapter that was kept."""

    sweep: Sweep
    answer: Answer | None
    page: Maybe[str] = None
    kept: Maybe[Kept] = None


def sweep(asked: Asked, engine: Engine) -> Sweep:
    """Do every job that is not done yet.

    Args:
        engine: see `engine_of`.

    Raises:
        BusyError: another sweep writes to the folder.
        UsageError, RunError, DataError, DiskError: as those of the bases and of the folder.
    """
    _require_no_run(asked.out)
    jobs = asked.jobs()
    store = Store(asked.out)
    with store.writing():
        world, jobs = open_world(asked, jobs)
        keys = {job.key(world.bases[job.base].fingerprint, world.dataset.sha256): job for job in jobs}
        left = [job for key, job in keys.items() if key not in store.rows]
        if len(store.rows) + len(left) > MOST_JOBS:
            cause = f"With the {len(store.rows):,} rows in {asked.out}, these jobs are more than {MOST_JOBS:,}."
            raise UsageError(cause, "Give another --out.")
        started = time.perf_counter()
        failures = _do(engine, world, left, store, Progress(asked.request.quiet))
        seconds = round(time.perf_counter() - started, 2)
    rows = [store.rows[key] for key in keys if key in store.rows]
    trained = len(left) - len(failures)
    found = {"folder": str(asked.out), "label": asked.label, "rows": tuple(rows), "failures": tuple(failures)}
    return Sweep.model_validate(found | {"trained": trained, "seconds": seconds})


def _require_no_run(out: Path) -> None:
    """The page of a sweep would replace that of a run. Raises UsageError if `out` is one, or lies in one."""
    for place in (out, *out.absolute().parents):
        if Run(place).base.is_finished:
            raise UsageError(f"`out` (={out}) is in a run, {place}.", "Give another --out.")


def engine_of(
    name: str, threads: int | None = None, device: str = "auto", address: str | None = None, gpus: float = 0.0
) -> Engine:
    """The engine of that name. Nothing of the others is imported.

    Args:
        threads: how many processes on this machine, with one thread each; None is one a core.
        address: of a running cluster, for `ray`; None starts one on this machine.
        gpus: share of a GPU that each task of `ray` takes.

    Raises:
        UsageError: it cannot do what is asked.
    """
    require_threads(threads)
    if (address is not None or gpus) and name != "ray":
        given = f"`address` (={address!r})" if address is not None else f"`gpus` (={gpus})"
        raise UsageError(f"{given} is for a Ray cluster.", "Use it with --engine ray.")
    if name == "stacked":
        from lora_mnist.sweep import stacked

        return partial(stacked.run, processes=threads or cores())
    if name == "local":
        from lora_mnist.sweep import local

        if device not in ("auto", "cpu"):
            raise UsageError(f"`device` (={device!r}) is not for --engine local.", "Use --engine stacked.")
        processes = threads or cores()
        return lambda world, jobs, told: local.run(world, jobs, processes)
    if name == "ray":
        from lora_mnist.sweep import cluster

        if device not in ("auto", "cpu"):
            raise UsageError(f"`device` (={device!r}) is not for --engine ray.", "Use --gpus for its tasks.")
        return cluster.engine(threads or cores(), address, gpus)
    raise UsageError(f"`engine` (={name!r}) is none of stacked, local, ray.", "Choose one of these.")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _do(engine: Engine, world: SweepContext, jobs: Sequence[Job], store: Store, progress: Progress) -> list[Failure]:
    """Run the jobs and keep what they come to. Returns what failed."""
    failures: list[Failure] = []
    done = 0
    with progress.counting(f"{len(jobs):,} jobs", len(jobs)) as show:
        for outcomes in engine(world, jobs, show):
            store.add([one for one in outcomes if isinstance(one, Row)])
            failures += [one for one in outcomes if isinstance(one, Failure)]
            done += len(outcomes)
            show(done)
    return failures
