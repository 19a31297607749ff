"""MNIST or the embedded digits → verified uint8 images, split into train, val and test."""

import gzip
import hashlib
import logging
import os
import shutil
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from lora_mnist.datasets.download import fetch_mnist
from lora_mnist.errors import DataError, DiskError

log = logging.getLogger("lora_mnist")

# file → (SHA-256 of the decompressed bytes, their number); images have a header of 16 bytes, labels of 8
MNIST_FILES = {
    "train-images-idx3-ubyte": ("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", 47_040_016),
    "train-labels-idx1-ubyte": ("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", 60_008),
    "t10k-images-idx3-ubyte": ("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", 7_840_016),
    "t10k-labels-idx1-ubyte": ("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", 10_008),
}
# of the drawn images and the labels of scikit-learn's digits
DIGITS_SHA256 = "451109209c3968e50316756ae86552934ac3abf39e2d23871e511a07d0f64b89"
DIGITS_TEST_SHARE = 0.2
DEADLINE = 120.0  # seconds a download may take


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, 28, 28) and labels int64 (N,), on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits; `val` may be empty. `sha256` identifies the images and labels, before splitting."""

    name: str
    sha256: str
    train: Split
    val: Split
    test: Split

    @property
    def held_out(self) -> dict[str, Split]:
        """The splits that are evaluated: `val`, where there is one, and `test`."""
        return {"val": self.val, "test": self.test} if len(self.val) else {"test": self.test}


def choose(wanted: str, folder: Path, quiet: bool = False) -> str:
    """Decide between `mnist` and `digits`, downloading MNIST into `folder` if it is not there.

    Args:
        wanted: `mnist` (or an error), `digits`, or `auto`: MNIST if it can be had, else the digits with a warning.

    Raises:
        DataError: MNIST is wanted and cannot be had.
        DiskError: it cannot be written.
    """
    if wanted == "digits" or all(_found(folder, name) for name in MNIST_FILES):
        return "digits" if wanted == "digits" else "mnist"
    log.info("MNIST is not in %s: downloading it (11 MB, at most %.0f s).", _raw(folder), DEADLINE)
    try:
        _download(folder, quiet=quiet)
    except (DataError, DiskError) as error:
        if wanted == "mnist":
            raise
        log.warning("%s Using scikit-learn's 1,797 digits instead.", error.cause)
        return "digits"
    return "mnist"


@lru_cache(maxsize=1)
def load(name: str, folder: Path, val_share: float, split_seed: int, device: torch.device | str = "cpu") -> Dataset:
    """Read data set `name` (`mnist` or `digits`) and split it; asked the same again, return it as it is.

    Args:
        folder: holds MNIST/raw/; not used by `digits`.
        val_share: share of the training images, per class, that becomes `val`; 0 for none.
        split_seed: seeds that choice.

    Raises:
        DataError: a file is missing or is not the published one.
    """
    if name == "mnist":
        files = [_read_file(folder, file) for file in MNIST_FILES]
        images, labels, test_images, test_labels = (_array(file) for file in files)
        sha256 = hashlib.sha256("".join(digest for digest, _ in MNIST_FILES.values()).encode()).hexdigest()
    elif name == "digits":
        all_images, all_labels = draw_digits()
        sha256 = DIGITS_SHA256
        rest, test = _stratified(all_labels, DIGITS_TEST_SHARE, seed=0)
        images, labels, test_images, test_labels = (
            all_images[rest],
            all_labels[rest],
            all_images[test],
            all_labels[test],
        )
    else:
        raise ValueError(f"{name!r} is no data set; `choose` decides between mnist and digits")
    train, val = _stratified(labels, val_share, split_seed)

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        return Split(torch.tensor(images, device=device), torch.tensor(labels, dtype=torch.int64, device=device))

    return Dataset(
        name,
        sha256,
        split(images[train], labels[train]),
        split(images[val], labels[val]),
        split(test_images, test_labels),
    )


def draw_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits, 8×8 with 17 grey levels, drawn into the middle of 28×28.

    Returns:
        Images uint8 (1797, 28, 28) and labels uint8 (1797,). Integers all the way, so the same bytes everywhere.

    Raises:
        DataError: scikit-learn's digits are not the ones this was made for.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = digits.images.astype(np.int64)  # (1797, 8, 8), 0 to 16
    large = _thrice(_thrice(small, axis=1), axis=2)  # (1797, 24, 24), 0 to 144
    images = np.pad((large * 255 // 144).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))  # (1797, 28, 28)
    labels = digits.target.astype(np.uint8)
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != DIGITS_SHA256:
        raise DataError("scikit-learn's digits are not the known ones.", "Install scikit-learn again.")
    return images, labels


def _thrice(pixels: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation to three pixels for each along `axis`; values grow threefold, to stay whole."""
    pixels = np.moveaxis(pixels, axis, -1)
    padded = np.pad(pixels, [(0, 0)] * (pixels.ndim - 1) + [(1, 1)], mode="edge")
    before, after = padded[..., :-2], padded[..., 2:]
    tripled = np.stack([before + 2 * pixels, 3 * pixels, 2 * pixels + after], axis=-1)
    return np.moveaxis(tripled.reshape(*pixels.shape[:-1], -1), -1, axis)


def _stratified(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (rest, chosen), both ascending; of every class, `share` of its images is chosen."""
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    total = round(share * len(labels))
    classes = [np.flatnonzero(labels == digit) for digit in range(10)]
    exact = np.array([share * len(members) for members in classes])
    counts = exact.astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1  # largest remainders first
    for members, count in zip(classes, counts, strict=True):
        chosen[random.permutation(members)[:count]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _raw(folder: Path) -> Path:
    return folder / "MNIST" / "raw"


def _found(folder: Path, name: str) -> Path | None:
    plain = _raw(folder) / name
    return next((path for path in (plain, plain.with_name(f"{name}.gz")) if path.is_file()), None)


def _read_file(folder: Path, name: str) -> bytes:
    """The raw bytes of one MNIST file, from itself or its .gz, exactly as published."""
    path = _found(folder, name)
    if path is None:
        raise DataError(f"{_raw(folder) / name} is missing.", "Lay it there, plain or as .gz, or point --data to it.")
    sha256, size = MNIST_FILES[name]
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
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


def _download(folder: Path, deadline: float = DEADLINE, mirrors: tuple[str, ...] = (), quiet: bool = False) -> None:
    """Bring MNIST's four raw files into `folder`. Files that are there stay. Raises DataError or DiskError."""
    try:
        _raw(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        fresh = fetch_mnist(folder, list(MNIST_FILES), deadline, mirrors, quiet)
    except OSError as error:
        raise DataError(
            f"MNIST could not be downloaded: {error}.",
            f"Lay the four files into {_raw(folder)}, or point --data to them.",
        ) from error
    top = fresh.parents[1]
    try:
        for name in MNIST_FILES:
            _read_file(top, name)
            if not _found(folder, name):
                os.replace(fresh / name, _raw(folder) / name)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(top)


def _unwritable(folder: Path, error: OSError) -> DiskError:
    return DiskError(f"Cannot write {_raw(folder)}: {error.strerror}.", "Choose another place with --data.")
