import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lora_mnist.evaluation.results import Counts, StrengthPoint
from lora_mnist.report import plots
from lora_mnist.report.document import DialPoint, DialSection, DigitRow

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
    figures = [plots.confusion(m, "t", darkest=31) for m in (BEFORE, AFTER)]
    scales = [figure.axes[0].images[0].norm for figure in figures]
    assert {(s.vmin, s.vmax) for s in scales} == {(0, 31)}
    assert scales[1](62) == 1  # as dark as 31; the colour bar ends in an arrow
    assert texts(figures[1])[7, 9] == "62"


def test_the_change_is_centred_on_zero_and_signed():
    figure = plots.confusion_change(BEFORE, AFTER, "t")
    norm = figure.axes[0].images[0].norm
    assert norm.vmin == -norm.vmax == -62
    assert texts(figure)[7, 9] == "+62"
    assert texts(figure)[4, 9] == "−28"
    assert texts(figure)[0, 0] == "−5"


def test_text_is_legible_on_every_cell():
    """WCAG contrast of at least 4.5 between each count and the colour under it."""
    change = plots.confusion_change(BEFORE, AFTER, "t")
    for figure in (plots.confusion(BEFORE, "t"), plots.confusion(AFTER, "t", 31), change):
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


def test_bars_show_every_digit():
    figure = plots.errors_per_digit(range(10))
    assert [patch.get_height() for patch in figure.axes[0].patches] == [*range(10)]


def test_the_change_of_every_digit_stands_on_its_line_with_the_target_on_top():
    rows = [
        DigitRow(digit=d, images=1000, before=20, fixed=9, broken=d, after=11 + d, net=d - 9, low=-0.01, high=h, p=p)
        for d, h, p in ((d, 0.01, 0.2) if d else (d, -0.001, 0.004) for d in range(10))
    ]
    figure = plots.change_per_digit(rows, 4)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *map(str, (9, 8, 7, 6, 5, 3, 2, 1, 0)),
        "4 (target)",
    ]
    dots = {float(line.get_ydata()[0]): line for line in axes.lines if line.get_marker() == "o"}
    assert float(dots[9].get_xdata()[0]) == pytest.approx(-0.5)  # points: 5 fewer of 1,000
    assert float(dots[8].get_xdata()[0]) == pytest.approx(-0.9)
    filled = [height for height, line in dots.items() if line.get_markerfacecolor() != "white"]
    assert filled == [8]  # the zero alone changed by more than chance
    assert drawn(figure)


@pytest.mark.parametrize("losses", [[2.0], [2.0, 1.0] * 100, [0.0, 0.0]])
def test_a_loss_curve_of_any_length(losses):
    figure = plots.loss_curve(losses)
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


def test_counts_become_shares_of_their_row():
    printed = texts(plots.confusion(BEFORE, "t", normalised=True))
    assert printed[4, 9] == f"{100 * 31 / 931:.1f}"
    changes = texts(plots.confusion_change(BEFORE, AFTER, "t", normalised=True))
    assert changes[4, 9] == f"−{100 * 28 / 931:.1f}"


def counts(missed, errors):
    return Counts(missed=missed, false_alarms=0, errors=errors)


def test_the_trade_shows_every_curve_and_every_point():
    curves = {"shift": [counts(9, 50), counts(5, 60), counts(1, 400)], "strength_curve": [counts(9, 50), counts(2, 40)]}
    figure = plots.trade(curves, [("before", counts(9, 50)), ("after", counts(2, 40)), ("control", counts(6, 30))], 9)
    axes = figure.axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["shift"] == [[9, 50], [5, 60], [1, 400]]
    assert drawn["strength_curve"] == [[9, 50], [2, 40]]
    assert drawn["control"] == [[6, 30]]
    low, high = axes.get_ylim()
    assert low < 30 < 50 < high < 100  # a threshold that ruins everything does not squeeze the rest


def test_the_dial_marks_the_recommended_strength():
    none = {"missed": 0, "false_alarms": 0, "errors": 0}
    points = tuple(
        DialPoint(strength=s / 10, accuracy=0.9, recall=s / 20, recall_of_others=0.95 - s / 100, **none)
        for s in range(16)
    )
    at = StrengthPoint(strength=0.5, **none)
    strength_curve = DialSection(measured_on="val", recommended=0.5, points=points, test=at)
    axes = plots.strength_curve(strength_curve, 9).axes[0]
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert drawn["recall of 9"][:, 1] == pytest.approx([5 * s for s in range(16)])
    assert set(drawn["recommended: 0.5"][:, 0]) == {0.5}
    assert "val" in axes.get_ylabel()


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_direction_is_drawn_on_one_scale(count):
    pictures = np.arange(count * 784, dtype=float).reshape(count, 28, 28)
    figure = plots.directions(pictures, [3.0] * count)
    assert len(figure.axes) == count
    opacity = np.array([axes.images[0].get_array()[..., 3] for axes in figure.axes])
    assert opacity == pytest.approx(pictures / pictures.max())
    assert drawn(figure)


def test_side_by_side_goes_from_before_to_after():
    lines = [("a", counts(30, 130), counts(10, 100)), ("b", counts(20, 130), counts(5, 155))]
    axes = plots.side_by_side(lines).axes[0]
    ways = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2]
    assert ways == [[[30, 100], [10, 90]], [[20, 110], [5, 150]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize("most", [7, 999])
def test_nothing_of_a_matrix_lies_outside_its_picture(most):
    before = np.full((10, 10), 1)
    after = before.copy()
    after[4, 9], after[9, 4] = most, 0
    matrices = (plots.confusion(after, "t"), plots.confusion(after, "t", 3), plots.confusion_change(before, after, "t"))
    for figure in matrices:
        drawn = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())  # inches
        assert 0 <= drawn.x0 < drawn.x1 <= figure.get_figwidth()
        assert 0 <= drawn.y0 < drawn.y1 <= figure.get_figheight()
