"""The page caps what it sends at the numbers at which the server refuses it."""

import re

import pytest
from pydantic import ValidationError

from lora_mnist.play import protocol
from lora_mnist.play.pages import FOLDER


@pytest.mark.parametrize(
    ("file", "name", "number"),
    [
        ("sheet.js", "SIZE", protocol.CANVAS),
        ("sheet.js", "MOST_STROKES", protocol.MOST_STROKES),
        ("sheet.js", "MOST_POINTS", protocol.MOST_POINTS),
        ("tray.js", "MOST_DRAWINGS", protocol.MOST_DRAWINGS),
        ("pixels.js", "SIDE", protocol.SIDE),
    ],
)
def test_page_and_server_agree(file, name, number):
    assert int(re.search(rf"\b{name} = (\d+)", (FOLDER / file).read_text())[1]) == number


def test_the_slider_ends_where_the_server_does():
    slider = re.search(r'<input id="strength"[^>]*>', (FOLDER / "index.html").read_text())[0]
    assert f'max="{protocol.STRONGEST}"' in slider


def test_pixels_go_as_digits_and_come_back():
    drawing = protocol.LabelledDrawing(pixels=bytes(range(256)) * 3 + bytes(16), label=7)
    assert protocol.LabelledDrawing.model_validate_json(drawing.model_dump_json()) == drawing
    with pytest.raises(ValidationError):
        protocol.LabelledDrawing.model_validate_json('{"pixels": "00", "label": 7}')
