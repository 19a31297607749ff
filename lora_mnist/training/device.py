"""Where the arithmetic runs, and how it is kept fast, repeatable and undisturbed."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lora_mnist.errors import UsageError, shown

MOST_THREADS = 512  # far beyond use
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
LARGEST_KEPT = 1 << 30  # bytes


def prepare_device(device: str = "auto", threads: int | None = None) -> torch.device:
    """Set the process up for training and return the device to use. Call it before anything is computed.

    Args:
        device: `auto` (CUDA where there is one, else CPU), `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads; None keeps torch's choice.

    Raises UsageError if the device is unknown or absent, or `threads` is out of its range.
    """
    require_threads(threads)
    # Adam's moments of dead inputs decay into denormal floats, which CPUs handle many times slower. New threads
    # inherit the mode from the one that starts them, so it is set before torch starts any.
    torch.set_flush_denormal(True)
    # Without it MKL may divide a product among threads in another way each time, with other last bits. MKL reads it
    # once, at its first product.
    os.environ.setdefault("MKL_CBWR", "AUTO")
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not count):
        return torch.device("cpu")
    match = re.fullmatch("auto|cuda(:([0-9]{1,9}))?", device)
    if not match:
        raise UsageError(f"`device` (={shown(device)}) is none of auto, cpu, cuda, cuda:N.", "Choose one of these.")
    number = int(match[2] or 0)
    if number >= count:
        cause = f"`device` (={device!r}) is not here: torch {torch.__version__} sees {count} CUDA devices."
        raise UsageError(cause, "Use --device cpu, or auto.")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with a fixed workspace
    torch.use_deterministic_algorithms(True)
    return torch.device("cuda", number)


def keep_freed_memory() -> None:
    """Give the next step the memory of the last one. glibc would hand it back to the system and fetch it again, page by
    page, which can take longer than what is computed in it.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):  # glibc has it, musl has not
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)


def require_threads(threads: int | None) -> None:
    """Raises UsageError if they are out of their range."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        cause = f"`threads` (={threads}) must be from 1 to {MOST_THREADS}."
        raise UsageError(cause, "Leave --threads out to let torch choose.")


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes started within ignore Ctrl-C, which a terminal sends to all of them: their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing.resource_tracker import ensure_running

    # Python's resource tracker frees what an ended process had shared. It starts with the first process and would
    # unblock interrupts, so it is started before they are blocked. A killed child is no reason for it to warn.
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning"
    try:
        ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if warnings is not None:
            os.environ["PYTHONWARNINGS"] = warnings
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
