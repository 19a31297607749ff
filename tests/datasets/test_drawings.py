"""Folders of drawings: what is read, in which order, and what is refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from lora_mnist.datasets.drawings import Drawings, read_drawings
from lora_mnist.datasets.preprocess import prepare
from lora_mnist.errors import DataError

from ..conftest import drawings_of, write_drawings


@pytest.fixture
def folder(tmp_path):
    return write_drawings(tmp_path / "hand", drawings_of("mnist-5k", each=2))


def test_every_picture_is_prepared_and_labelled_by_its_folder(folder):
    found = read_drawings(folder)
    assert found.labels.tolist() == [digit for digit in range(10) for _ in range(2)]
    for number, label in enumerate(found.labels.tolist()):
        file = sorted((folder / str(label)).iterdir())[number % 2]
        assert np.array_equal(found.images[number].numpy(), prepare(np.asarray(Image.open(file))))
    assert found.counts == (2,) * 10


def test_files_that_a_system_or_an_archive_puts_there_are_left_out_with_a_note(folder, caplog):
    plain = read_drawings(folder)
    assert caplog.text == ""
    (folder / "__MACOSX").mkdir()
    (folder / "7" / "@eaDir").mkdir()
    for name in ("Thumbs.db", "7/Thumbs.db", "7/desktop.ini", "7/.DS_Store", "7/._000.png", "7/ehthumbs.db"):
        (folder / name).write_text("x")
    with caplog.at_level("INFO", logger="lora_mnist"):
        assert torch.equal(read_drawings(folder).images, plain.images)
    assert [one.getMessage() for one in caplog.records] == [
        f"Note: left out of {folder}: Thumbs.db, __MACOSX.",
        f"Note: left out of {folder / '7'}: .DS_Store, ._000.png, @eaDir, Thumbs.db and 2 more.",
    ]


ELEVEN = np.zeros((100, 100), np.uint8)
ELEVEN[20:80, [20, 21, 22, 78, 79, 80]] = 255


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "7" / "note.txt").write_text("x"), "note.txt"),
        (lambda folder: Image.new("L", (50, 50)).save(folder / "7" / "blank.png"), "blank.png"),
        (lambda folder: (folder / "7" / "deeper").mkdir(), "deeper"),
        (lambda folder: Image.fromarray(ELEVEN).save(folder / "1" / "eleven.png"), r"eleven\.png.* 2 digits"),
        (lambda folder: (folder / "seven").mkdir(), "seven"),
        (lambda folder: (folder / "10").mkdir(), "10"),
        (lambda folder: Image.new("L", (50, 50)).save(folder / "loose.png"), "loose.png"),
    ],
)
def test_what_is_no_drawing_is_refused_by_name(folder, spoil, named):
    spoil(folder)
    with pytest.raises(DataError, match=named):
        read_drawings(folder)


def test_a_folder_without_drawings_is_refused(tmp_path):
    (tmp_path / "3").mkdir()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=folder.name):
            read_drawings(folder)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(0, 28, 28, dtype=torch.uint8), []),
        (torch.zeros(1, 28, 28), [1]),
        (torch.zeros(1, 27, 28, dtype=torch.uint8), [1]),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), [1]),
        (torch.zeros(1, 28, 28, dtype=torch.uint8), [10]),
        (torch.zeros(1, 28, 28, dtype=torch.uint8), [-1]),
    ],
)
def test_what_cannot_be_drawings_is_refused(images, labels):
    with pytest.raises(DataError):
        Drawings(images, torch.tensor(labels, dtype=torch.int64))
