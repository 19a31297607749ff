"""What README and docs/ show runs or was printed by a program, and the library's manual has all of its names."""

import inspect
import re
from pathlib import Path

import pytest

from lora_mnist import lora
from lora_mnist.datasets.mnist import import_torchvision

DOCS = Path(__file__).parent.parent / "docs"
README, PAGES = DOCS.parent / "README.md", sorted(DOCS.glob("*.md"))
SEARCH = DOCS.parent / "benchmarks" / "search.md"
PRINTED = [file.read_text() for file in sorted((DOCS.parent / "benchmarks" / "results").iterdir())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import_torchvision()  # which PEFT imports, and which may be of another build than torch
    names: dict = {}
    blocks = list(re.finditer(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    assert blocks or page.name != "library.md"
    for block in blocks:  # each asserts what it says
        line = page.read_text()[: block.start()].count("\n") + 1  # so that a failure names the page's line
        exec(compile("\n" * line + block[1], str(page), "exec"), names)


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_every_file_it_links_to_is_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("page", [README, *DOCS.glob("measured*.md"), SEARCH], ids=lambda page: page.name)
def test_every_row_with_an_interval_was_printed(page):
    printed = {line for text in PRINTED for line in text.splitlines()}
    rows = [line for line in page.read_text().splitlines() if re.match(r"\|.*\d ± \d", line)]
    assert len(rows) >= 5
    assert [row for row in rows if row not in printed] == []


def test_what_the_readme_shows_of_a_terminal_was_printed():
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    shown = [block for language, block in fenced if not language]
    assert shown
    assert [block for block in shown if not any(block in text for text in PRINTED)] == []


def test_the_index_names_every_page():
    index = (DOCS / "README.md").read_text()
    assert [page.name for page in PAGES if page.name != "README.md" and f"]({page.name})" not in index] == []


def test_the_manual_names_what_the_library_exports():
    table = (DOCS / "library.md").read_text().partition("## Names")[2]
    first_cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(first_cells))) == sorted(lora.__all__)


def test_every_line_beside_peft_has_its_test():
    table = (DOCS / "library.md").read_text().partition("## Beside PEFT")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    tests = "".join(file.read_text() for file in (DOCS.parent / "tests" / "lora").glob("test_*.py"))
    assert len(rows) > 20
    assert [row[-1] for row in rows if f"def {row[-1].strip().strip('`')}(" not in tests] == []


def test_every_public_name_has_a_docstring():
    assert [name for name in lora.__all__ if not inspect.getdoc(getattr(lora, name))] == []
