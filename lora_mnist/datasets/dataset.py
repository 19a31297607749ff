"""MNIST or the embedded digits → verified uint8 images, split into train, val and test."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lora_mnist.datasets.embedded import DIGITS_SHA256, draw_digits
from lora_mnist.datasets.mnist import MNIST_SHA256, download_mnist, is_there, raw_folder, read_mnist, what_lies_in
from lora_mnist.errors import DataError, DiskError
from lora_mnist.settings.config import KnownDataset

log = logging.getLogger("lora_mnist")

DIGITS_TEST_SHARE = 0.2


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

    name: KnownDataset
    sha256: str
    train: Split
    val: Split
    test: Split

    @property
    def held_out(self) -> dict[str, Split]:
        """The splits that are evaluated: `val`, where there is one, and `test`."""
        return {"val": self.val, "test": self.test} if len(self.val) else {"test": self.test}


def choose(wanted: str, folder: Path, quiet: bool = False, offline: bool = False) -> KnownDataset:
    """Decide between `mnist` and `digits`, downloading MNIST into `folder` if it is not there.

    Args:
        wanted: `mnist` (or an error), `digits`, or `auto`: MNIST if it can be had, else the digits with a warning.
        offline: nothing may be downloaded.

    Raises:
        DataError: MNIST is wanted and cannot be had.
        DiskError: it cannot be written.
    """
    if wanted == "digits":
        return "digits"
    if is_there(folder):
        return "mnist"
    raw = raw_folder(folder)
    try:
        if offline:
            raise DataError(
                f"MNIST is not in {raw}{what_lies_in(folder)}; --offline, or LORA_MNIST_OFFLINE, forbids a download.",
                f"Lay the four files into {raw}, point --data to them, or let them be downloaded.",
            )
        log.info("MNIST is not in %s%s: downloading it (11 MB).", raw, what_lies_in(folder))
        download_mnist(folder, quiet)
    except (DataError, DiskError) as error:
        if wanted == "mnist":
            raise
        log.warning("%s Using scikit-learn's 1,797 digits instead.", error.cause)
        return "digits"
    return "mnist"


def load(
    name: KnownDataset, folder: Path, val_share: float, split_seed: int, device: torch.device | str = "cpu"
) -> Dataset:
    """Read data set `name` (`mnist` or `digits`) and split it.

    Args:
        folder: holds MNIST/raw/; not used by `digits`.
        val_share: share of the training images, per class, that becomes `val`; 0 for none.
        split_seed: seeds that choice.

    Raises DataError if a file is missing or is not the published one.
    """
    if name == "mnist":
        sha256, (images, labels, test_images, test_labels) = MNIST_SHA256, read_mnist(folder)
    elif name == "digits":
        sha256, (images, labels) = DIGITS_SHA256, draw_digits()
        rest, test = _stratified(labels, DIGITS_TEST_SHARE, seed=0)  # they have no test set of their own
        images, labels, test_images, test_labels = images[rest], labels[rest], images[test], labels[test]
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
