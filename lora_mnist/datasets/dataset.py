"""MNIST, or 5,000 of its images → verified uint8 images, split into train, val and test."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lora_mnist.datasets.embedded import MNIST_5K_SHA256, read_mnist_5k
from lora_mnist.datasets.mnist import MNIST_SHA256, describe_folder, download_mnist, is_there, raw_folder, read_mnist
from lora_mnist.errors import DataError, DiskError
from lora_mnist.settings.config import KnownDataset

log = logging.getLogger("lora_mnist")

DATA = Path("data")  # where data sets lie unless something else is said
TEST_SHARE = 0.2  # of mnist-5k, which has no test set of its own: all of it are training images of MNIST


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


def data_folder(given: Path | None, remembered: str | None = None) -> Path:
    """The folder that is `given`; else the one where a run found MNIST, if that still is there; else `data/`."""
    if given is not None:
        return given
    return Path(remembered) if remembered and is_there(Path(remembered)) else DATA


def choose_dataset(wanted: str, folder: Path, quiet: bool = False, offline: bool = False) -> KnownDataset:
    """Decide between `mnist` and `mnist-5k`, downloading MNIST into `folder` if it is not there.

    Args:
        wanted: `mnist` (or an error), `mnist-5k`, or `auto`: MNIST if it can be had, else mnist-5k with a warning.
        offline: nothing may be downloaded.

    Raises DataError if MNIST is wanted and cannot be had, DiskError if it cannot be written.
    """
    if wanted == "mnist-5k":
        return "mnist-5k"
    if is_there(folder):
        return "mnist"
    raw = raw_folder(folder)
    missing = f"MNIST is not in {raw}{describe_folder(folder)}"
    try:
        if offline:
            cause = f"{missing}; --offline, or LORA_MNIST_OFFLINE, forbids a download."
            raise DataError(cause, f"Lay the four files into {raw}, point --data to them, or let them be downloaded.")
        log.info("%s: downloading it (11 MB).", missing)
        download_mnist(folder, quiet)
    except (DataError, DiskError) as error:
        if wanted == "mnist":
            raise
        log.warning("%s Using mnist-5k, 5,000 of its images.", error.cause)
        return "mnist-5k"
    return "mnist"


def load(
    name: KnownDataset,
    folder: Path,
    val_share: float,
    split_seed: int,
    device: torch.device | str = "cpu",
    val_from: Literal["train", "test"] = "train",
) -> Dataset:
    """Read data set `name` (`mnist` or `mnist-5k`) and split it.

    Args:
        folder: holds MNIST/raw/; not used by `mnist-5k`.
        val_share: share of the images of `val_from`, per class, that becomes `val`; 0 for none.
        split_seed: seeds that choice.
        val_from: `test` where the network may have been trained on all of `train`, as an imported one.

    Raises DataError if a file is missing or is not the published one.
    """
    if name == "mnist":
        sha256, (images, labels, test_images, test_labels) = MNIST_SHA256, read_mnist(folder)
    else:
        sha256, (images, labels) = MNIST_5K_SHA256, read_mnist_5k()
        rest, test = _stratified(labels, TEST_SHARE, seed=0)
        images, labels, test_images, test_labels = images[rest], labels[rest], images[test], labels[test]
    parts = {"train": (images, labels), "test": (test_images, test_labels)}
    images, labels = parts[val_from]
    rest, val = _stratified(labels, val_share, split_seed)
    parts |= {val_from: (images[rest], labels[rest]), "val": (images[val], labels[val])}
    splits = {
        split: Split(torch.tensor(images, device=device), torch.tensor(labels, dtype=torch.int64, device=device))
        for split, (images, labels) in parts.items()
    }
    return Dataset(name, sha256, **splits)


def count_seen(images: int, share: float) -> int:
    """How many of so many images a share is: at least one."""
    return max(1, round(share * images))


def thin_out(part: Split, digit: int, share: float, seed: int) -> Split:
    """`part` with only that share of the images of `digit`, at least one of them, drawn by `seed`; others all stay."""
    labels = part.labels.cpu()
    of_digit = torch.nonzero(labels == digit).flatten()
    drawn = torch.randperm(len(of_digit), generator=torch.Generator().manual_seed(seed))
    keep = labels != digit
    keep[of_digit[drawn[: count_seen(len(of_digit), share)]]] = True
    keep = keep.to(part.labels.device)
    return Split(part.images[keep], part.labels[keep])


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
