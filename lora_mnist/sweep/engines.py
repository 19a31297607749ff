"""Who does the jobs: stacks of them in this process or in several, one at a time in each process, or tasks of Ray.
(`lora.stacked` is how the adapters of a stack train in one loop.)

The base and the images are in memory once on a machine: processes map them from a file, Ray's from its object store.
"""

import io
import itertools
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir, contextmanager
from importlib.util import find_spec
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from lora_mnist.errors import DiskError, UsageError, shown
from lora_mnist.runs.atomic import disk_errors, require_writable
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.jobs import FEW, Outcome, SweepContext, failure_of, restore, run_jobs, stacks_of
from lora_mnist.training.device import prepare_device, require_threads, without_interrupts

Show = Callable[[float], None]  # called with how many jobs' work is done by now
Outcomes = Generator[list[Outcome], None, None]  # as soon as they are known; to close it ends what is at work
Engine = Callable[[SweepContext, Sequence[Job], Show], Outcomes]

OURS = Path(__file__).parents[2]
RAY_RETRIES = 3  # of a task whose worker or machine died
RAY_AHEAD = 4  # tasks that wait for each CPU of the cluster: a million of them need not be listed all the time
RAY_STORE = 256 << 20  # bytes of a local object store beside what is put there; Ray would take a third of the memory
RAY_WAIT = 5  # seconds for an answer at the address
_context: SweepContext | None = None  # of a process that does jobs for another, which is of one sweep


def engine_of(
    name: str, threads: int | None = None, device: str = "auto", address: str | None = None, gpus: float = 0.0
) -> Engine:
    """The engine of that name: `stacked`, `local` or `ray`. Ray is imported for itself only.

    Args:
        threads: how many processes on this machine, with one thread each; None is one a core.
        address: of a running cluster, for `ray`; None starts one on this machine.
        gpus: share of a GPU that each task of `ray` takes; 0 computes on a CPU.

    Raises UsageError if it cannot do what is asked, or Ray is not installed.
    """
    require_threads(threads)
    processes = threads or cores()
    if (address is not None or gpus) and name != "ray":
        given = f"`address` (={address!r})" if address is not None else f"`gpus` (={gpus})"
        raise UsageError(f"{given} is for a Ray cluster.", "Use it with --engine ray.")
    if name in ("local", "ray") and device not in ("auto", "cpu"):
        way_out = "Use --engine stacked." if name == "local" else "Use --gpus for its tasks."
        raise UsageError(f"`device` (={device!r}) is not for --engine {name}.", way_out)
    if name == "stacked":
        return lambda context, jobs, show: _run_stacks(context, jobs, show, processes)
    if name == "local":
        return lambda context, jobs, show: _run_pool(context, [[job] for job in jobs], processes)
    if name != "ray":
        raise UsageError(f"`engine` (={name!r}) is none of stacked, local, ray.", "Choose one of these.")
    if find_spec("ray") is None:
        way_out = "Install the extra `ray`, in a checkout by pip install -e '.[ray]'."
        raise UsageError("--engine ray needs Ray, which is not installed.", way_out)
    if not 0 <= gpus <= 1:
        raise UsageError(f"`gpus` (={gpus}) must be from 0 to 1.", "A task computes on one GPU at most.")
    address = address or os.environ.get("RAY_ADDRESS")  # which Ray takes too, but then not what is for one of our own
    if gpus and not address and not torch.cuda.is_available():
        raise UsageError(f"`gpus` (={gpus}) is more than this machine has: torch sees no GPU.", "Leave --gpus out.")
    return lambda context, jobs, show: _run_ray(context, jobs, processes, address, gpus)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_stacks(context: SweepContext, jobs: Sequence[Job], show: Show, processes: int) -> Outcomes:
    """On a GPU in this process. On CPUs in processes with one thread each, a stack at a time in each: threads that
    share a product wait for each other in every step, and the more so on a busy machine."""
    on_gpu = context.dataset.train.images.device.type != "cpu"
    stacks = stacks_of(context, jobs, 1 if on_gpu else processes, on_gpu)
    if not on_gpu and processes > 1 and len(stacks) > 1 and len(jobs) > FEW:
        yield from _run_pool(context, stacks, processes)
        return
    for done, stack in zip(itertools.accumulate(map(len, stacks), initial=0), stacks, strict=False):
        yield run_jobs(context, stack, lambda more, done=done: show(done + more))  # type: ignore[misc]


def _run_pool(context: SweepContext, tasks: Sequence[Sequence[Job]], processes: int) -> Outcomes:
    """Tasks, each a job or a stack, in at most so many processes. One that dies is replaced, and its task repeated."""
    left = dict(enumerate(tasks))
    with tempfile.TemporaryDirectory(prefix="lora-mnist-") as folder:
        file = Path(folder) / "context.pt"
        content = io.BytesIO()
        torch.save(context.flatten(), content)
        with disk_errors(file):  # torch itself would raise a RuntimeError
            file.write_bytes(content.getbuffer())
        del content
        while left:
            try:
                for number, outcomes in _run_until_death(file, left, min(processes, len(left))):
                    del left[number]
                    yield outcomes
            except BrokenProcessPool:
                # one of those at work was the cause; they begin in this order, and each has one more try, alone
                for number in list(left)[:processes]:
                    try:
                        ((_, outcomes),) = _run_until_death(file, {number: left[number]}, 1)
                    except BrokenProcessPool as error:
                        cause = f"Its process died twice: {error}"
                        outcomes = [failure_of(context, job, cause) for job in left[number]]
                    del left[number]
                    yield outcomes


def _run_until_death(
    file: Path, tasks: Mapping[int, Sequence[Job]], processes: int
) -> Iterator[tuple[int, list[Outcome]]]:
    """Raises BrokenProcessPool if a process dies; what was at work then is not done."""
    others = active_children()
    with without_interrupts():  # Ctrl-C goes to this process alone, which then ends the others
        pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_process, (file,))
    try:
        with without_interrupts():  # to submit a task may start a process
            waiting = {pool.submit(_run_task, task): number for number, task in tasks.items()}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BaseException:  # also Ctrl-C, and a reader who stops before the end: nobody waits for what is at work
        for process in active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process(file: Path) -> None:
    """What a process does first: see to it that it ends with its parent, and map the context."""
    global _context
    threading.Thread(target=_end_with_parent, args=(file.parent,), daemon=True).start()
    prepare_device("cpu", 1)
    try:
        _context = restore(torch.load(file, mmap=True, weights_only=True))
    except FileNotFoundError:  # a parent that was interrupted while it started this process knows nothing of it
        os._exit(1)


def _end_with_parent(folder: Path) -> None:
    """Wait for the end of the parent; then end too, and remove the folder that a parent who was killed has left."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _run_task(task: Sequence[Job]) -> list[Outcome]:
    assert _context is not None
    return run_jobs(_context, task)


def _run_ray(context: SweepContext, jobs: Sequence[Job], processes: int, address: str | None, gpus: float) -> Outcomes:
    """Stacks as tasks of the cluster at `address`, or of one on this machine with `processes` workers.

    Raises UsageError if no machine of it has what a task takes, or as `_connected` does.
    """
    import ray

    flat = context.flatten()
    arrays = {name: one.cpu().numpy() if torch.is_tensor(one) else one for name, one in flat.items()}  # Ray maps arrays
    stacks = iter(stacks_of(context, jobs, processes, gpus > 0))
    with _connected(address, processes, sum(getattr(one, "nbytes", 0) for one in arrays.values())):
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(one.get("CPU", 0) >= 1 and one.get("GPU", 0) >= gpus for one in machines):  # Ray would wait for ever
            share = f" and `gpus` (={gpus}) of a GPU" if gpus else ""
            raise UsageError(f"No machine of the Ray cluster has a CPU{share} for a task.", "Choose another cluster.")
        task: Any = ray.remote(_run_ray_task).options(num_cpus=1, num_gpus=gpus, max_retries=RAY_RETRIES)
        shared = ray.put(arrays)
        most = max(1, int(RAY_AHEAD * ray.cluster_resources().get("CPU", 1)))
        waiting = {task.remote(shared, stack, gpus > 0): stack for stack in itertools.islice(stacks, most)}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting))
            done = waiting.pop(ready)
            waiting |= {task.remote(shared, stack, gpus > 0): stack for stack in itertools.islice(stacks, 1)}
            try:
                outcomes = ray.get(ready)
            except ray.exceptions.RayError as error:
                cause = f"Its task failed {RAY_RETRIES + 1} times: {shown(str(error))}"
                if isinstance(error, ray.exceptions.RayTaskError):  # not the worker's end, but what the task raised
                    cause = shown(f"{type(error.cause).__name__}: {error.cause}")
                outcomes = [failure_of(context, job, cause) for job in done]
            yield outcomes


@contextmanager
def _connected(address: str | None, processes: int, size: int) -> Iterator[None]:
    """Raises UsageError if there is no cluster at `address`. None starts one that holds `size` bytes of arrays; that
    raises UsageError or DiskError in Ray's own words."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray reports home
    local: dict[str, Any] = {"num_cpus": processes, "object_store_memory": size + RAY_STORE, "include_dashboard": False}
    terminated = signal.getsignal(signal.SIGTERM)
    if not address:  # on a full disk Ray would wait half a minute, and not say why
        require_writable(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()))
    try:
        if address and (found := re.fullmatch(r"([\w.-]+):([0-9]+)", address)):  # where Ray would wait for minutes
            socket.create_connection((found[1], int(found[2])), RAY_WAIT).close()
        # the workers import from the driver's working folder, so that is to be where this package lies
        with chdir(OURS), warnings.catch_warnings(action="ignore"):  # of what later versions of Ray will do
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **({} if address else local))
    except SystemExit:  # by which Ray answers SIGTERM
        signal.signal(signal.SIGTERM, terminated)
        signal.raise_signal(signal.SIGTERM)
    except Exception as error:  # of many kinds
        why = " ".join(str(error).split()).rstrip(".")
        if address and isinstance(error, (OSError, ValueError)):  # a ConnectionError is an OSError
            cause = f"There is no Ray cluster at {address!r}: {why}."
            raise UsageError(cause, "Start one with `ray start --head`.") from error
        kind = DiskError if isinstance(error, OSError) else UsageError
        cause = f"Ray does not {f'connect to {address!r}' if address else 'start on this machine'}: {why}."
        raise kind(cause, "Mend that, or use another --engine, which needs no Ray.") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray puts its own in its place
    try:
        yield
    finally:
        ray.shutdown()


def _run_ray_task(arrays: Mapping[str, Any], jobs: Sequence[Job], on_gpu: bool) -> list[Outcome]:
    """In a process of Ray's, which works for one sweep and keeps the context that it made for its first task."""
    global _context
    if _context is None:
        device = prepare_device("cuda" if on_gpu else "cpu", 1)
        with warnings.catch_warnings(action="ignore"):  # the object store is read-only, and nobody writes there
            flat = {name: torch.from_numpy(one) if hasattr(one, "nbytes") else one for name, one in arrays.items()}
        _context = restore(flat, str(device))
    return run_jobs(_context, jobs)
