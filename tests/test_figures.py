"""Every number of the README and of docs/ was printed by a program, or stands in the list of exceptions."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRINTED = [file.read_text() for file in sorted((ROOT / "benchmarks" / "results").iterdir())]
LINES = {line for text in PRINTED for line in text.splitlines()}
SETTINGS = [file.read_text() for file in sorted((ROOT / "configs").glob("*.toml"))]
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
NUMBER = re.compile(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")

EXCEPTIONS = {  # what is no measurement of ours
    "everywhere": {
        "1,797": "the digits that scikit-learn carries",
        "60,000": "MNIST's training images",
        "1.5": "the strength_curve's upper end, in evaluation/strength.py",
        "3.11": "Python, in pyproject.toml",
        "2.13": "torch, in constraints.txt",
    },
    "docs/commands.md": {"130": "the exit code of Ctrl-C", "143": "that of SIGTERM"},
    "docs/examples.md": dict.fromkeys(("32", "120", "512", "768"), "a shape in the example"),
    "docs/library.md": {"0.21": "PEFT, in constraints.txt", "5.23": "transformers, there too"},
    "docs/measured.md": {
        "1,078": "the embedded digits that train",
        "359": "those that test",
        "362": "in the picture",
        "147": "in the picture",
        **dict.fromkeys(("57", "74"), "seconds by the clock, from a clone to its report"),
    },
    "docs/play.md": {
        "255": "the brightest grey",
        "320": "pixels of the canvas in benchmarks/drawing.py",
        "127.0": "the address",
        "130": "the exit code of Ctrl-C",
        "500": "drawings in the tray, in play/protocol.py",
    },
    "docs/sweep.md": {
        "2,048": "images a step of a stack, in sweep/work.py",
        "50": "jobs, there too",
        "200,000": "rows, in sweep/grid.py",
        **dict.fromkeys(("512", "16,384"), "MiB of one, and images on a GPU, there too"),
        **dict.fromkeys(("0.8", "2,000", "204", "1,638", "4,900", "163"), "worked out there"),
    },
    "docs/teach.md": {"0.062": "McNemar's exact p of five fixed and none broken"},
    "docs/trust.md": {
        "6,000": "threes, in tests/faults/test_sequences.py",
        **dict.fromkeys(("23", "1,197"), "what was tried on the version before"),
        **dict.fromkeys(("5,030", "278", "22", "92.7"), "counted by mutmut"),
        **dict.fromkeys(("89", "95"), "the exact interval of 278 of 300, at 95 %"),
    },
    "docs/repair.md": {"0.5": "the level of ten tests, in per cent; a strength that is tried", "0.9": "another"},
}


def prose(page: str) -> str:
    """A page without its code, which is run by tests, without addresses, and without what tests/faults writes there."""
    text = re.sub(r"```.*?```|<!-- written.*?<!--", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`\n]*`", "", text))


def strangers(text: str, page: str) -> list[str]:
    """The numbers of `text` that no program printed, no config has and no exception names."""
    known = {number.replace(",", "") for one in (*PRINTED, *SETTINGS) for number in NUMBER.findall(one)}
    except_for = EXCEPTIONS["everywhere"].keys() | EXCEPTIONS.get(page, {}).keys()
    return [one for one in NUMBER.findall(text) if one not in except_for and one.replace(",", "") not in known]


@pytest.mark.parametrize("page", PAGES)
def test_every_number_was_printed_or_is_an_exception(page):
    assert strangers(prose(page), page) == []


@pytest.mark.parametrize("page", ["README.md", "docs/measured.md"])
def test_every_row_with_an_interval_was_printed(page):
    rows = [line for line in (ROOT / page).read_text().splitlines() if re.match(r"\|.*\d ± \d", line)]
    assert len(rows) >= 5
    assert [row for row in rows if row not in LINES] == []


def test_every_interval_in_words_was_printed():
    text = re.sub(r"\s+", " ", prose("docs/measured.md"))
    intervals = set(re.findall(r"\d+\.\d ± \d+\.\d", text))
    assert intervals
    assert [one for one in intervals if not any(one in text for text in PRINTED)] == []


def test_what_the_readme_shows_of_a_terminal_was_printed():
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    shown = [block for language, block in fenced if not language]
    assert shown
    assert [block for block in shown if not any(block in text for text in PRINTED)] == []


def test_a_number_that_nothing_printed_is_noticed():
    assert strangers("It makes 31,337 errors, 12.345 fewer than 250.", "README.md") == ["31,337", "12.345"]


def test_no_exception_is_left_over():
    for page, exceptions in EXCEPTIONS.items():
        text = " ".join(map(prose, PAGES)) if page == "everywhere" else prose(page)
        assert [number for number in exceptions if number not in NUMBER.findall(text)] == []
