"""The way in. From its first instruction on, Ctrl-C and SIGTERM end a command with one line, and soon.

Nothing is imported at the top that takes time.
"""

import gc
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from types import FrameType
from typing import NoReturn

LINES = {
    signal.SIGINT: "Interrupted; what was finished before is kept.",
    signal.SIGTERM: "Terminated; what was finished before is kept.",
}
GRACE = 0.8  # seconds to clean up in; what is left behind then goes at the next writing command

_unsaid = threading.Lock()  # of whoever says the line
_interruption: BaseException | None = None  # what a signal has raised


class Terminated(BaseException):
    """What SIGTERM raises, as Ctrl-C raises KeyboardInterrupt."""


def collect_rarely() -> None:
    """Look more rarely for garbage in cycles: a tenth of `verify` went to looking through what imports make to stay."""
    gc.set_threshold(50_000, 20, 20)


def leave(code: int) -> NoReturn:
    """End the process, without the half second in which Python would take torch apart."""
    if code > 128:  # interrupted: all is cleaned up
        os._exit(code)
    gc.freeze()  # what there is still is no garbage to look for
    sys.exit(code)


def listen() -> None:
    """Let both signals raise, so that what is being done cleans up. One that the caller ignores stays ignored."""
    global _unsaid, _interruption
    _unsaid, _interruption = threading.Lock(), None
    for number in LINES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def interruption() -> BaseException | None:
    """What a signal has raised. A library may have raised something else since, or gone on as if nothing were."""
    return _interruption


def is_first_to_say() -> bool:
    """Whether nobody has said the line yet; the caller does, then."""
    return _unsaid.acquire(blocking=False)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    global _interruption
    if _is_importing(frame):  # an exception there can leave a library in pieces, or end in its abort()
        _end(number)
    _say_no_more()
    _interruption = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
    raise _interruption


def _say_no_more() -> None:
    """Let the line stand alone: a second signal changes nothing, and what was cut short in its making is no news."""
    for number in LINES:
        signal.signal(number, signal.SIG_IGN)
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def watch() -> None:
    """End the process where Python does not come to raise anything, or cleans up for too long."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_after_signal, args=(reader,), daemon=True).start()


def _end_after_signal(reader: int) -> None:
    while (number := os.read(reader, 1)[0]) not in LINES:
        pass
    time.sleep(GRACE)
    _end(number)


def _end(number: int) -> NoReturn:
    if is_first_to_say():
        with suppress(OSError):
            os.write(2, f"{LINES[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)
