"""Page and server agree on the limits, pixels survive the trip, and strokes become the picture that was drawn."""

import re

import numpy as np
import pytest
from pydantic import ValidationError

from lora_mnist.play import protocol
from lora_mnist.play.protocol import PEN, RASTER, LabelledDrawing, rasterize
from lora_mnist.play.server import STATIC

SCALE = RASTER / 1000


@pytest.mark.parametrize(
    ("file", "pattern", "limit"),
    [
        ("sheet.js", r"\bSIZE = (\d+)", protocol.CANVAS),
        ("sheet.js", r"\bMAX_STROKES = (\d+)", protocol.MAX_STROKES),
        ("sheet.js", r"\bMAX_POINTS = (\d+)", protocol.MAX_POINTS),
        ("tray.js", r"\bMAX_DRAWINGS = (\d+)", protocol.MAX_DRAWINGS),
        ("pixels.js", r"\bSIDE = (\d+)", protocol.SIDE),
        ("index.html", r'<input id="strength"[^>]*max="([\d.]+)"', protocol.MAX_STRENGTH),
    ],
)
def test_page_and_server_agree(file, pattern, limit):
    assert float(re.search(pattern, (STATIC / file).read_text())[1]) == limit


def test_pixels_are_sent_as_hexadecimal_digits_and_come_back():
    drawing = LabelledDrawing(pixels=bytes(range(256)) * 3 + bytes(16), label=7)
    assert LabelledDrawing.model_validate_json(drawing.model_dump_json()) == drawing
    with pytest.raises(ValidationError):
        LabelledDrawing.model_validate_json('{"pixels": "00", "label": 7}')


def test_a_stroke_is_as_wide_as_the_pen_and_has_round_ends():
    picture = rasterize([[(200, 500), (800, 500)]])
    assert (picture.shape, picture.dtype, set(np.unique(picture))) == ((280, 280), np.uint8, {0, 255})
    columns, rows = picture.any(0).nonzero()[0], picture.any(1).nonzero()[0]
    assert abs(len(rows) - PEN * SCALE) <= 2
    assert abs(len(columns) - (600 + PEN) * SCALE) <= 2
    assert not picture[rows[0], columns[0]]  # a corner


def test_right_is_right_and_down_is_down():
    picture = rasterize([[(900, 100)]])  # a dot
    assert picture[28, 252] == 255
    assert picture.sum() / 255 < (PEN * SCALE + 2) ** 2
    assert not rasterize([]).any()
