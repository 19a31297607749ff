import csv
import json
import re

import html5lib
import pytest

from lora_mnist.sweep.answer import Answer, answer
from lora_mnist.sweep.drawings import by_setting, series_of, trade
from lora_mnist.sweep.page import PAGE, shade, write_page
from tests.conftest import snapshot
from tests.sweep.test_answer import ROWS, row

WHOLE = [row(digit, 32, seed, 70, method="full") for digit in (3, 8) for seed in range(3)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return write_page(answer([*ROWS, *WHOLE]), [*ROWS, *WHOLE], folder)


def test_it_is_strict_html_without_anything_from_elsewhere(page):
    text = page.read_text()
    html5lib.HTMLParser(strict=True).parse(text)
    assert not re.search(r'(src|href)="(?!data:|#|\.\./|[\w-]+\.)', text)
    assert "<script" not in text
    assert ' style="' not in text


def test_every_number_is_that_of_the_answer(page):
    found = Answer.model_validate_json((page.parent / "answer.json").read_text())
    assert found == answer([*ROWS, *WHOLE])
    text = page.read_text()
    for cell in found.cells:
        assert f"{cell.value:.1f} ({cell.change:+.1f})".replace("-", "−") in text
    for one in found.enough:
        assert f"{one.enough} is enough".capitalize() in text
    with (page.parent / "variants.csv").open() as file:
        lines = {line["variant"]: line for line in csv.DictReader(file)}
    for one in found.variants:
        assert float(lines[one.name]["errors"]) == one.after["errors"].mean
        assert float(lines[one.name]["threshold_false_alarms"]) == one.threshold["false_alarms"].mean


def test_the_same_answer_is_the_same_bytes(page, tmp_path):
    write_page(answer([*ROWS, *WHOLE]), [*ROWS, *WHOLE], tmp_path)
    ours, theirs = snapshot(tmp_path / PAGE), snapshot(page.parent)
    assert ours == theirs
    assert {"by-setting.png", "by-setting.svg", "trade.png", "index.html"} < ours.keys()
    assert json.loads(ours["manifest.json"])["files"].keys() == ours.keys() - {"manifest.json"}


def test_the_plot_has_a_point_for_every_adapter_and_a_line_for_all_weights():
    found = answer([*ROWS, *WHOLE])
    axes = by_setting(found).figure.axes[0]
    (container,) = axes.containers
    heights = list(container.lines[0].get_ydata())
    assert heights == [one.after["errors"].mean for one in found.variants[:-1]]
    flat = [list(line.get_ydata()) for line in axes.lines if line.get_label() == "all weights"]
    assert flat == [[found.variants[-1].after["errors"].mean] * 2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "8"]


def test_what_is_varied_besides_has_a_line_each():
    rows = [row(3, rank, seed, 60, focus=focus) for rank in (1, 2) for seed in (0, 1) for focus in (0.2, 0.1)]
    found = answer(rows)
    assert {name: len(one) for name, one in series_of(found.variants).items()} == {"focus 0.1": 2, "focus 0.2": 2}
    assert len(by_setting(found).figure.axes[0].containers) == 2


def test_missed_stand_against_errors():
    found = answer(ROWS)
    marks = trade(found).marks
    assert [(one.x, one.y) for one in marks] == [(5, one.after["errors"].mean) for one in found.variants]


def test_shades_are_signed_and_grow():
    cells = [
        one.model_copy(update={"change": change}) for one in answer(ROWS).cells[:1] for change in (-9, -1, 0, 4, 9)
    ]
    assert [shade(cell, 9) for cell in cells] == ["p6", "p1", "", "o3", "o6"]
