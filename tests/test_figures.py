"""The tables of README and docs are those that the programs printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRINTED = (ROOT / "benchmarks" / "results" / "repairs.md").read_text().splitlines()


@pytest.mark.parametrize("page", ["README.md", "docs/measured.md"])
def test_every_row_with_an_interval_was_printed(page):
    rows = [line for line in (ROOT / page).read_text().splitlines() if re.match(r"\|.*\d ± \d", line)]
    assert len(rows) >= 5
    assert [row for row in rows if row not in PRINTED] == []


def test_every_interval_in_words_was_printed():
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "measured.md").read_text())
    intervals = set(re.findall(r"\d+\.\d ± \d+\.\d", text))
    printed = " ".join(PRINTED)
    assert intervals
    assert [one for one in intervals if one not in printed] == []


def test_every_row_on_drawings_was_printed():
    printed = (ROOT / "benchmarks" / "results" / "drawing.md").read_text().splitlines()
    rows = [
        line
        for line in (ROOT / "docs" / "play.md").read_text().splitlines()
        if re.match(r"\|.*\d \|$|.*\d % \|$", line)
    ]
    assert len(rows) >= 8
    assert [row for row in rows if row not in printed] == []
