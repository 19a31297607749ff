"""Processes that compute for this one."""

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing.resource_tracker import ensure_running


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """What is started within never hears Ctrl-C, which a terminal sends to all of its processes: its parent ends it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    _start_tracker()  # or it is started within, and lets interrupts in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Python's process that frees what an ended one had shared; it is not to tell that it had to."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning"
    try:
        ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before
