"""Save a folder so that a reader sees the old one or the new one, never half, and can tell whether it was changed.

It is built beside its place, sealed with `manifest.json` (SHA-256 of every file in it) and renamed into its place. A
folder without a good manifest does not count.

Where a writer was killed between the two renames of a replacement, the old folder stands beside its place. Readers find
it there, by `standing`, and leave it; the next writer puts it back, by `recover`. What else a killed writer left
never counts, and goes by `clear`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.files import (
    NEW,
    WAY_OUT,
    disk_errors,
    make_folder,
    open_regular,
    parse_json,
    read_document,
    sync_folder,
    to_json,
    write_file,
)

MANIFEST = "manifest.json"


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving, fingerprint it and put it where `place` was.

    If the block raises, or the process is killed at any moment, a reader finds what there was before.

    Raises:
        DiskError: the disk refused. An OSError of the block itself passes as it is.
    """
    with disk_errors(place):
        _restore(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = make_folder(place.parent, place.name)
    try:
        yield fresh
        with disk_errors(place):
            _write_manifest(fresh)
            sync_folder(fresh)
            _exchange(fresh, place)
            sync_folder(place.parent)
    finally:
        _discard(fresh)


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
    content = read_document(path) if content is None else content
    manifest = parse_json(path, content)
    files: Any = manifest.get("files") if isinstance(manifest, dict) else None
    is_ours = isinstance(files, dict) and all(map(_is_entry, files.items())) and content == manifest_of(files)
    if not is_ours:  # a space more is damage too: the run's digest is of these bytes
        raise AlteredError(f"{path} is damaged.", WAY_OUT)
    return cast(dict[str, str], files)


def manifest_of(files: Any) -> bytes:
    """The manifest that lists `files`, SHA-256 by name."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return to_json({"files": files, "sha256": digest})


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
            found = sha256_of(place / name) if known is None else hashlib.sha256(known).hexdigest()
        except OSError as error:
            raise RunError(f"{place / name} cannot be read: {error.strerror}.", WAY_OUT) from error
        require_same(place / name, found, expected)


def require_same(file: Path, found: str, expected: str | None) -> None:
    """Compare two SHA-256. Raises AlteredError."""
    if found != expected:
        raise AlteredError(f"{file} is not the file that was saved: its SHA-256 differs.", WAY_OUT)


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
    with disk_errors(parent):
        for old in parent.glob(".*.old"):
            _restore(parent / _name_of(old.name))


def clear(parent: Path) -> None:
    """`recover`, and remove what else killed writers left. For who is the only writer. Raises DiskError."""
    recover(parent)
    remains = [old for old in parent.glob(".*.old") if (parent / _name_of(old.name) / MANIFEST).is_file()]
    for path in (*remains, *parent.glob(f".*{NEW}*")):
        _discard(path)


def _discard(path: Path) -> None:
    """Remove whatever it is, a pipe too, which rmtree would wait for; what cannot be removed is in nobody's way."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_folder(place: Path) -> None:
    """Remove a folder so that no reader ever finds it half there. Raises DiskError."""
    with disk_errors(place):
        for folder in (_old(place), place):  # the old one first, or it would stand for `place`
            if folder.exists():
                gone = make_folder(place.parent, place.name)
                folder.rename(gone / place.name)
                shutil.rmtree(gone)


def _write_manifest(folder: Path) -> None:
    files = {
        file.relative_to(folder).as_posix(): sha256_of(file) for file in sorted(folder.rglob("*")) if file.is_file()
    }
    write_file(folder / MANIFEST, manifest_of(files))


def sha256_of(path: Path) -> str:
    """Of a file's content. Raises OSError if it cannot be read."""
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


def _is_entry(entry: tuple[str, object]) -> bool:
    """Whether it can be the name of a file below a folder, and a hash."""
    file, digest = entry
    parts = file.split("/")
    return isinstance(digest, str) and file.isprintable() and not any(part in ("", ".", "..") for part in parts)


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
                _discard(old)
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
