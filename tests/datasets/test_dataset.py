import gzip
import hashlib
import logging
import shutil

import numpy as np
import pytest
import torch

from lora_mnist.datasets import dataset as data
from lora_mnist.datasets.dataset import MNIST_FILES, choose, draw_digits, load
from lora_mnist.errors import DataError, DiskError

from ..conftest import flip_bit


@pytest.fixture
def mnist_copy(mnist, tmp_path):
    """Real MNIST that a test may damage."""
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(mnist / "MNIST" / "raw", raw)
    for name in MNIST_FILES:
        if not (raw / name).exists():
            (raw / name).write_bytes(gzip.decompress((raw / f"{name}.gz").read_bytes()))
        (raw / f"{name}.gz").unlink(missing_ok=True)
    return tmp_path


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
    monkeypatch.setattr(data, "DIGITS_SHA256", "0" * 64)
    with pytest.raises(DataError, match="scikit-learn"):
        draw_digits()


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

    first, other, again = val(0), val(1), val(0)
    assert first is not again  # read anew: what was asked last is kept, and no more
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_was_asked_last_is_not_read_again(tmp_path):
    assert load("digits", tmp_path, 0.25, 0) is load("digits", tmp_path, 0.25, 0)


def test_mnist_is_split_as_designed(mnist):
    splits = load("mnist", mnist, 0.083333, split_seed=0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (55_000, 5_000, 10_000)
    whole = load("mnist", mnist, 0.0, split_seed=0)
    assert len(whole.train) == 60_000
    assert whole.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # as every tutorial shows them
    assert whole.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert whole.sha256 == splits.sha256


def test_mnist_is_what_torchvision_reads(mnist_copy):
    from lora_mnist.datasets.download import import_torchvision

    import_torchvision()
    from torchvision.datasets import MNIST

    theirs, ours = MNIST(mnist_copy, train=False), load("mnist", mnist_copy, 0.0, 0).test
    assert torch.equal(theirs.data, ours.images)
    assert torch.equal(theirs.targets, ours.labels)


def test_gz_files_laid_there_by_hand_serve(mnist_copy):
    for name in MNIST_FILES:
        plain = mnist_copy / "MNIST" / "raw" / name
        plain.with_name(f"{name}.gz").write_bytes(gzip.compress(plain.read_bytes(), 1))
        plain.unlink()
    assert choose("mnist", mnist_copy) == "mnist"
    assert len(load("mnist", mnist_copy, 0.0, 0).train) == 60_000


@pytest.mark.parametrize("damage", ["flipped label", "truncated", "empty", "longer", "swapped"])
def test_damaged_mnist_is_refused_by_name(mnist_copy, damage):
    path = mnist_copy / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    if damage == "flipped label":
        flip_bit(path, 5000)
    else:
        train_labels = path.with_name("train-labels-idx1-ubyte").read_bytes()
        path.write_bytes(
            {"truncated": content[:-1], "empty": b"", "longer": content + b"\0", "swapped": train_labels}[damage]
        )
    assert choose("auto", mnist_copy) == "mnist"  # never silently the digits instead
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        load("mnist", mnist_copy, 0.0, 0)


def test_a_broken_gz_is_refused_by_name(tmp_path, mnist_copy):
    path = mnist_copy / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    for broken in (packed[:-100], b"", b"not gzip", packed[:50] + b"\xff" * 20 + packed[70:]):
        path.with_name(f"{path.name}.gz").write_bytes(broken)
        with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz"):
            load("mnist", mnist_copy, 0.0, 0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="train-images-idx3-ubyte is missing"):
        load("mnist", tmp_path, 0.0, 0)


def test_auto_without_mnist_takes_the_digits_and_says_so(tmp_path, monkeypatch, caplog):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(data, "fetch_mnist", no_network)
    with caplog.at_level(logging.INFO, "lora_mnist"):
        assert choose("auto", tmp_path) == "digits"
    assert "no route to host" in caplog.text
    assert "1,797 digits" in caplog.text
    with pytest.raises(DataError, match="no route to host"):
        choose("mnist", tmp_path)


def test_auto_where_nothing_can_be_written_takes_the_digits_too(tmp_path):
    (tmp_path / "file").write_text("")
    assert choose("auto", tmp_path / "file" / "data") == "digits"
    with pytest.raises(DiskError):
        choose("mnist", tmp_path / "file" / "data")


def test_digits_need_neither_disk_nor_network(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "fetch_mnist", None)
    assert choose("digits", tmp_path / "absent") == "digits"
    assert not (tmp_path / "absent").exists()
