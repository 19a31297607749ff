"""A disk that counts what is done below one folder, and at the operation of a given number fails, dies or kills."""

import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
READ = "read"  # a file is opened to be read; every other operation changes something
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"mkdir": "mkdir", "rename": "rename", "replace": "rename"} | dict.fromkeys(
    ("unlink", "remove", "rmdir"), "remove"
)


class Dead(BaseException):
    """What a dead disk raises: nobody handles it, and whoever cleans up meets it once more."""


@dataclass(frozen=True)
class Fault:
    """What happens at operation `number`, from 0 on: an OSError with `error`, or SIGKILL if that is None."""

    number: int
    error: int | None = None
    dead: bool = False  # instead, that operation and all after it raise `Dead`: to the disk, the process is killed


@dataclass
class Disk:
    """What is done below `folder`, in turn: each operation's kind and the name of the file.

    A write that fails has written half of its bytes, as on a disk that is full. Nothing is synced: no process can see.
    """

    folder: Path
    fault: Fault | None = None
    operations: list[str] = field(default_factory=list)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch this process for as long as the block lasts."""
        counted = {name: self._counted(getattr(os, name), lambda *_, kind=kind: kind) for name, kind in CHANGES.items()}
        counted["open"] = self._counted(os.open, lambda flags, *_: "open" if flags & WRITING else READ)
        counted["fsync"] = self._counted(lambda handle: None, lambda: "fsync")
        files = self._files(io.open)
        with mock.patch.multiple(os, **counted), mock.patch("io.open", files), mock.patch("builtins.open", files):
            yield

    def happens(self, kind: str, path: str, half: Callable[[], object] = lambda: None) -> None:
        """Count an operation; `half` does a part of it before it fails. Raises OSError if it is to fail."""
        self.operations.append(f"{kind} {os.path.basename(path)}")
        past = len(self.operations) - 1 - self.fault.number if self.fault else -1
        if past > 0 and self.fault.dead:
            raise Dead
        if past != 0:
            return
        half()
        if self.fault.dead:
            raise Dead
        if self.fault.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise OSError(self.fault.error, os.strerror(self.fault.error), path)

    def _where(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The whole of a path, if it lies below the folder."""
        if isinstance(path, int):
            whole = _path_of(path)
        else:
            whole = os.path.join(_path_of(dir_fd) if dir_fd is not None else os.getcwd(), os.fsdecode(path))
        return whole if whole.startswith(f"{self.folder}{os.sep}") or whole == str(self.folder) else None

    def _counted(self, honest: Callable, kind_of: Callable[..., str]) -> Callable:
        def operation(path, *rest, **named):
            where = self._where(path, named.get("dir_fd", named.get("src_dir_fd")))
            if where:
                self.happens(kind_of(*rest), where)
            return honest(path, *rest, **named)

        return operation

    def _files(self, honest: Callable) -> Callable:
        def operation(file, mode="r", *rest, **named):
            where = self._where(file)
            if where is None:
                return honest(file, mode, *rest, **named)
            if not isinstance(file, int) and not named.get("opener"):  # else it is counted where it is opened
                self.happens(READ if mode in ("r", "rb", "rt") else "open", where)
            if not set(mode) & set("wxa+"):
                return honest(file, mode, *rest, **named)
            assert "b" in mode, "text is written nowhere"
            raw = _Counted(file, mode.replace("b", ""), opener=named.get("opener"))
            raw.disk, raw.where = self, where
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        return operation


class _Counted(io.FileIO):
    """A file whose writes are counted, one by one, as they reach the disk."""

    disk: Disk
    where: str

    def write(self, content, /):
        self.disk.happens("write", self.where, lambda: super(_Counted, self).write(bytes(content)[: len(content) // 2]))
        return super().write(content)


def _path_of(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")
