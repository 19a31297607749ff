"""The whole sweep: bases, jobs, an engine, and a row a job, kept as soon as it is known."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from lora_mnist.errors import UsageError
from lora_mnist.settings.strict import Count, Document, Many
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.opening import Asked, open_world
from lora_mnist.sweep.rows import Failure, Row, Store
from lora_mnist.sweep.work import Outcome
from lora_mnist.sweep.world import World
from lora_mnist.training.progress import Progress

log = logging.getLogger("lora_mnist")

EngineName = Literal["stacked", "local", "ray"]
Engine = Callable[[World, Sequence[Job], Callable[[float], None]], Iterator[list[Outcome]]]


class Sweep(Document):
    """What a sweep came to.

    Attributes:
        folder: where the results lie.
        rows: of every job asked for that is done, in the order of the grid.
        failures: of those that failed this time.
        made: how many jobs were done just now; the others were there before.
        seconds: that the jobs of now took, bases apart.
    """

    folder: str
    rows: Many[Row]
    failures: Many[Failure]
    made: Count
    seconds: float


def sweep(asked: Asked, engine: Engine) -> Sweep:
    """Do every job that is not done yet.

    Args:
        engine: see `engine_of`.

    Raises:
        BusyError: another sweep writes to the folder.
        UsageError, RunError, DataError, DiskError: as those of the bases and of the folder.
    """
    jobs = asked.jobs()
    store = Store(asked.out)
    with store.writing():
        world, jobs = open_world(asked, jobs)
        keys = {job.key(world.bases[job.base].seal, world.dataset.sha256): job for job in jobs}
        left = [job for key, job in keys.items() if key not in store.rows]
        started = time.perf_counter()
        failures = _do(engine, world, left, store, Progress(asked.request.quiet))
        seconds = round(time.perf_counter() - started, 2)
    rows = [store.rows[key] for key in keys if key in store.rows]
    made = len(left) - len(failures)
    return Sweep(folder=str(asked.out), rows=tuple(rows), failures=tuple(failures), made=made, seconds=seconds)


def engine_of(name: EngineName, threads: int | None, device: str, address: str | None = None) -> Engine:
    """The engine of that name. Nothing of the others is imported.

    Args:
        threads: for `local`, how many processes; None is one a core.
        address: of a running cluster, for `ray`; None starts one on this machine.

    Raises:
        UsageError: it cannot do what is asked.
    """
    if address is not None and name != "ray":
        raise UsageError(f"`address` (={address!r}) is that of a Ray cluster.", "Use it with --engine ray.")
    if name == "stacked":
        from lora_mnist.sweep import stacked

        return stacked.run
    if name == "local":
        from lora_mnist.sweep import local

        if device not in ("auto", "cpu"):
            raise UsageError(f"`device` (={device!r}) is not for --engine local.", "Use --engine stacked.")
        processes = threads or len(os.sched_getaffinity(0))
        return lambda world, jobs, told: local.run(world, jobs, processes)
    raise UsageError(f"`engine` (={name!r}) is none of stacked, local, ray.", "Choose one of these.")


def _do(engine: Engine, world: World, jobs: Sequence[Job], store: Store, progress: Progress) -> list[Failure]:
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
