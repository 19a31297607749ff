"""The engine of processes on this machine: one job at a time in each, with one thread."""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path

from lora_mnist.sweep.flat import load, save
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.work import Outcome, Worker, failure_of
from lora_mnist.sweep.world import World
from lora_mnist.training.device import prepare

RETRIES = 2  # of what was at work when a process died
_worker: Worker | None = None  # of such a process


def run(world: World, jobs: Sequence[Job], processes: int) -> Iterator[list[Outcome]]:
    """The outcome of every job, as soon as it is known.

    Args:
        world: on the CPU. It is written into a file that every process maps: there is one copy of it in memory.
        processes: how many.
    """
    left = dict(enumerate(jobs))
    with tempfile.TemporaryDirectory(prefix="lora-mnist-") as folder:
        save(world, Path(folder) / "world.safetensors")
        for attempt in range(RETRIES + 1):
            try:
                for number, outcome in _pool(Path(folder) / "world.safetensors", left, processes):
                    del left[number]
                    yield [outcome]
                return
            except BrokenProcessPool as error:
                if attempt == RETRIES:
                    yield [
                        failure_of(world, job, f"A process died {attempt + 1} times: {error}") for job in left.values()
                    ]


def _pool(world: Path, jobs: Mapping[int, Job], processes: int) -> Iterator[tuple[int, Outcome]]:
    """Raises BrokenProcessPool if a process dies; what was at work then is not done."""
    others = active_children()
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (world,))
    try:
        waiting: dict[Future[Outcome], int] = {pool.submit(_do, job): number for number, job in jobs.items()}
        while waiting:
            for one in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(one), one.result()
    except BaseException:  # also Ctrl-C, and an end of the iteration before the last: nobody waits for what is at work
        for process in active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(world: Path) -> None:
    """What a process does first. It ends with its parent, and leaves Ctrl-C to it."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare("cpu", 1)
    _worker = Worker(load(world))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _do(job: Job) -> Outcome:
    assert _worker is not None
    return _worker.do([job])[0]
