"""Reading a run while others write to it: all that one reader sees is of one moment."""

from collections.abc import Callable
from typing import TypeVar

from lora_mnist.errors import BusyError, LoraMnistError
from lora_mnist.runs.run import Run

T = TypeVar("T")

READINGS = 5  # of a run that others write to, before a reader gives up


def of_one_moment(run: Run, read: Callable[[Run], T]) -> T:
    """What `read` finds in `run`; it is asked again where another command has replaced something of that meanwhile.

    Raises:
        BusyError: that happened every time.
        LoraMnistError: what `read` raises.
    """
    for _ in range(READINGS):
        try:
            found = read(run)
            if run.is_as_read:
                return found
        except (LoraMnistError, OSError):  # a folder may go while its files are listed
            if run.is_as_read:
                raise
        run = Run(run.path)
    raise BusyError(
        f"Other commands replaced parts of {run.path} each of {READINGS} times that it was read.",
        "Run this one again when they are done.",
    )
