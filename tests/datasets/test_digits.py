import numpy as np
import pytest

from lora_mnist.datasets import digits
from lora_mnist.datasets.digits import draw_digits
from lora_mnist.errors import DataError


def test_the_digits_are_scikit_learns_drawn_into_the_middle():
    from sklearn.datasets import load_digits

    images, labels = draw_digits()
    assert images.shape == (1797, 28, 28)
    assert images.dtype == np.uint8
    assert (labels == load_digits().target).all()
    assert not images[:, :2].any()
    assert not images[:, :, -2:].any()
    centres = images[:, 3:27:3, 3:27:3]  # the middle one of the nine pixels drawn for each
    assert (centres == (load_digits().images * 255 // 16)).all()


def test_a_changed_scikit_learn_is_noticed(monkeypatch):
    monkeypatch.setattr(digits, "DIGITS_SHA256", "0" * 64)
    with pytest.raises(DataError, match="scikit-learn"):
        draw_digits()
