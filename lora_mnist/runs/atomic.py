"""Files and folders that are written whole or not at all, by one writer at a time.

A folder is built beside its place, gets a `manifest.json` with the SHA-256 of every file, and is moved into its place.
A folder without a good manifest does not count. A writer that was killed between the two renames of a replacement
leaves the old folder beside its place: readers find it there (`where_is`), the next writer puts it back (`recover`).
"""

import errno
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mnist.errors import AlteredError, BusyError, DiskError, UsageError
from lora_mnist.files import open_regular, read_regular, removed_if_empty

if TYPE_CHECKING:
    from filelock import FileLock

MANIFEST, LOCK, HOLDER = "manifest.json", ".lock", ".writer"
TEMPORARY = ".new-"  # in the name of everything that is not in its place yet; readers never look at it
LARGEST_WEIGHTS = 8 << 30  # bytes; a network of two thousand million numbers
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}  # as some file systems say
RESTORE = "Restore it from a copy, or make it again with --force."

log = logging.getLogger("lora_mnist")

# Files ----------------------------------------------------------------------------------------------------------------


def parse_json(path: Path, content: bytes) -> Any:
    """The document in `content`, which was read from `path`. Raises AlteredError if it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AlteredError(f"{path} is not JSON: {error}.", RESTORE) from error


def to_json(document: Any) -> bytes:
    """Serialise `document`. Raises ValueError for NaN and infinity, which JSON does not have."""
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def sha256_of(path: Path) -> str:
    """Of a file's content. Raises OSError if it cannot be read."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step. Raises DiskError."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = _temporary(path)
        try:
            with fresh.open("xb") as file:  # not tempfile's, which are private: the umask decides who may read it
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            _discard(fresh)
            raise
        if TEMPORARY not in path.parent.name:  # a folder that is being built is synced once, when it is whole
            sync_folder(path.parent)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a DiskError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"Cannot write {path}: {error.strerror or error}.",
            "Make room or choose another place; nothing that was finished before is lost.",
        ) from error


def require_writable(folder: Path) -> None:
    """Check that files can be made in `folder`, before any work is spent, and leave nothing. Raises DiskError."""
    with disk_errors(folder), removed_if_empty(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")


def require_no_file(path: Path, force: bool) -> None:
    """Check that a file of the user's choice can be written, before any work is spent.

    Raises UsageError if something is there and must not be replaced, or is no file, DiskError if the disk refuses.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", "Name a file in it.")
    if path.exists() and not path.is_file():  # replacing a device would break the system
        raise UsageError(f"{path} is not a regular file.", "Name another file.")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already.", "Name another file, or replace it with --force.")
    require_writable(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, as the files they name do, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems
            raise
    finally:
        os.close(handle)


# Folders with a manifest ----------------------------------------------------------------------------------------------


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving, write its manifest and move it to `place`.

    If the block raises, or the process is killed at any moment, a reader finds what there was before.

    Raises:
        DiskError: the disk refused. An OSError of the block itself passes as it is.
    """
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        _put_back(place)
        fresh = _temporary(place)
        fresh.mkdir()
    try:
        yield fresh
        with disk_errors(place):
            names = sorted(file.relative_to(fresh).as_posix() for file in fresh.rglob("*") if file.is_file())
            write_file(fresh / MANIFEST, manifest_of({name: sha256_of(fresh / name) for name in names}))
            sync_folder(fresh)
            # no portable call exchanges two folders, so there are two renames; between them readers find the old one
            old = _old(place)
            if place.exists():  # else `old` may be the only copy
                _discard(old)
                place.rename(old)
            fresh.rename(place)
            sync_folder(place.parent)
            _discard(old)
    finally:
        with suppress(OSError):
            _put_back(place)
        _discard(fresh)


def where_is(place: Path) -> Path:
    """Where the finished folder of `place` is: there, or beside it after a kill; `place` itself if there is none."""
    for folder in (place, _old(place)):
        if (folder / MANIFEST).is_file():
            return folder
    return place  # also if a writer finished between the two looks


def is_finished(place: Path) -> bool:
    """Whether `place` was saved whole: the manifest is written last, and only its presence is checked."""
    return (where_is(place) / MANIFEST).is_file()


def version_of(place: Path) -> tuple[int, int] | None:
    """Changes whenever a folder is saved there; None if none is. Nothing is read."""
    try:
        found = (where_is(place) / MANIFEST).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns


def finished_folders(parent: Path) -> list[Path]:
    """The places in `parent` whose folders were saved whole, oldest first."""
    found = [(version[1], place.name, place) for place in _places(parent) if (version := version_of(place))]
    return [place for _, _, place in sorted(found)]


def unfinished_folders(parent: Path) -> list[Path]:
    """The places in `parent` that are folders without a manifest: somebody deleted it, or put them there."""
    return [place for place in _places(parent) if place.is_dir() and not is_finished(place)]


def parse_manifest(path: Path, content: bytes) -> dict[str, str]:
    """SHA-256 of every other file of the folder, by its name, from the manifest that was read from `path`.

    Raises AlteredError if it is not the saved one.
    """
    manifest = parse_json(path, content)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if (
        isinstance(files, dict)
        and all(isinstance(sha256, str) and name.isprintable() for name, sha256 in files.items())
        and not any({"", ".", ".."} & {*name.split("/")} for name in files)  # each is the name of a file below here
        and content == manifest_of(files)  # a space more is damage too, since the run digest covers these bytes
    ):
        return files
    raise AlteredError(f"{path} is damaged.", RESTORE)


def manifest_of(files: Mapping[str, str]) -> bytes:
    """The manifest that lists `files`, SHA-256 by name."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return to_json({"files": files, "sha256": digest})


def require_same(file: Path, found: str, expected: str | None) -> None:
    """Compare two SHA-256. Raises AlteredError."""
    if found != expected:
        raise AlteredError(f"{file} is not the saved file: its SHA-256 differs.", RESTORE)


def recover(parent: Path) -> None:
    """Put back folders whose replacement was killed half-way, and remove other leftovers. For the only writer.

    Raises DiskError if the disk refuses.
    """
    with disk_errors(parent):
        for old in parent.glob(".*.old"):
            place = parent / old.name[1:-4]
            _put_back(place)
            if (place / MANIFEST).is_file():
                _discard(old)
        for leftover in parent.glob(f".*{TEMPORARY}*"):
            _discard(leftover)


def remove_folder(place: Path) -> None:
    """Remove a folder so that no reader ever finds half of it. Raises DiskError."""
    with disk_errors(place):
        for folder in (_old(place), place):  # the old one first, or readers would take it for `place`
            if folder.exists():
                gone = _temporary(place)
                folder.rename(gone)
                shutil.rmtree(gone)


def _places(parent: Path) -> list[Path]:
    """What is in `parent`, in alphabetical order, without hidden entries; a folder beside its place by that place."""
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    put_aside = [name[1:-4] for name in names if name.startswith(".") and name.endswith(".old")]
    return [parent / name for name in sorted({*put_aside, *(name for name in names if not name.startswith("."))})]


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{TEMPORARY}{os.urandom(4).hex()}")


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _put_back(place: Path) -> None:
    old = _old(place)
    if old.exists() and not place.exists():
        old.rename(place)


def _discard(path: Path) -> None:
    """Remove whatever it is, a pipe too, which rmtree would wait for. What cannot be removed is in nobody's way."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


# One writer -----------------------------------------------------------------------------------------------------------


@contextmanager
def one_writer(folder: Path) -> Iterator[bool]:
    """Be the only one that writes to `folder`, by a lock of the system that a kill frees; one thread may nest it.

    A folder that is made for it and stays empty is removed again. Yields whether this is the outermost call.

    Raises:
        BusyError: another command writes there. It names that command and does not wait.
        DiskError: the lock cannot be made.
    """
    from filelock import FileLock

    lock_file, holder = folder / LOCK, folder / HOLDER
    # a marker file in place of a lock would outlive a kill, so there is no soft lock to fall back on
    lock = FileLock(os.path.realpath(lock_file), timeout=0, is_singleton=True, fallback_to_soft=False)
    if lock.is_locked:  # by this thread
        with lock:
            yield False
        return
    with removed_if_empty(folder):
        _acquire(lock, folder)
        try:
            with suppress(OSError):  # on a full disk the command's own files matter, not its name
                command = shlex.join(["lora-mnist", *sys.argv[1:]])[:500]
                since = datetime.now().astimezone().isoformat(" ", "seconds")
                holder.write_bytes(f"process {os.getpid()} (`{command}`), since {since}".encode())
            yield True
        finally:
            for path in (holder, lock_file):  # while the lock is held: filelock takes none on a file without a name
                with suppress(OSError):
                    path.unlink()
            lock.release()


def _acquire(lock: "FileLock", folder: Path) -> None:
    """Make `folder` and take its lock, where its file system has locks. Raises as `one_writer` does."""
    from filelock import Timeout

    with disk_errors(folder):
        if (folder / LOCK).is_symlink():  # the file it links to would be written over
            raise DiskError(f"{folder / LOCK} is a link to another file.", "Remove it.")
        for attempt in (1, 2, 3):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock.acquire()
                return
            except Timeout as error:
                raise BusyError(
                    f"{folder} is being written by {writer_of(folder) or 'another command'}.",
                    "Wait until it is done, end it, or choose another folder.",
                ) from error
            except OSError as error:
                if error.errno in NO_LOCKS:
                    log.warning("Note: %s is on a file system without locks. Run one command at a time.", folder)
                    return
                if attempt == 3 or not isinstance(error, FileNotFoundError):  # another command removed its empty folder
                    raise


def writer_of(folder: Path) -> str | None:
    """The process and command that write to `folder`, as they left it there; None if nobody did."""
    with suppress(OSError, UnicodeDecodeError):
        return read_regular(folder / HOLDER, largest=4096).decode() or None
    return None
