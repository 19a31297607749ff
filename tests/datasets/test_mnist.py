import gzip
import shutil

import pytest
import torch

from lora_mnist.datasets.dataset import choose_dataset, load
from lora_mnist.datasets.mnist import MNIST_FILES
from lora_mnist.errors import DataError

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


def test_mnist_is_what_torchvision_reads(mnist_copy):
    from lora_mnist.datasets.mnist import import_torchvision

    import_torchvision()
    from torchvision.datasets import MNIST

    theirs, ours = MNIST(mnist_copy, train=False), load("mnist", mnist_copy, 0.0, 0).test
    assert torch.equal(theirs.data, ours.images)
    assert torch.equal(theirs.targets, ours.labels)


@pytest.mark.parametrize(
    "layout",
    [
        *("{name}", "{kaggle}", "MNIST/raw/{kaggle}", "{kaggle}/{kaggle}", "{name}/{name}", "{kaggle}.gz"),
        *("{kaggle}/{name}", "raw/{name}", "MNIST/raw/{name}.gz"),
    ],
)
def test_files_are_found_as_others_lay_and_name_them(mnist_copy, tmp_path, layout):
    """Kaggle's names, a folder inside a folder of that name, and --data on the four files themselves."""
    folder = tmp_path / "elsewhere"
    for name in MNIST_FILES:
        path = folder / layout.format(name=name, kaggle=name.replace("-idx", ".idx"))
        path.parent.mkdir(parents=True, exist_ok=True)
        content = (mnist_copy / "MNIST" / "raw" / name).read_bytes()
        path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    assert choose_dataset("mnist", folder, offline=True) == "mnist"
    assert len(load("mnist", folder, 0.0, 0).test) == 10_000


def test_what_lies_there_instead_is_named(tmp_path):
    (tmp_path / "mnist_train.csv").write_text("")
    with pytest.raises(DataError, match=r"; .* has mnist_train\.csv"):
        choose_dataset("mnist", tmp_path, offline=True)


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
    assert choose_dataset("auto", mnist_copy) == "mnist"  # never silently the digits instead
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
