import numpy as np

from lora_mnist.play.strokes import PEN, PIXELS, draw

SCALE = PIXELS / 1000


def test_a_stroke_is_as_wide_as_the_pen_and_has_round_ends():
    picture = draw([[(200, 500), (800, 500)]])
    assert (picture.shape, picture.dtype, set(np.unique(picture))) == ((280, 280), np.uint8, {0, 255})
    columns, rows = picture.any(0).nonzero()[0], picture.any(1).nonzero()[0]
    assert abs(len(rows) - PEN * SCALE) <= 2
    assert abs(len(columns) - (600 + PEN) * SCALE) <= 2
    assert not picture[rows[0], columns[0]]  # a corner


def test_right_is_right_and_down_is_down():
    picture = draw([[(900, 100)]])  # a dot
    assert picture[28, 252] == 255
    assert picture.sum() / 255 < (PEN * SCALE + 2) ** 2


def test_no_stroke_is_a_blank_sheet():
    assert not draw([]).any()
