"""The tables and transcripts of README and docs/ were printed by a program: they stand in benchmarks/results/."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRINTED = [file.read_text() for file in sorted((ROOT / "benchmarks" / "results").iterdir())]
LINES = {line for text in PRINTED for line in text.splitlines()}


def rows_with_intervals(page: str) -> list[str]:
    return [line for line in (ROOT / page).read_text().splitlines() if re.match(r"\|.*\d ± \d", line)]


def transcripts(text: str) -> list[str]:
    """The fenced blocks that are in no language: what a terminal showed."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for language, block in fenced if not language]


@pytest.mark.parametrize("page", ["README.md", "docs/measured.md"])
def test_every_row_with_an_interval_was_printed(page):
    rows = rows_with_intervals(page)
    assert len(rows) >= 5
    assert [row for row in rows if row not in LINES] == []


def test_what_the_readme_shows_of_a_terminal_was_printed():
    shown = transcripts((ROOT / "README.md").read_text())
    assert shown
    assert [block for block in shown if not any(block in text for text in PRINTED)] == []
