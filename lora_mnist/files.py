"""Write a file or folder so that a reader sees the old one or the new one, never half.

A folder is built beside its place, sealed with `manifest.json` (SHA-256 of every file in it) and renamed into its
place. A folder without a good manifest does not count.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_mnist.errors import AlteredError, DiskError, RunError

MANIFEST = "manifest.json"


def to_json(document: Any) -> bytes:
    """Serialise `document`; NaN and infinity are refused (ValueError) because JSON has neither."""
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises RunError if it cannot be read, AlteredError if it is not JSON."""
    way_out = "Restore it from a copy, or run its stage again with --force."
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.", way_out) from error
    except (ValueError, RecursionError) as error:
        raise AlteredError(f"{path} is not JSON: {error}.", way_out) from error


def require_writable(folder: Path) -> None:
    """Create `folder` and prove that files can be made in it, before any work is spent. Raises DiskError."""
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step. Raises DiskError."""
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp makes it private; a run is to be shared like any other file
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace several files that belong together: all are written before the first is replaced, so that a full disk
    leaves the old ones; killed in between, some are missing, but none of the old stands beside one of the new.

    Raises:
        DiskError: the disk refused.
    """
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as fresh:
            for name, content in contents.items():
                write_file(Path(fresh) / name, content)
            for name in contents:
                (folder / name).unlink(missing_ok=True)
            for name in contents:
                (Path(fresh) / name).rename(folder / name)


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving, seal it and put it where `place` was.

    If the block raises, or the process is killed at any moment, `place` is what it was before. Raises DiskError.
    """
    with _disk_errors(place):
        _restore(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        for remains in place.parent.glob(f".{place.name}.new-*"):  # of a process that was killed
            shutil.rmtree(remains)
        fresh = Path(tempfile.mkdtemp(prefix=f".{place.name}.new-", dir=place.parent))
        try:
            yield fresh
            _write_manifest(fresh)
            fresh.chmod(0o755)
            _exchange(fresh, place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def check_folder(place: Path) -> None:
    """Compare every file of a sealed folder with its manifest.

    Raises:
        RunError: a file is missing or unreadable.
        AlteredError: a file, named, is not the one that was saved.
    """
    _restore(place)
    manifest = read_json(place / MANIFEST)
    way_out = "Restore it from a copy, or make it again with --force."
    if not isinstance(manifest, dict) or manifest.get("sha256") != _digest_of(manifest.get("files")):
        raise AlteredError(f"{place / MANIFEST} is damaged.", way_out)
    for name, expected in manifest["files"].items():
        try:
            found = hashlib.sha256((place / name).read_bytes()).hexdigest()
        except OSError as error:
            raise RunError(f"{place / name} cannot be read: {error.strerror}.", way_out) from error
        if found != expected:
            raise AlteredError(f"{place / name} is not the file that was saved: its SHA-256 differs.", way_out)


def is_finished(place: Path) -> bool:
    """Whether `place` was saved whole. Cheap: the manifest's presence, not its contents, since it is written last."""
    _restore(place)
    return (place / MANIFEST).is_file()


def finished_folders(parent: Path) -> list[Path]:
    """The folders in `parent` that were saved whole, oldest first."""
    places = {parent / _name_of(entry.name) for entry in parent.iterdir()} if parent.is_dir() else set()
    finished = [place for place in places if is_finished(place)]
    return sorted(finished, key=lambda place: ((place / MANIFEST).stat().st_mtime_ns, place.name))


def remove_folder(place: Path) -> None:
    """Remove a folder so that no reader ever finds it half there. Raises DiskError."""
    with _disk_errors(place):
        if place.exists():
            gone = Path(tempfile.mkdtemp(prefix=f".{place.name}.new-", dir=place.parent))
            place.rename(gone / place.name)
            shutil.rmtree(gone)


def _write_manifest(folder: Path) -> None:
    files = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    write_file(folder / MANIFEST, to_json({"files": files, "sha256": _digest_of(files)}))


def _digest_of(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _name_of(entry: str) -> str:
    """Of a folder that may be waiting as its own `_old`."""
    return entry[1:-4] if entry.startswith(".") and entry.endswith(".old") else entry


def _exchange(fresh: Path, place: Path) -> None:
    """Two renames, because no portable call swaps folders. `_restore` undoes the first if the second never came."""
    old = _old(place)
    for attempt in (1, 2):
        if place.exists():  # else `old` may be the only copy
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        try:
            fresh.rename(place)
            break
        except OSError:  # a reader put the old one back between the two renames; it will hardly do so twice
            if attempt == 2:
                raise
        finally:
            _restore(place)
    shutil.rmtree(old, ignore_errors=True)


def _restore(place: Path) -> None:
    old = _old(place)
    if old.exists() and not place.exists():
        old.rename(place)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"Cannot write {path}: {error.strerror or error}.",
            "Free space or choose another place with --run; nothing that was finished before is lost.",
        ) from error
