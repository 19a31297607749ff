"""Drawings with their labels: a folder `0/*.png … 9/*.png`, read and prepared, to be trained on."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import DataError

SIDE = 28  # pixels
MOST = 10_000  # drawings: far beyond what anybody draws
UNMEANT = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r")  # of systems and archives
LAYOUT = "Put the pictures of every digit into a folder of its own: 7/one.png, 7/two.png, 9/one.png."

log = logging.getLogger("lora_mnist")


@dataclass(frozen=True)
class Drawings(Split):
    """Images uint8 (K, 28, 28) as `drawing.prepare` makes them, and what they show, int64 (K,); at least one.

    Raises DataError if they are not that.
    """

    def __post_init__(self) -> None:
        count = len(self.labels)
        if not 1 <= count <= MOST:
            raise DataError(f"There are {count:,} drawings; it takes from 1 to {MOST:,}.", "Draw a few of each digit.")
        shape, dtypes = tuple(self.images.shape), (self.images.dtype, self.labels.dtype)
        if shape != (count, SIDE, SIDE) or dtypes != (torch.uint8, torch.int64):
            raise DataError(f"{count} drawings are no images of shape {shape} as {dtypes[0]}.", "Prepare them before.")
        if not bool(((self.labels >= 0) & (self.labels <= 9)).all()):
            raise DataError("A drawing shows a digit from 0 to 9.", "Correct its label.")

    @property
    def counts(self) -> tuple[int, ...]:
        """How many there are of each of the ten digits."""
        return tuple(torch.bincount(self.labels, minlength=10).tolist())

    def by_digit(self) -> "Drawings":
        """The same, sorted by what they show and else as they are: the order in which `read_drawings` finds them."""
        order = self.labels.argsort(stable=True)
        return Drawings(self.images[order], self.labels[order])


def read_drawings(folder: Path) -> Drawings:
    """The pictures in `folder`/0 … `folder`/9, each prepared as MNIST's were; hidden files and `UNMEANT` are left out.

    Raises DataError if there is none, there is something else, or a picture, named, cannot be read or holds no digit.
    """
    from lora_mnist.datasets.preprocess import prepare_file  # with scipy's ndimage, which most commands do not need

    files: list[tuple[int, Path]] = []
    for part in _visible(folder):
        if part.name not in map(str, range(10)) or not part.is_dir():
            raise DataError(f"{part} is no folder of a digit.", LAYOUT)
        files += [(int(part.name), path) for path in _visible(part)]
    if not files:
        raise DataError(f"There are no drawings in {folder}.", LAYOUT)
    if len(files) > MOST:
        raise DataError(f"{folder} holds {len(files):,} drawings; it takes at most {MOST:,}.", "Take fewer of them.")
    images = [prepare_file(path) for _, path in files]
    labels = torch.tensor([digit for digit, _ in files], dtype=torch.int64)
    return Drawings(torch.from_numpy(np.stack(images)), labels)


def _visible(folder: Path) -> list[Path]:
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.", LAYOUT) from error
    left_out = [path for path in found if path.name.startswith(".") or path.name.lower() in UNMEANT]
    if left_out:
        more = f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
        log.info("Note: left out of %s: %s%s.", folder, ", ".join(path.name for path in left_out[:4]), more)
    return [path for path in found if path not in left_out]
