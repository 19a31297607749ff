"""Who writes to a run: one command at a time, by an advisory lock of the system, which a kill frees."""

import errno
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lora_mnist.errors import BusyError, DiskError
from lora_mnist.settings.strict import Document

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger("lora_mnist")

LOCK = ".lock"  # in the folder of the run, for as long as somebody writes there
LARGEST = 4096  # bytes: more is nothing of ours
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}  # as network file systems say
UNNAMED = 0.2  # seconds that a holder may take to write its name
_told: set[str] = set()  # folders without locks, of which this process has spoken


class Holder(Document):
    """The command that writes: its process, on which machine, how it was called, and since when."""

    pid: int
    host: str
    command: str
    since: str

    @property
    def words(self) -> str:
        """As an error names it."""
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"process {self.pid}{where} (`{self.command}`), since {self.since}"


@contextmanager
def holding(folder: Path) -> Iterator[bool]:
    """Be the only one that writes to the run in `folder`; within one thread, it may be nested.

    The folder is made if it is not there, and goes again if nothing has come into it.

    Yields:
        Whether the lock was taken just now: it was not held already, and the file system has locks.

    Raises:
        BusyError: another command writes there; nobody is waited for.
        DiskError: the lock cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        lock = _lock_of(folder)
    except OSError as error:  # there is no working directory any more
        raise _refused(folder, error) from error
    nested = lock.is_locked
    has_locks = _take(lock, folder)
    try:
        yield has_locks and not nested
    finally:
        if not nested:
            with suppress(OSError):
                (folder / LOCK).unlink()  # while it is held: filelock takes no lock on a file without a name
        if has_locks:
            lock.release()
        if not nested:
            with suppress(OSError):  # something has come into it
                for path in made:
                    path.rmdir()


def holder_of(folder: Path) -> Holder | None:
    """Who writes to the run in `folder` now; None if nobody does, also where one was killed."""
    path = folder / LOCK
    if not path.is_file():
        return None
    lock = _lock_of(folder)
    if lock.is_locked:
        return _read(path)
    try:
        with lock:
            return None
    except TimeoutError:  # what filelock's refusal is
        return _read(path)
    except OSError:  # a folder that is not ours, or without locks
        holder = _read(path)
        return None if holder is None or _is_gone(holder) else holder


def _lock_of(folder: Path) -> "BaseFileLock":
    """Of this thread: filelock counts how often that has taken it."""
    from filelock import FileLock

    # a marker file in place of a lock outlives a kill, so where the system has no locks there is none
    path = os.path.join(os.path.realpath(folder), LOCK)
    return FileLock(path, timeout=0, is_singleton=True, thread_local=True, fallback_to_soft=False)


def _take(lock: "BaseFileLock", folder: Path) -> bool:
    """Whether there is a lock now; not on a file system that has none. Raises BusyError or DiskError."""
    for attempts_left in reversed(range(5)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / LOCK).is_symlink():  # whose file would be written over
                raise DiskError(f"{folder / LOCK} is a link to another file.", "Remove it.")
            lock.acquire()
            if lock.lock_counter == 1:
                with suppress(OSError):  # a full disk is told by who writes more than a name
                    _write(folder / LOCK)
            return True
        except TimeoutError as error:  # what filelock's refusal is
            holder = _named(folder / LOCK)
            if holder or not attempts_left:  # else it has just finished
                who = holder.words if holder else "another command"
                way_out = "Wait until it is done, end it, or choose another folder."
                raise BusyError(f"{folder} is being written by {who}.", way_out) from error
        except OSError as error:
            if error.errno in NO_LOCKS:
                _say_so(folder)
                return False
            if not attempts_left or not isinstance(error, FileNotFoundError):  # else its folder was empty and went
                raise _refused(folder, error) from error
    raise AssertionError("the last attempt returns or raises")


def _refused(folder: Path, error: OSError) -> DiskError:
    way_out = "Make room or choose another place; nothing that was finished before is lost."
    return DiskError(f"Cannot write {folder}: {error.strerror or error}.", way_out)


def _say_so(folder: Path) -> None:
    place = os.path.realpath(folder)
    if place not in _told:
        _told.add(place)
        log.warning("Note: the file system of %s has no locks. Let one command at a time write there.", folder)


def _write(path: Path) -> None:
    name = Path(sys.argv[0]).name
    words = ["lora-mnist" if name == "__main__.py" else name, *sys.argv[1:]]
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    command = shlex.join(words)[: LARGEST // 8]
    holder = Holder(pid=os.getpid(), host=socket.gethostname(), command=command, since=since)
    with path.open("r+b") as file:  # the file that is locked, so that no other can be read for it
        file.write(json.dumps(holder.model_dump()).encode())
        file.truncate()


def _read(path: Path) -> Holder | None:
    try:
        with path.open("rb") as file:
            return Holder.model_validate_json(file.read(LARGEST))
    except (OSError, ValidationError):
        return None


def _named(path: Path) -> Holder | None:
    """Who holds the lock, as soon as that is written there; None if it is not, or is still one that was killed."""
    end = time.monotonic() + UNNAMED
    while (holder := _read(path)) is None or _is_gone(holder):
        if time.monotonic() > end or not path.exists():
            return None
        time.sleep(0.01)
    return holder


def _is_gone(holder: Holder) -> bool:
    """Whether it is one that was killed, whose name the new one has not replaced yet."""
    if holder.host != socket.gethostname():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
