"""MNIST: the four published files, found on the disk or downloaded by torchvision, and checked by their SHA-256."""

import contextlib
import errno
import gzip
import hashlib
import http.client
import io
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np

from lora_mnist.errors import DataError, DiskError
from lora_mnist.files import open_regular, removed_if_empty

log = logging.getLogger("lora_mnist")

# file → (SHA-256 of the decompressed bytes, their number); images have a header of 16 bytes, labels of 8
MNIST_FILES = {
    "train-images-idx3-ubyte": ("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", 47_040_016),
    "train-labels-idx1-ubyte": ("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", 60_008),
    "t10k-images-idx3-ubyte": ("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", 7_840_016),
    "t10k-labels-idx1-ubyte": ("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", 10_008),
}
MNIST_SHA256 = hashlib.sha256("".join(digest for digest, _ in MNIST_FILES.values()).encode()).hexdigest()

# Test images in which at most two of five people saw what the label says → how many did (Northcutt, Athalye and
# Mueller 2021, arXiv 2103.14749; github.com/cleanlab/label-errors, mturk/mnist_mturk.json)
DOUBTFUL = {
    **{947: 0, 1621: 2, 1901: 2, 2130: 2, 2462: 0, 2597: 0, 2654: 0, 3520: 2, 3558: 1, 5937: 1, 6651: 0, 6783: 2},
    **{8527: 2, 9679: 2, 9729: 2},
}

SILENCE = 10.0  # seconds without a byte after which a mirror is given up
TEMPORARY = ".download-"  # how the names of the folders that downloads go to begin
ABANDONED = 3600.0  # seconds after which such a folder belongs to a download that was killed
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def raw_folder(folder: Path) -> Path:
    """Where the files lie below `folder`, as torchvision lays them."""
    return folder / "MNIST" / "raw"


def is_there(folder: Path) -> bool:
    """Whether `folder` has all four files, plain or as .gz; `read_mnist` says whether they are the published ones."""
    return all(_find(folder, name) for name in MNIST_FILES)


def read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (60000, 28, 28) and labels uint8 (60000,), then those of the test set, (10000, 28, 28) and (10000,).

    Raises DataError if a file is missing or is not the published one.
    """
    arrays = []
    for name in MNIST_FILES:
        path = _find(folder, name)
        if path is None:
            cause = f"{raw_folder(folder) / name} is missing{describe_folder(folder)}."
            raise DataError(cause, "Lay it there, plain or as .gz.")
        content = _read(path, name)
        # idx format: two zero bytes, a type byte, the number of dimensions, each dimension as a big-endian uint32
        shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape))
    images, labels, test_images, test_labels = arrays
    return images, labels, test_images, test_labels


def describe_folder(folder: Path) -> str:
    """What lies there, for whoever looks for files that should be there."""
    for place in (raw_folder(folder), folder):
        if place.is_dir() and (names := sorted(path.name for path in place.iterdir() if not path.name.startswith("."))):
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            return f"; {place} has {', '.join(names[:4])}{more}"
    return ""


def download_mnist(folder: Path, quiet: bool = False) -> None:
    """Let torchvision download the four files, check them, and move them into `folder`. Files that are there stay.

    Raises DataError if no mirror had them or what it sent is not MNIST, DiskError if they cannot be written.
    """
    raw = raw_folder(folder)
    try:
        with removed_if_empty(raw):
            raw.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"{TEMPORARY}*"):
                if time.time() - left.stat().st_mtime > ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder, ignore_cleanup_errors=True) as temporary:
                _download_into(temporary, quiet)
                for name in MNIST_FILES:
                    _read(raw_folder(Path(temporary)) / name, name)  # torchvision checks the md5 of the archive only
                for name in MNIST_FILES:
                    if not _find(folder, name):
                        os.replace(raw_folder(Path(temporary)) / name, raw / name)
    except OSError as error:
        raise DiskError(f"Cannot write {raw}: {error.strerror}.", "Choose another place with --data.") from error


def _download_into(root: str, quiet: bool) -> None:
    """Try torchvision's mirrors one by one. Raises OSError for the disk's faults, DataError for the network's."""
    import_torchvision()
    from torchvision.datasets import MNIST

    bar = contextlib.nullcontext() if sys.stderr.isatty() and not quiet else contextlib.redirect_stderr(io.StringIO())
    reasons, before = [], socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)  # torchvision has no time-out of its own
    try:
        for mirror in MNIST.mirrors:
            # Left to itself, torchvision does not try the next mirror after one that stalls, so it gets one at a time.
            # The folder that it writes to is named after the class.
            one_mirror = type("MNIST", (MNIST,), {"mirrors": [mirror]})
            try:
                with bar:
                    one_mirror(root, train=False, download=True)
                return
            except (OSError, RuntimeError, EOFError, zlib.error, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                reasons.append(str(error).strip().splitlines()[-1] if str(error) else type(error).__name__)
    finally:
        socket.setdefaulttimeout(before)
    raise DataError(
        f"MNIST could not be downloaded ({'; '.join(dict.fromkeys(reasons))}).",
        f"Tried: {' and '.join(MNIST.mirrors)}. Put the four files into MNIST/raw in the folder of --data, "
        "or point --data to them.",
    )


def import_torchvision() -> ModuleType:
    """Import torchvision, also one built for CUDA beside a torch built for CPU (`pip` installs that pair on Linux).

    Such a torchvision fails to register two detection operators it has no library for, which nothing here uses.
    Declaring their schemas is enough for the import to go through; it is done only when that very error is met.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half-imported
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.lora_mnist_operators = library  # the schemas live as long as this object
    return torchvision


def _find(folder: Path, name: str) -> Path | None:
    """Where one of the four lies: in MNIST/raw/, as torchvision lays it, raw/, or `folder` itself; plain or as .gz.

    Kaggle calls it train-images.idx3-ubyte, and unpacks it into a folder of its own name.
    """
    spellings = (name, name.replace("-idx", ".idx"))
    for place in (raw_folder(folder), folder / "raw", folder):
        for spelling in spellings:
            within = (place / spelling / inner for inner in spellings)
            for path in (place / spelling, *within, place / f"{spelling}.gz"):
                if path.is_file():
                    return path
    return None


def _read(path: Path, name: str) -> bytes:
    """The decompressed bytes of one of the four files, exactly as published. Raises DataError for any others."""
    (sha256, size), way_out = MNIST_FILES[name], "Delete it; MNIST is then downloaded again."
    try:
        with open_regular(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            content = file.read(size + 1)  # one more shows that it is too long, without unpacking gigabytes
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.", way_out) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path} is not the published file: its SHA-256 differs.", way_out)
    return content
