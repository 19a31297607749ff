"""What the pages of docs/ show runs, and the library's manual has all of its names."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from lora_mnist import lora

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# named in the manual's first lines and the same everywhere
COMMON = {"self", "model", "name", "folder", "config"}
NEVER_FAIL = {
    *("adapter_names", "base_tensors", "disabled", "is_merged", "linear_layers", "strengths", "unmerge"),
    *("fingerprint", "fingerprint_model", "differences", "first_difference", "changed_bytes"),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = list(re.finditer(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    assert blocks or page.name != "library.md"
    for block in blocks:  # each asserts what it says
        line = page.read_text()[: block.start()].count("\n") + 1  # so that a failure names the page's line
        exec(compile("\n" * line + block[1], str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_it_links_to_is_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (DOCS / target).is_file(), target


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


def undocumented(name, value) -> list[str]:
    """What is missing in the docstring of a public function or class, or of its public methods."""
    if not value.__doc__:
        return [name]
    if inspect.isclass(value):
        own = {key: part for key, part in vars(value).items() if not key.startswith("_")}
        made = [
            key for key, part in own.items() if isinstance(part, property | classmethod) or inspect.isfunction(part)
        ]
        return [f"{name}.{key}" for key in made if not own[key].__doc__]
    arguments = [one for one in inspect.signature(value).parameters if one not in COMMON]
    missing = [f"{name}: {one}" for one in arguments if one not in value.__doc__]
    if name not in NEVER_FAIL and "Error" not in value.__doc__:
        missing.append(f"{name}: errors")
    return missing


def test_every_public_name_says_what_it_takes_and_raises():
    assert [lack for name in lora.__all__ for lack in undocumented(name, getattr(lora, name))] == []


def test_what_is_undocumented_is_noticed():
    def nothing(model):
        pass

    def little(model, rank):
        """Do it."""

    class Bare:
        """Something."""

        @property
        def part(self):
            return 1

    assert undocumented("nothing", nothing) == ["nothing"]
    assert undocumented("little", little) == ["little: rank", "little: errors"]
    assert undocumented("Bare", Bare) == ["Bare.part"]


def test_what_never_fails_raises_nothing():
    """The list above is no way round a docstring."""
    for name in NEVER_FAIL:
        tree = ast.parse(inspect.getsource(inspect.unwrap(getattr(lora, name))))
        assert not any(isinstance(node, ast.Raise) for node in ast.walk(tree)), name
