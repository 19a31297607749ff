import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from lora_mnist import plots

BEFORE = np.diag([900] * 10)
BEFORE[4, 9], BEFORE[9, 4], BEFORE[7, 2] = 31, 12, 1
AFTER = np.diag([895] * 10)
AFTER[4, 9], AFTER[7, 9] = 3, 62


def texts(figure: Figure) -> dict[tuple[int, int], str]:
    """Printed counts by (row, column)."""
    return {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in figure.axes[0].texts}


def test_every_count_that_is_not_zero_is_printed():
    printed = texts(plots.confusion(BEFORE, "t"))
    assert printed == {(r, c): str(n) for (r, c), n in np.ndenumerate(BEFORE) if n}


def test_the_diagonal_does_not_drown_the_errors():
    picture = plots.confusion(BEFORE, "t").axes[0].images[0]
    assert picture.get_array().mask.diagonal().all()
    assert picture.norm.vmax == 31


def test_before_and_after_can_share_one_scale():
    scales = [plots.confusion(m, "t", largest=62).axes[0].images[0].norm for m in (BEFORE, AFTER)]
    assert {(s.vmin, s.vmax) for s in scales} == {(0, 62)}


def test_the_change_is_centred_on_zero_and_signed():
    figure = plots.confusion_change(BEFORE, AFTER, "t")
    norm = figure.axes[0].images[0].norm
    assert norm.vmin == -norm.vmax == -62
    assert texts(figure)[7, 9] == "+62"
    assert texts(figure)[4, 9] == "−28"
    assert texts(figure)[0, 0] == "−5"


def test_text_is_legible_on_every_cell():
    """WCAG contrast of at least 4.5 between each count and the colour under it."""
    for figure in (plots.confusion(BEFORE, "t"), plots.confusion_change(BEFORE, AFTER, "t")):
        picture = figure.axes[0].images[0]
        for text in figure.axes[0].texts:
            column, row = map(int, text.get_position())
            value = picture.get_array()[row, column]
            ground = (1, 1, 1) if np.ma.is_masked(value) else picture.cmap(picture.norm(value))[:3]
            assert contrast(ground, text.get_color()) >= 4.5, (row, column, text.get_text())


def contrast(one, other) -> float:
    from matplotlib.colors import to_rgb

    def luminance(colour):
        channels = np.array(to_rgb(colour))
        return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return float((high + 0.05) / (low + 0.05))


@pytest.mark.parametrize("after", [None, [1] * 10])
def test_bars_show_every_digit(after):
    figure = plots.errors_per_digit(range(10), after, 9, "t")
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert heights == [*range(10), *(after or [])]


@pytest.mark.parametrize("losses", [[2.0], [2.0, 1.0] * 100, [0.0, 0.0]])
def test_a_loss_curve_of_any_length(losses):
    figure = plots.loss_curve(losses, "t")
    assert figure.axes[0].lines[0].get_ydata().tolist() == losses
    assert drawn(figure)


def test_no_errors_at_all_is_a_picture_too():
    assert drawn(plots.confusion(np.diag([5] * 10), "t"))
    assert drawn(plots.confusion_change(BEFORE, BEFORE, "t"))


def drawn(figure: Figure) -> bool:
    """Whether it can be written as a PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue().startswith(b"\x89PNG")
