from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lora_mnist.evaluation.results import Counts, ShiftPoint, StrengthPoint
from lora_mnist.report import page, plots
from lora_mnist.report.tables import Alternative

BEFORE = np.diag([900] * 10)
BEFORE[4, 9], BEFORE[9, 4], BEFORE[7, 2] = 31, 12, 1
AFTER = np.diag([895] * 10)
AFTER[4, 9], AFTER[7, 9] = 3, 62


def texts(figure: Figure) -> dict[tuple[int, int], str]:
    """Printed counts by (row, column)."""
    return {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in figure.axes[0].texts}


def counts(missed, errors):
    return Counts(missed=missed, false_alarms=0, errors=errors)


def test_every_count_is_printed_and_the_diagonal_does_not_drown_the_errors():
    figure = plots.confusion(BEFORE, "t")
    assert texts(figure) == {(r, c): str(n) for (r, c), n in np.ndenumerate(BEFORE) if n}
    picture = figure.axes[0].images[0]
    assert picture.get_array().mask.diagonal().all()
    assert picture.norm.vmax == 31
    shares = texts(plots.confusion(BEFORE, "t", normalised=True))
    assert shares[4, 9] == f"{100 * 31 / 931:.1f}"


def test_the_change_is_centred_on_zero_and_signed():
    figure = plots.confusion(AFTER, "t", before=BEFORE)
    norm = figure.axes[0].images[0].norm
    assert norm.vmin == -norm.vmax == -62
    printed = texts(figure)
    assert (printed[7, 9], printed[4, 9], printed[0, 0]) == ("+62", "−28", "−5")
    assert texts(plots.confusion(AFTER, "t", normalised=True, before=BEFORE))[4, 9] == f"−{100 * 28 / 931:.1f}"
    assert texts(plots.confusion(BEFORE, "t", before=BEFORE)) == {}
    shared = plots.confusion(AFTER, "t", darkest=31)
    assert shared.axes[0].images[0].norm(62) == 1  # as dark as 31; the colour bar ends in an arrow


def test_text_is_legible_on_every_cell():
    """WCAG contrast of at least 4.5 between each count and the colour under it."""
    change = plots.confusion(AFTER, "t", before=BEFORE)
    for figure in (plots.confusion(BEFORE, "t"), plots.confusion(AFTER, "t", darkest=31), change):
        picture = figure.axes[0].images[0]
        for text in figure.axes[0].texts:
            column, row = map(int, text.get_position())
            value = picture.get_array()[row, column]
            ground = (1, 1, 1) if np.ma.is_masked(value) else picture.cmap(picture.norm(value))[:3]
            light = sorted((luminance(ground), luminance(to_rgb(text.get_color()))))
            assert (light[1] + 0.05) / (light[0] + 0.05) >= 4.5, (row, column, text.get_text())


def luminance(colour) -> float:
    channels = np.array(colour)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_change_of_every_digit_stands_on_its_line_with_the_target_on_top(monkeypatch):
    rows = [
        {"digit": d, "images": 1000, "before": 20, "fixed": 9, "broken": d, "after": 11 + d, "net": d - 9}
        | ({"low": -0.01, "high": 0.01, "p": 0.2} if d else {"low": -0.01, "high": -0.001, "p": 0.004})
        for d in range(10)
    ]
    monkeypatch.setattr(plots, "digit_rows", lambda adapter: rows)
    plot = plots.change_per_digit(SimpleNamespace(name="a", digit=4))
    axes = plot.figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [*map(str, (9, 8, 7, 6, 5, 3, 2, 1, 0)), "4 (target)"]
    dots = {float(line.get_ydata()[0]): line for line in axes.lines if line.get_marker() == "o"}
    assert float(dots[9].get_xdata()[0]) == pytest.approx(-0.5)  # points: 5 fewer of 1,000
    assert [height for height, line in dots.items() if line.get_markerfacecolor() != "white"] == [8]
    assert "0: 20 to 11 (more than chance), 1: 20 to 12, " in plot.alt  # the zero alone


def test_the_trade_shows_every_curve_and_every_point():
    none = {"false_alarms": 0}
    nobody = (0,) * 10
    shifts = [ShiftPoint(shift=s, missed=m, errors=e, **none) for s, m, e in ((0, 9, 50), (1, 5, 60), (2, 1, 400))]
    strengths = [
        StrengthPoint(strength=s, missed=m, errors=e, wrong=nobody, **none) for s, m, e in ((0, 9, 50), (1, 2, 40))
    ]
    adapter = SimpleNamespace(
        name="a",
        digit=9,
        stored=SimpleNamespace(analysis=SimpleNamespace(threshold=SimpleNamespace(curve=shifts))),
        curve=SimpleNamespace(splits={"test": strengths}, recommended=1),
        comparison=SimpleNamespace(before=counts(9, 50), after=counts(2, 40)),
        alternatives=[Alternative("control", "a control", counts(6, 30))],
    )
    plot = plots.trade_off(adapter)
    axes = plot.figure.axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["a number added to the logit of 9"] == [[9, 50], [5, 60], [1, 400]]
    assert drawn["a at strengths 0 to 1.5"] == [[9, 50], [2, 40]]
    assert drawn["control"] == [[6, 30]]
    assert {text.get_text(): text.xy for text in axes.texts} == {"0": (9, 50), "1": (2, 40)}  # along the blue curve
    low, high = axes.get_ylim()
    assert low < 30 < 50 < high < 100  # a threshold that ruins everything does not squeeze the rest
    assert "control: 6 missed, 30 errors" in plot.alt


@pytest.mark.parametrize("losses", [[2.0], [2.0, 1.0] * 100, [0.0, 0.0]])
def test_a_loss_curve_of_any_length_is_in_the_page_with_its_words_escaped(losses):
    plot = plots.loss_curve('<b>"&', losses, 'A "loss" of <b> & more.')
    assert plot.figure.axes[0].lines[0].get_ydata().tolist() == losses
    drawing = page.inline_svg(plot)
    assert 'aria-label="A &quot;loss&quot; of &lt;b&gt; &amp; more."' in drawing
    assert drawing.count('<circle class="mark"') == len(plot.marks) <= len(losses)
    assert page.inline_svg(plot) == drawing  # the same numbers, the same bytes


def test_what_was_measured_on_val_is_in_the_loss_plot_with_an_axis_for_accuracy():
    plot = plots.loss_curve("a", [2.0, 1.0], "Losses.", [(1, 1.5, 0.5), (2, 1.25, 0.9)])
    left, right = plot.figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert drawn["on val"] == [[1, 1.5], [2, 1.25]]
    assert right.lines[0].get_xydata().tolist() == [[1, 50], [2, 90]]
    assert plot.marks[-1].words == "step 2, on val: 1.25, 90.00 % right"
    assert plot.alt == "Losses. On val at the end: loss 1.25, accuracy 90.00 %."


@pytest.mark.parametrize("count", [1, 5])
def test_every_direction_is_drawn_on_one_scale(count):
    pictures = np.arange(count * 784, dtype=float).reshape(count, 28, 28)
    figure = plots.directions(pictures, [3.0] * count)
    opacity = np.array([axes.images[0].get_array()[..., 3] for axes in figure.axes])
    assert opacity == pytest.approx(pictures / pictures.max())
