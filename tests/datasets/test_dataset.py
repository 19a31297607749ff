import hashlib
import logging

import pytest
import torch

from lora_mnist.datasets import mnist as files
from lora_mnist.datasets.dataset import choose, load
from lora_mnist.datasets.digits import draw_digits
from lora_mnist.errors import DataError, DiskError


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


def test_auto_without_mnist_takes_the_digits_and_says_so(tmp_path, monkeypatch, caplog):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(files, "fetch_mnist", no_network)
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
    monkeypatch.setattr(files, "fetch_mnist", None)
    assert choose("digits", tmp_path / "absent") == "digits"
    assert not (tmp_path / "absent").exists()
