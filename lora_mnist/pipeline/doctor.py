"""Is everything as it should be: what is installed, the machine, the data, and every run? Nothing is written."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from lora_mnist import __version__
from lora_mnist.datasets.mnist import is_there, raw_folder, read_mnist
from lora_mnist.errors import AlteredError, DataError, DiskError, LoraMnistError, RunError, UsageError
from lora_mnist.lora import first_difference, load_fingerprint
from lora_mnist.runs.artifact import WEIGHTS, load_network
from lora_mnist.runs.atomic import writer_of
from lora_mnist.runs.listing import find_runs
from lora_mnist.runs.run import Run
from lora_mnist.settings.config import Document, Many, Maybe
from lora_mnist.training.device import prepare_device

ROOM = 500_000_000  # bytes: the data, and some runs


class _NoteError(LoraMnistError):
    """What makes commands slower, and stops none."""

    exit_code = 0


class Check(Document):
    """One thing that was looked at."""

    name: str
    finding: str  # what is there, in a clause
    way_out: Maybe[str] = None  # what to do where it is not good, or could be better
    exit_code: int = 0  # of an error of the kind; 0 if it is good

    @property
    def passed(self) -> bool:
        return self.exit_code == 0


class Diagnosis(Document):
    """All that was looked at."""

    passed: bool
    checks: Many[Check]

    @property
    def exit_code(self) -> int:
        """Of the first check that failed; 0 if none did."""
        return next((check.exit_code for check in self.checks if not check.passed), 0)


def doctor(folder: Path, data: Path, device: str = "auto", threads: int | None = None) -> Diagnosis:
    """Look at everything that a run depends on.

    Args:
        folder: below which the runs lie.
        data: where data sets lie.
        device, threads: as the commands that compute take them.
    """
    looks: dict[str, Callable[[], str]] = {
        "packages": _packages,
        "device": partial(_device, device, threads),
        "threads": _threads,
        "disk": partial(_disk, folder),
        "data": partial(_data, data),
        **{str(path): partial(_run, Run(path)) for path in find_runs(folder)},
    }
    checks = []
    for name, look in looks.items():
        try:
            check = Check(name=name, finding=look())
        except LoraMnistError as error:
            finding = error.cause.rstrip(".")
            check = Check(name=name, finding=finding, way_out=error.way_out, exit_code=error.exit_code)
        checks.append(check)
    return Diagnosis(passed=all(check.passed for check in checks), checks=tuple(checks))


def _packages() -> str:
    known = f"lora-mnist {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    numpy = metadata.version("numpy")
    try:
        vision = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return f"{known}, torchvision not installed, numpy {numpy}"
    for requirement in metadata.requires("torchvision") or ():
        match = re.match(r"torch\s*\(?==\s*([\d.]+)", requirement)  # the only version that it says it works with
        if match and match[1] != torch.__version__.partition("+")[0]:
            raise UsageError(
                f"torchvision {vision} was made for torch {match[1]}, and torch {torch.__version__} is here.",
                f"Install them together: pip install torch=={match[1]} torchvision=={vision}.",
            )
    found = f"{known}, torchvision {vision}, numpy {numpy}"
    if sys.platform == "linux" and not vision.endswith("+cpu") and torch.version.cuda is None:  # as PyPI's wheels are
        found += " (torchvision is built for CUDA and torch for the CPU: no matter here, where it only has the mirrors)"
    return found


def _device(device: str, threads: int | None) -> str:
    found = prepare_device(device, threads)
    return torch.cuda.get_device_name(found) if found.type == "cuda" else f"CPU, {platform.machine()}"


def _threads() -> str:
    # those that this process may use
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # processes that wanted to compute, last minute
    threads = torch.get_num_threads()
    found = f"{threads} for {cores} cores, load {load:.1f}"
    if threads > cores:
        raise _NoteError(f"{found}: more threads than cores wait for each other.", f"Use --threads {cores}.")
    free = cores - round(load)
    if threads > 1 and free < threads:
        raise _NoteError(
            f"{found}: on a busy machine the threads of a step wait for the slowest, and all is many times slower.",
            f"Use --threads {max(1, free)}, or wait.",
        )
    return found


def _disk(folder: Path) -> str:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if free < ROOM:
        raise DiskError(f"{found}: that is little.", "Make room, or put --run elsewhere.")
    return found


def _data(data: Path) -> str:
    folder = raw_folder(data)
    if is_there(data):
        read_mnist(data)
        return f"MNIST in {folder}, all four files as published"
    if some := sorted(path.name for path in folder.glob("*-ubyte*")):
        raise DataError(f"{folder} has only {', '.join(some)}.", "Run a command: it fetches the others.")
    return f"MNIST is not in {folder}: it is downloaded when it is needed"


def _run(run: Run) -> str:
    base = run.require_base()
    if unfinished := run.unfinished():
        raise AlteredError(f"{unfinished[0]} has no manifest.", "Restore it from a copy, or delete it.")
    _, fingerprint = load_network(base.file(WEIGHTS))
    adapters, checkpoints = run.adapter_names(), run.checkpoints()
    for name in adapters:
        saved = run.require_adapter(name)
        theirs = load_fingerprint(saved.file(""))
        if theirs is None or (different := first_difference(theirs, fingerprint)):
            what = f"tensor {different} differs" if theirs else "it has no fingerprint"
            raise RunError(f"{saved.folder} is not for this base: {what}.", "Remove it, or train it again.")
    for checkpoint in checkpoints:
        load_network(run.require_checkpoint(checkpoint.name).file(WEIGHTS))
    lock = f"being written by {writer}" if (writer := writer_of(run.path)) else "nobody writes"
    count = len(adapters) + len(checkpoints)
    imported = f", which {run.record.source}," if run.record.source else ""
    return f"manifests and fingerprints are right, of the base{imported} and {count} made from it; {lock}"
