"""Drawings beside an adapter: the same come back, in their order, and nothing else is taken for one."""

import io

import pytest
import torch
from PIL import Image

from lora_mnist.errors import AlteredError
from lora_mnist.runs.drawings import labelled_pictures, load_drawings, save_drawings
from lora_mnist.runs.run import Run

from ..conftest import drawings_of, rehash


@pytest.fixture
def saved(run_copy):
    """An adapter's folder with drawings in it."""
    run = Run(run_copy)
    place = run.adapter("hand")
    with run.new(place) as draft:
        save_drawings(draft, drawings_of("digits", each=2))
    return place


def png(mode="L", size=(28, 28)):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def test_what_was_saved_is_loaded(saved):
    before, found = drawings_of("digits", each=2), load_drawings(saved)
    assert torch.equal(found.images, before.images)
    assert torch.equal(found.labels, before.labels)
    assert [label for label, _ in labelled_pictures(saved)] == before.labels.tolist()


def test_their_manifest_has_every_one(saved):
    saved.require_whole()
    file = saved.folder / "drawings" / "7" / "0014.png"
    file.write_bytes(png())
    saved.forget()
    with pytest.raises(AlteredError, match=r"0014\.png"):
        saved.require_whole()


@pytest.mark.parametrize("content", [b"", b"no picture", png("RGB"), png(size=(28, 29)), png(size=(9999, 9999))])
def test_what_is_no_drawing_of_ours_is_refused_even_if_the_manifest_has_it(saved, content):
    (saved.folder / "drawings" / "7" / "0014.png").write_bytes(content)
    rehash(saved.folder)
    saved.forget()
    with pytest.raises(AlteredError, match=r"0014\.png"):
        load_drawings(saved)


def test_an_adapter_without_drawings_has_none(finished_run):
    (adapter,) = Run(finished_run).adapters()
    with pytest.raises(AlteredError, match="no drawings"):
        load_drawings(adapter)
