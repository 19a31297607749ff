import hashlib

import pytest
import torch
from sklearn.datasets import load_digits

from lora_mnist.datasets import embedded
from lora_mnist.datasets.dataset import load
from lora_mnist.datasets.embedded import draw_digits
from lora_mnist.datasets.mnist import DOUBTFUL
from lora_mnist.errors import DataError


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_splits_are_disjoint_complete_and_stratified(share, tmp_path):
    digits = load("digits", tmp_path, share, split_seed=0)
    everything = [
        hashlib.sha256(bytes(image) + bytes([label])).hexdigest()
        for split in (digits.train, digits.val, digits.test)
        for image, label in zip(split.images.numpy(), split.labels.numpy(), strict=True)
    ]
    images, labels = draw_digits()
    original = [hashlib.sha256(bytes(i) + bytes([d])).hexdigest() for i, d in zip(images, labels, strict=True)]
    assert sorted(everything) == sorted(original)
    of_training = torch.cat([digits.train.labels, digits.val.labels]).bincount(minlength=10)
    assert len(digits.val) == round(share * len(of_training.repeat_interleave(of_training)))
    assert ((digits.val.labels.bincount(minlength=10) - share * of_training).abs() < 1).all()
    assert ("val" in digits.held_out) == (share > 0)


def test_the_split_depends_on_its_seed_alone(tmp_path):
    def val(seed):
        return load("digits", tmp_path, 0.25, seed).val.images

    assert torch.equal(val(0), val(0))
    assert not torch.equal(val(0), val(1))


def test_mnist_is_split_as_designed(mnist):
    splits = load("mnist", mnist, 0.083333, split_seed=0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (55_000, 5_000, 10_000)
    whole = load("mnist", mnist, 0.0, split_seed=0)
    assert len(whole.train) == 60_000
    assert whole.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # as every tutorial shows them
    assert whole.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert whole.sha256 == splits.sha256


def test_the_digits_are_scikit_learns_drawn_into_the_middle():
    images, labels = draw_digits()
    assert images.shape == (1797, 28, 28)
    assert (labels == load_digits().target).all()
    assert not images[:, :2].any()
    assert not images[:, :, -2:].any()
    centres = images[:, 3:27:3, 3:27:3]  # the middle one of the nine pixels drawn for each
    assert (centres == (load_digits().images * 255 // 16)).all()


def test_a_changed_scikit_learn_is_noticed(monkeypatch):
    monkeypatch.setattr(embedded, "DIGITS_SHA256", "0" * 64)
    with pytest.raises(DataError, match="scikit-learn"):
        draw_digits()


def test_the_doubtful_labels_are_those_of_the_published_list(mnist):
    """The labels that the published list gives for its indices, so these are of the same set in the same order."""
    published = {947: 8, 1621: 0, 1901: 9, 2130: 4, 2462: 2, 2597: 5, 2654: 6, 3520: 6, 3558: 5, 5937: 5, 6651: 0}
    published |= {6783: 1, 8527: 4, 9679: 6, 9729: 5}
    labels = load("mnist", mnist, 0.0, 0).test.labels
    assert {index: int(labels[index]) for index in DOUBTFUL} == published
