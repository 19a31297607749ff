"""Read and write files: a reader of one sees the old content or the new, never half; and only regular ones are read."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from lora_mnist.errors import AlteredError, DiskError, RunError, UsageError

NEW = ".new-"  # in the name of what is not yet in its place; never read
LARGEST_DOCUMENT = 64 << 20  # bytes: no JSON or table of ours comes near it
LARGEST_WEIGHTS = 8 << 30  # bytes: a network of 2 thousand million numbers
WAY_OUT = "Restore it from a copy, or make it again."


def to_json(document: Any) -> bytes:
    """Serialise `document`; NaN and infinity are refused (ValueError) because JSON has neither."""
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises RunError if it cannot be read, AlteredError if it is not JSON."""
    return parse_json(path, read_document(path))


def read_document(path: Path) -> bytes:
    """The content of a file of a run. Raises RunError if it cannot be read."""
    try:
        return read_regular(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.", WAY_OUT) from error


def read_regular(path: Path, largest: int = LARGEST_DOCUMENT) -> bytes:
    """The content of a file. Raises OSError if it cannot be read, is no regular file, or has more than `largest` bytes.

    A pipe would be waited for without end, and a device may have no end.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes")
        return file.read()


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read it. Raises OSError if it cannot be read or is no regular file."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        kind = os.fstat(handle).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "it is no regular file")
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def parse_json(path: Path, content: bytes) -> Any:
    """The document in `content`, which was read from `path`. Raises AlteredError if it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AlteredError(f"{path} is not JSON: {error}.", WAY_OUT) from error


def require_writable(folder: Path) -> None:
    """Create `folder` and prove that files can be made in it, before any work is spent. Raises DiskError."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")


def require_unused(path: Path, force: bool) -> None:
    """Make sure that a file of the user's choice can be written, before any work is spent.

    Raises:
        UsageError: something is there already and not to be replaced, or it is no file.
        DiskError: the disk refuses.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", "Name a file in it.")
    if path.exists() and not path.is_file():  # to replace a device would break the system
        raise UsageError(f"{path} is no regular file.", "Name another file.")
    if path.exists() and not force:
        raise UsageError(f"{path} is there already.", "Name another file, or replace it with --force.")
    require_writable(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step. Raises DiskError."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content)
        if NEW not in path.parent.name:  # a folder that is being built is synced once, when it is whole
            sync_folder(path.parent)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace several files that belong together: all are written before the first is replaced, so that a full disk
    leaves the old ones; killed in between, some are missing, but none of the old stands beside one of the new.

    Raises:
        DiskError: the disk refused.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = make_folder(folder, "")
        try:
            for name, content in contents.items():
                _write(fresh / name, content)
            for name in contents:
                (folder / name).unlink(missing_ok=True)
            for name in contents:
                (fresh / name).rename(folder / name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        sync_folder(folder)


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}{NEW}{_token()}")
    try:
        with fresh.open("xb") as file:  # not tempfile's, which are private: the umask decides who may read it
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise


def make_folder(parent: Path, name: str) -> Path:
    """An empty folder in `parent` that never counts (see `NEW`), for what is to be called `name`."""
    folder = parent / f".{name}{NEW}{_token()}"
    folder.mkdir()
    return folder


def _token() -> str:
    return os.urandom(4).hex()


def sync_folder(folder: Path) -> None:
    """Let the names in `folder` outlive a power cut as the files do that they name, where the system offers that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # as Windows has it
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems
            raise
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Let an OSError of the block be a DiskError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"Cannot write {path}: {error.strerror or error}.",
            "Make room or choose another place; nothing that was finished before is lost.",
        ) from error
