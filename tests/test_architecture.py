"""The rooms of the package: a room imports only from rooms below it, and files do not import each other in a circle."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lora_mnist"
ROOMS = (  # from the top down; those of one line do not know each other
    ("__main__",),
    ("cli",),
    ("play", "sweep"),
    ("report",),
    ("pipeline",),
    ("runs",),
    ("evaluation",),
    ("training",),
    ("lora", "datasets"),
    ("settings",),
    ("files",),
    ("errors",),
    ("__init__",),
)
LIBRARY = {"torch", "numpy", "safetensors"}  # and of the package: itself and errors


def modules_of(package: Path) -> dict[str, Path]:
    """Files by dotted name below the package: `cli.commands`; a room's own file goes by the room's name."""
    names = {file.relative_to(package).with_suffix("").as_posix().replace("/", "."): file for file in files(package)}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def imports_of(file: Path) -> set[str]:
    """What `file` imports, at its top or anywhere inside; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def inside(names: set[str], modules: dict[str, Path]) -> set[str]:
    return {name.removeprefix("lora_mnist.") for name in names} & modules.keys()


def room_of(module: str) -> int:
    room = module.partition(".")[0]
    return next(i for i, level in enumerate(ROOMS) if room in level)


def upward_imports(package: Path) -> list[str]:
    """`a imports b` for every import of another room that is not below."""
    modules = modules_of(package)
    return [
        f"{name} imports {other}"
        for name, file in modules.items()
        for other in inside(imports_of(file), modules)
        if other.partition(".")[0] != name.partition(".")[0] and room_of(other) <= room_of(name)
    ]


def circle(package: Path) -> list[str]:
    """The files of one circle of imports, or none."""
    modules = modules_of(package)
    graph = {name: inside(imports_of(file), modules) - {name} for name, file in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def strangers_in_the_library(package: Path) -> list[str]:
    """What lora/ imports besides itself, errors, Python's own library and the three packages it is made with."""
    strange = []
    for file in sorted((package / "lora").glob("*.py")):
        for name in imports_of(file):
            top, _, rest = name.partition(".")
            own = top == "lora_mnist" and rest.partition(".")[0] in ("lora", "errors")
            if not (own or top in LIBRARY or top in sys.stdlib_module_names):
                strange.append(f"{file.name} imports {name}")
    return strange


@pytest.fixture
def copy(tmp_path):
    """The package's files, to plant something in: `copy("lora/layer.py", "import os")`."""
    for file in files(PACKAGE):
        place = tmp_path / file.relative_to(PACKAGE)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(file.read_text())

    def plant(file: str, line: str) -> Path:
        (tmp_path / file).write_text(f"{(tmp_path / file).read_text()}\n\ndef planted():\n    {line}\n")
        return tmp_path

    return plant


def test_imports_point_downwards_only(copy):
    assert upward_imports(PACKAGE) == []
    planted = copy("evaluation/metrics.py", "from lora_mnist.runs import run")
    assert "evaluation.metrics imports runs.run" in upward_imports(planted)


def test_rooms_of_one_floor_do_not_know_each_other(copy):
    assert upward_imports(copy("datasets/dataset.py", "import lora_mnist.lora.layer")) != []


def test_there_is_no_circle(copy):
    assert circle(PACKAGE) == []
    assert {"lora.layer", "lora.merge"} <= set(circle(copy("lora/layer.py", "import lora_mnist.lora.merge")))


def test_the_library_stands_alone(copy):
    assert strangers_in_the_library(PACKAGE) == []
    planted = copy("lora/layer.py", "import lora_mnist.training")
    assert strangers_in_the_library(planted) == ["layer.py imports lora_mnist.training"]
    assert strangers_in_the_library(copy("lora/peft.py", "import pydantic")) != []


def test_the_folder_shows_the_rooms():
    shown = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    rooms = {room for level in ROOMS for room in level if (PACKAGE / room).is_dir()}
    assert shown == rooms | {"errors.py", "files.py", "__init__.py", "__main__.py", "py.typed"}
    assert rooms == set(re.findall(r"^\| `(\w+)/` \|", (ROOT / "docs" / "how-it-works.md").read_text(), re.MULTILINE))


def test_peft_names_stand_in_one_file_only():
    speakers = {file.name for file in files(PACKAGE) if re.search(r"lora_alpha|[\"']r[\"']", file.read_text())}
    assert speakers == {"peft.py"}
