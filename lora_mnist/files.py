"""Write a file or folder so that a reader sees the old one or the new one, never half.

A folder is built beside its place, sealed with `manifest.json` (SHA-256 of every file in it) and renamed into its
place. A folder without a good manifest does not count.

Where a writer was killed between the two renames of a replacement, the old folder stands beside its place. Readers find
it there, by `standing`, and leave it; the next writer puts it back, by `recover`. What else a killed writer left
never counts, and goes by `clear`.
"""

import errno
import hashlib
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

MANIFEST = "manifest.json"
NEW = ".new-"  # in the name of what is not yet in its place; never read
LARGEST_DOCUMENT = 64 << 20  # bytes: no JSON or table of ours comes near it
LARGEST_WEIGHTS = 8 << 30  # bytes: a network of 2 thousand million numbers
WAY_OUT = "Restore it from a copy, or make it again."


def to_json(document: Any) -> bytes:
    """Serialise `document`; NaN and infinity are refused (ValueError) because JSON has neither."""
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises RunError if it cannot be read, AlteredError if it is not JSON."""
    try:
        return _parse_json(path, read_regular(path))
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


def _parse_json(path: Path, content: bytes) -> Any:
    """The document in `content`, which was read from `path`. Raises AlteredError if it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AlteredError(f"{path} is not JSON: {error}.", WAY_OUT) from error


def require_writable(folder: Path) -> None:
    """Create `folder` and prove that files can be made in it, before any work is spent. Raises DiskError."""
    with _disk_errors(folder):
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
    if path.exists() and not force:
        raise UsageError(f"{path} is there already.", "Name another file, or replace it with --force.")
    require_writable(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step. Raises DiskError."""
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content)
        if NEW not in path.parent.name:  # a folder that is being built is synced once, when it is whole
            _sync_folder(path.parent)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace several files that belong together: all are written before the first is replaced, so that a full disk
    leaves the old ones; killed in between, some are missing, but none of the old stands beside one of the new.

    Raises:
        DiskError: the disk refused.
    """
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = _make_folder(folder, "")
        try:
            for name, content in contents.items():
                _write(fresh / name, content)
            for name in contents:
                (folder / name).unlink(missing_ok=True)
            for name in contents:
                (fresh / name).rename(folder / name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        _sync_folder(folder)


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving, seal it and put it where `place` was.

    If the block raises, or the process is killed at any moment, a reader finds what there was before.

    Raises:
        DiskError: the disk refused. An OSError of the block itself passes as it is.
    """
    with _disk_errors(place):
        _restore(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = _make_folder(place.parent, place.name)
    try:
        yield fresh
        with _disk_errors(place):
            _write_manifest(fresh)
            _sync_folder(fresh)
            _exchange(fresh, place)
            _sync_folder(place.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def standing(place: Path) -> Path:
    """Where the finished folder of `place` stands now: there, or beside it; `place` itself if there is none.

    For reading at once: the next writer moves it.
    """
    for where in (place, _old(place)):
        if (where / MANIFEST).is_file():
            return where
    return place  # also if a writer finished between the two looks


def read_manifest(place: Path, content: bytes | None = None) -> dict[str, str]:
    """SHA-256 of every other file of a sealed folder, by its name.

    Args:
        content: of the manifest, if it has been read already.

    Raises:
        RunError: it cannot be read.
        AlteredError: it is not the one that was saved.
    """
    path = standing(place) / MANIFEST
    manifest = read_json(path) if content is None else _parse_json(path, content)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("sha256") != _digest_of(files) or not all(map(_is_name, files)):
        raise AlteredError(f"{path} is damaged.", WAY_OUT)
    return files


def check_folder(place: Path, contents: Mapping[str, bytes] | None = None) -> None:
    """Compare every file of a sealed folder with its manifest.

    Args:
        contents: of files that have been read already, by name.

    Raises:
        RunError: a file is missing or unreadable.
        AlteredError: a file, named, is not the one that was saved.
    """
    place, contents = standing(place), contents or {}
    for name, expected in read_manifest(place, contents.get(MANIFEST)).items():
        try:
            known = contents.get(name)
            found = _sha256(place / name) if known is None else hashlib.sha256(known).hexdigest()
        except OSError as error:
            raise RunError(f"{place / name} cannot be read: {error.strerror}.", WAY_OUT) from error
        if found != expected:
            raise AlteredError(f"{place / name} is not the file that was saved: its SHA-256 differs.", WAY_OUT)


def is_finished(place: Path) -> bool:
    """Whether `place` was saved whole. Cheap: the manifest's presence, not its contents, since it is written last."""
    return _saved_at(place) is not None


def mark_of(place: Path) -> tuple[int, int] | None:
    """What changes whenever a folder is saved there; None if none is. Cheap: nothing is read."""
    found = _manifest_of(place)
    return None if found is None else (found.st_ino, found.st_mtime_ns)


def finished_folders(parent: Path) -> list[Path]:
    """The places in `parent` whose folders were saved whole, oldest first; each stands where `standing` says."""
    entries = [entry.name for entry in parent.iterdir() if NEW not in entry.name] if parent.is_dir() else []
    saved = {place: _saved_at(place) for place in {parent / _name_of(entry) for entry in entries}}
    finished = [(time, place.name, place) for place, time in saved.items() if time is not None]
    return [place for _, _, place in sorted(finished)]


def recover(parent: Path) -> None:
    """Put back every folder in `parent` whose replacement was killed half-way. For writers. Raises DiskError."""
    with _disk_errors(parent):
        for old in parent.glob(".*.old"):
            _restore(parent / _name_of(old.name))


def clear(parent: Path) -> None:
    """`recover`, and remove what else killed writers left. For who is the only writer. Raises DiskError."""
    recover(parent)
    remains = [old for old in parent.glob(".*.old") if (parent / _name_of(old.name) / MANIFEST).is_file()]
    for path in (*remains, *parent.glob(f".*{NEW}*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # what cannot be removed is in nobody's way
                path.unlink()


def remove_folder(place: Path) -> None:
    """Remove a folder so that no reader ever finds it half there. Raises DiskError."""
    with _disk_errors(place):
        for folder in (_old(place), place):  # the old one first, or it would stand for `place`
            if folder.exists():
                gone = _make_folder(place.parent, place.name)
                folder.rename(gone / place.name)
                shutil.rmtree(gone)


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


def _make_folder(parent: Path, name: str) -> Path:
    folder = parent / f".{name}{NEW}{_token()}"
    folder.mkdir()
    return folder


def _token() -> str:
    return os.urandom(4).hex()


def _sync_folder(folder: Path) -> None:
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


def _write_manifest(folder: Path) -> None:
    files = {file.relative_to(folder).as_posix(): _sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    _write(folder / MANIFEST, to_json({"files": files, "sha256": _digest_of(files)}))


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _saved_at(place: Path) -> int | None:
    """The time of its manifest in nanoseconds; None if it was not saved."""
    found = _manifest_of(place)
    return None if found is None else found.st_mtime_ns


def _manifest_of(place: Path) -> os.stat_result | None:
    for where in (place, _old(place), place):  # there again, because a writer may have finished since the first look
        with suppress(FileNotFoundError, NotADirectoryError):
            return (where / MANIFEST).stat()
    return None


def _is_name(file: str) -> bool:
    """Whether it can be that of a file below a folder."""
    parts = file.split("/")
    return file.isprintable() and not any(part in ("", ".", "..") for part in parts)


def _digest_of(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _name_of(entry: str) -> str:
    """Of a folder that may be waiting as its own `_old`."""
    return entry[1:-4] if entry.startswith(".") and entry.endswith(".old") else entry


def _exchange(fresh: Path, place: Path) -> None:
    """Two renames, because no portable call swaps folders; readers between them find the old one by `standing`.

    A third takes the old one out of the way, whole, to where `fresh` was.
    """
    old = _old(place)
    for attempt in (1, 2):
        try:
            if place.exists():  # else `old` may be the only copy
                shutil.rmtree(old, ignore_errors=True)
                place.rename(old)
            fresh.rename(place)
            break
        except OSError:  # a writer of another folder put the old one back in between; it will hardly do so twice
            if attempt == 2:
                raise
        finally:
            _restore(place)
    with suppress(OSError):  # there was none
        old.rename(fresh)


def _restore(place: Path) -> None:
    old = _old(place)
    if old.exists() and not place.exists():
        try:
            old.rename(place)
        except OSError:
            if not place.exists():  # else its own writer came first
                raise


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"Cannot write {path}: {error.strerror or error}.",
            "Make room or choose another place; nothing that was finished before is lost.",
        ) from error
