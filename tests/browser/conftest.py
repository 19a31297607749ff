"""A run to make pages of, and a hand that draws on them."""

import shutil
from pathlib import Path

import pytest

from lora_mnist.pipeline import finetune

from ..conftest import workspace

NINE = [[[620, 380], [500, 280], [380, 360], [380, 480], [500, 520], [600, 460], [630, 360]], [[630, 360], [580, 820]]]


def draw(page, strokes=NINE) -> None:
    """With the mouse."""
    page.evaluate("scrollTo(0, 0)")
    box = page.locator("#sheet").bounding_box()
    at = [[(box["x"] + x / 1000 * box["width"], box["y"] + y / 1000 * box["height"]) for x, y in s] for s in strokes]
    for first, *others in at:
        page.mouse.move(*first)
        page.mouse.down()
        for place in others:
            page.mouse.move(*place, steps=4)
        page.mouse.up()


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory) -> Path:
    """A run with two adapters."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("play") / "run"))
    finetune(workspace(run, digit=3, rank=3))
    return run
