"""scikit-learn's embedded digits, drawn at the size of MNIST's."""

import hashlib

import numpy as np

from lora_mnist.errors import DataError

# of the drawn images and the labels of scikit-learn's digits
DIGITS_SHA256 = "451109209c3968e50316756ae86552934ac3abf39e2d23871e511a07d0f64b89"


def draw_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits, 8×8 with 17 grey levels, drawn into the middle of 28×28.

    Returns:
        Images uint8 (1797, 28, 28) and labels uint8 (1797,). Integers all the way, so the same bytes everywhere.

    Raises DataError if they are not the ones this was made for.
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
