"""The engine of a Ray cluster, of one machine or many: every stack is a task of Ray's, which schedules and retries it.

The bases and the images go into Ray's object store once; the tasks of one machine map them from there.
"""

import logging
import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lora_mnist.errors import UsageError, shown
from lora_mnist.sweep.flat import Facts, flatten, restore
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.work import GPU_ROWS, ROWS, STACK_BYTES, Outcome, Worker, failure_of, numbers_of, stacks_of
from lora_mnist.sweep.world import SweepContext
from lora_mnist.training.device import prepare

RETRIES = 3  # of a task whose worker or machine died
AHEAD = 4  # tasks that wait for each CPU of the cluster: a million of them need not be listed all the time
STORE = 256 << 20  # bytes of a local object store beside what is put into it; Ray would take a third of the memory
WAIT = 5  # seconds for an answer at the address
_worker: tuple[Facts, Worker] | None = None  # of a process of Ray's


def engine(
    processes: int, address: str | None, gpus: float
) -> Callable[[SweepContext, Sequence[Job], Callable[[float], None]], Iterator[list[Outcome]]]:
    """An engine on the cluster at `address`, or on one of this machine with `processes` workers.

    Args:
        gpus: share of a GPU that a task takes; 0 computes on a CPU.

    Raises:
        UsageError: Ray is not installed, or `gpus` is out of its range.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UsageError("--engine ray needs Ray, which is not installed.", "Install lora-mnist[ray].") from error
    if not 0 <= gpus <= 1:
        raise UsageError(f"`gpus` (={gpus}) must be from 0 to 1.", "A task computes on one GPU at most.")
    return lambda world, jobs, told: _run(world, jobs, processes, address, gpus)


def _run(
    world: SweepContext, jobs: Sequence[Job], processes: int, address: str | None, gpus: float
) -> Iterator[list[Outcome]]:
    if not jobs:
        return
    import ray

    facts, tensors = flatten(world)
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    with _connected(address, processes, sum(array.nbytes for array in arrays.values())):
        stacks = iter(stacks_of(jobs, numbers_of(world), STACK_BYTES // processes, GPU_ROWS if gpus else ROWS))
        task = ray.remote(_do).options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, name="lora_mnist_stack")
        shared: Any = ray.put(arrays)
        most = max(1, int(AHEAD * ray.cluster_resources().get("CPU", 1)))
        waiting: dict[Any, Sequence[Job]] = {}
        while True:
            for more in stacks:
                waiting[task.remote(facts, shared, more, gpus > 0)] = more
                if len(waiting) >= most:
                    break
            if not waiting:
                return
            (ready, *_), _ = ray.wait(list(waiting))
            stack = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                yield [failure_of(world, job, shown(f"{type(error.cause).__name__}: {error.cause}")) for job in stack]
            except ray.exceptions.RayError as error:
                cause = f"Its task failed {RETRIES + 1} times: {shown(str(error))}"
                yield [failure_of(world, job, cause) for job in stack]


@contextmanager
def _connected(address: str | None, processes: int, size: int) -> Iterator[None]:
    """Raises UsageError if there is no cluster at `address`."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray reports home
    address = address or os.environ.get("RAY_ADDRESS")  # which Ray takes too, but then not what is for one of our own
    local: dict[str, Any] = {"num_cpus": processes, "object_store_memory": size + STORE, "include_dashboard": False}
    in_main = threading.current_thread() is threading.main_thread()
    terminated = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what later versions of Ray will do
        try:
            _knock(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **({} if address else local))
        except (OSError, ValueError) as error:  # a ConnectionError is an OSError
            raise UsageError(
                f"There is no Ray cluster at {address!r}: {error}.", "Start one with `ray start --head`."
            ) from error
        except SystemExit:  # by which Ray answers SIGTERM
            signal.signal(signal.SIGTERM, terminated)
            signal.raise_signal(signal.SIGTERM)
    if in_main:
        signal.signal(signal.SIGTERM, terminated)  # Ray puts its own in its place
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raises OSError if nobody is at a host and port, for which Ray would wait minutes."""
    if address and (found := re.fullmatch(r"([\w.-]+):([0-9]+)", address)):
        socket.create_connection((found[1], int(found[2])), WAIT).close()


def _do(facts: Facts, arrays: Mapping[str, Any], jobs: Sequence[Job], on_gpu: bool) -> list[Outcome]:
    """In a process of Ray's, which keeps what it made for the last task."""
    global _worker
    if _worker is None or _worker[0] != facts:
        device = prepare("cuda" if on_gpu else "cpu", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the object store is read-only, and nobody writes to these tensors
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        _worker = facts, Worker(restore(facts, tensors).to(device))
    return _worker[1].do(jobs)
