"""The house: every file has its floor in the README's table, and imports only from floors below."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lora_mnist"
FLOORS = {
    file: int(floor)
    for floor, file in re.findall(r"^\| (\d+) \| `([\w/]+\.py)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
}
FILES = sorted(str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def imports_of(file: str) -> set[str]:
    """Files of the package that `file` imports, at its top or anywhere inside."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    paths = [name.removeprefix("lora_mnist.").replace(".", "/") for name in names if name.startswith("lora_mnist.")]
    return {file for path in paths for file in (f"{path}.py", f"{path}/__init__.py") if (PACKAGE / file).is_file()}


def test_every_file_has_its_row_in_the_readme():
    assert sorted(FLOORS) == FILES


@pytest.mark.parametrize("file", FILES)
def test_imports_point_downwards_only(file):
    not_below = {other for other in imports_of(file) if FLOORS[other] >= FLOORS[file]}
    assert not not_below


def test_peft_names_stand_in_one_file_only():
    speakers = {f for f in FILES if re.search(r"lora_alpha|[\"']r[\"']", (PACKAGE / f).read_text())}
    assert speakers == {"peft_format.py"}
