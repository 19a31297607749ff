"""The house: every file has its floor in the README's table, and imports only from floors below."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lora_mnist"
FLOORS = {
    file: int(floor)
    for floor, file in re.findall(r"^\| (\d+) \| `(\w+\.py)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
}
FILES = sorted(file.name for file in PACKAGE.glob("*.py") if file.name != "__init__.py")


def imports_of(file: str) -> set[str]:
    """Files of the package that `file` imports, at its top or anywhere inside."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "lora_mnist":
            found |= {f"{alias.name}.py" for alias in node.names if (PACKAGE / f"{alias.name}.py").is_file()}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lora_mnist."):
            found.add(node.module.removeprefix("lora_mnist.") + ".py")
        elif isinstance(node, ast.Import):
            found |= {
                f"{a.name.removeprefix('lora_mnist.')}.py" for a in node.names if a.name.startswith("lora_mnist.")
            }
    return found


def test_every_file_has_its_row_in_the_readme():
    assert sorted(FLOORS) == FILES


@pytest.mark.parametrize("file", FILES)
def test_imports_point_downwards_only(file):
    not_below = {other for other in imports_of(file) if FLOORS[other] >= FLOORS[file]}
    assert not not_below


def test_peft_names_stand_in_one_file_only():
    speakers = {f for f in FILES if re.search(r"lora_alpha|[\"']r[\"']", (PACKAGE / f).read_text())}
    assert speakers == {"peft_format.py"}
