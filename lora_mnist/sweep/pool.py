"""Processes on this machine that do jobs, with one thread each. The base and the images are in memory once."""

import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path

from lora_mnist.sweep.flat import load, save
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.work import Outcome, Worker, failure_of
from lora_mnist.sweep.world import SweepContext
from lora_mnist.training.device import prepare
from lora_mnist.training.processes import without_interrupts

RETRIES = 2  # of a task that was at work when a process died
_worker: Worker | None = None  # of such a process


def run(world: SweepContext, tasks: Sequence[Sequence[Job]], processes: int) -> Iterator[list[Outcome]]:
    """The outcomes of every task, as soon as they are known.

    Args:
        world: on the CPU. It is written into a file that every process maps.
        tasks: a job, or jobs for one stack.
        processes: how many, at most.
    """
    if not tasks:
        return
    left = dict(enumerate(tasks))
    with tempfile.TemporaryDirectory(prefix="lora-mnist-") as folder:
        file = Path(folder) / "world.safetensors"
        save(world, file)
        deaths: Counter[int] = Counter()  # by task
        while left:
            last = [number for number in left if deaths[number] == RETRIES]
            now = {last[0]: left[last[0]]} if last else dict(left)  # at its last try it is alone: it may be the cause
            try:
                for number, outcomes in _pool(file, now, min(processes, len(now))):
                    del left[number]
                    yield outcomes
            except BrokenProcessPool as error:
                for number in [number for number in now if number in left][:processes]:  # they begin in this order
                    deaths[number] += 1
                    if deaths[number] > RETRIES:
                        cause = f"Its process died {deaths[number]} times: {error}"
                        yield [failure_of(world, job, cause) for job in left.pop(number)]


def _pool(world: Path, tasks: Mapping[int, Sequence[Job]], processes: int) -> Iterator[tuple[int, list[Outcome]]]:
    """Raises BrokenProcessPool if a process dies; what was at work then is not done."""
    others = active_children()
    with without_interrupts():  # it starts the first of Python's own processes
        pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (world,))
    try:
        with without_interrupts():  # to submit a task may start a process
            waiting: dict[Future[list[Outcome]], int] = {
                pool.submit(_do, task): number for number, task in tasks.items()
            }
        for one in as_completed(waiting):
            yield waiting[one], one.result()
    except BaseException:  # also Ctrl-C, and an end of the iteration before the last: nobody waits for what is at work
        for process in active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(world: Path) -> None:
    """What a process does first."""
    global _worker
    threading.Thread(target=_end_with_parent, args=(world.parent,), daemon=True).start()
    prepare("cpu", 1)
    try:
        _worker = Worker(load(world))
    except FileNotFoundError:  # a parent that was interrupted while it started this process knows nothing of it
        os._exit(1)


def _end_with_parent(folder: Path) -> None:
    """End when the parent has, and remove the folder that a parent who was killed has left."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _do(task: Sequence[Job]) -> list[Outcome]:
    assert _worker is not None
    return _worker.do(task)
