"""Page and server agree on the limits, and pixels survive the trip."""

import re

import pytest
from pydantic import ValidationError

from lora_mnist.play import protocol
from lora_mnist.play.one_file import STATIC
from lora_mnist.play.protocol import LabelledDrawing


@pytest.mark.parametrize("name", ["MAX_DRAWINGS", "SIDE"])
def test_page_and_server_agree(name):
    file = {"MAX_DRAWINGS": "tray.js", "SIDE": "pixels.js"}[name]
    assert int(re.search(rf"\b{name} = (\d+)", (STATIC / file).read_text())[1]) == getattr(protocol, name)


def test_pixels_are_sent_as_hexadecimal_digits_and_come_back():
    drawing = LabelledDrawing(pixels=bytes(range(256)) * 3 + bytes(16), label=7)
    assert LabelledDrawing.model_validate_json(drawing.model_dump_json()) == drawing
    with pytest.raises(ValidationError):
        LabelledDrawing.model_validate_json('{"pixels": "00", "label": 7}')
