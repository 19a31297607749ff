"""MNIST: the four published files, read from the disk as they are or downloaded there."""

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from lora_mnist.datasets.download import fetch_mnist
from lora_mnist.datasets.published import MNIST_FILES
from lora_mnist.errors import DataError, DiskError
from lora_mnist.files import open_regular

DEADLINE = 120.0  # seconds a download may take


def raw_folder(folder: Path) -> Path:
    """Where the files lie below `folder`, as torchvision lays them."""
    return folder / "MNIST" / "raw"


def is_there(folder: Path) -> bool:
    """Whether `folder` has all four files, plain or as .gz; `read_mnist` says whether they are the published ones."""
    return all(_found(folder, name) for name in MNIST_FILES)


def read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (60000, 28, 28) and labels uint8 (60000,), then those of the test set, (10000, 28, 28) and (10000,).

    Raises:
        DataError: a file is missing or is not the published one.
    """
    images, labels, test_images, test_labels = (_array(_read_file(folder, name)) for name in MNIST_FILES)
    return images, labels, test_images, test_labels


def download_mnist(folder: Path, quiet: bool = False) -> None:
    """Bring the four files into `folder`. Files that are there stay. Raises DataError or DiskError."""
    try:
        raw_folder(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        with fetch_mnist(folder, DEADLINE, quiet=quiet) as fresh:
            _lay(fresh, folder)
    except OSError as error:
        raise DataError(
            f"MNIST could not be downloaded: {error}.",
            f"Lay the four files into {raw_folder(folder)}, or point --data to them.",
        ) from error


def _lay(fresh: Path, folder: Path) -> None:
    """Unpack what was fetched, and put it in its place. Raises DataError or DiskError."""
    try:
        for name in MNIST_FILES:
            if not _found(folder, name):
                (fresh / name).write_bytes(_content(fresh / f"{name}.gz", name))
                os.replace(fresh / name, raw_folder(folder) / name)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _found(folder: Path, name: str) -> Path | None:
    plain = raw_folder(folder) / name
    return next((path for path in (plain, plain.with_name(f"{name}.gz")) if path.is_file()), None)


def _read_file(folder: Path, name: str) -> bytes:
    """The raw bytes of one MNIST file, from itself or its .gz, exactly as published."""
    path = _found(folder, name)
    if path is None:
        raise DataError(
            f"{raw_folder(folder) / name} is missing.", "Lay it there, plain or as .gz, or point --data to it."
        )
    return _content(path, name)


def _content(path: Path, name: str) -> bytes:
    """The decompressed bytes of one of the four, wherever it lies."""
    sha256, size = MNIST_FILES[name]
    try:
        with open_regular(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            content = file.read(size + 1)  # one more shows that it is too long, without unpacking gigabytes
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Delete it; MNIST is then downloaded again.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{path} is not the published file: its SHA-256 differs.", "Delete it; MNIST is then downloaded again."
        )
    return content


def _array(content: bytes) -> np.ndarray:
    """idx format: two zero bytes, a type byte, the number of dimensions, then each dimension as a big-endian uint32."""
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def _unwritable(folder: Path, error: OSError) -> DiskError:
    return DiskError(f"Cannot write {raw_folder(folder)}: {error.strerror}.", "Choose another place with --data.")
