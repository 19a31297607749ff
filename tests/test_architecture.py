"""The rooms of the package: a room imports only from rooms below it, and files do not import each other in a circle."""

import ast
import re
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lora_mnist"
ROOMS = (  # from the top down; those of one line do not know each other
    ("__main__",),
    ("cli",),
    ("play", "sweep"),
    ("browser",),
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
Sources = dict[str, str]  # by dotted name below the package: `cli.commands`; a room's own file goes by the room's name


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


SOURCES: Sources = {name_of(file): file.read_text() for file in sorted(PACKAGE.rglob("*.py"))}


def planted(module: str, line: str) -> Sources:
    """The package with one line more, inside a function."""
    return SOURCES | {module: f"{SOURCES[module]}\n\ndef planted():\n    {line}\n"}


@cache
def imports_of(source: str) -> set[str]:
    """What it imports, at its top or anywhere inside; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def graph_of(package: Sources) -> dict[str, set[str]]:
    """By file, the other files of the package that it imports."""
    own = {name: {one.removeprefix("lora_mnist.") for one in imports_of(text)} for name, text in package.items()}
    return {name: (imported & package.keys()) - {name} for name, imported in own.items()}


def room_of(module: str) -> int:
    room = module.partition(".")[0]
    return next(i for i, level in enumerate(ROOMS) if room in level)


def upward_imports(package: Sources) -> list[str]:
    """`a imports b` for every import of another room that is not below."""
    return [
        f"{name} imports {other}"
        for name, others in graph_of(package).items()
        for other in others
        if other.partition(".")[0] != name.partition(".")[0] and room_of(other) <= room_of(name)
    ]


def circle(package: Sources) -> list[str]:
    """The files of one circle of imports, or none."""
    try:
        TopologicalSorter(graph_of(package)).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def strangers_in_the_library(package: Sources) -> list[str]:
    """What lora/ imports besides itself, errors, Python's own library and the three packages it is made with."""
    strange = []
    for module in (name for name in package if name.partition(".")[0] == "lora"):
        for name in imports_of(package[module]):
            top, _, rest = name.partition(".")
            own = top == "lora_mnist" and rest.partition(".")[0] in ("lora", "errors")
            if not (own or top in LIBRARY or top in sys.stdlib_module_names):
                strange.append(f"{module} imports {name}")
    return strange


def test_imports_point_downwards_only():
    assert upward_imports(SOURCES) == []
    found = upward_imports(planted("evaluation.metrics", "from lora_mnist.runs import run"))
    assert "evaluation.metrics imports runs.run" in found


def test_rooms_of_one_floor_do_not_know_each_other():
    assert upward_imports(planted("datasets.dataset", "import lora_mnist.lora.layer")) != []


def test_there_is_no_circle():
    assert circle(SOURCES) == []
    assert {"lora.layer", "lora.merge"} <= set(circle(planted("lora.layer", "import lora_mnist.lora.merge")))


def test_the_library_stands_alone():
    assert strangers_in_the_library(SOURCES) == []
    found = strangers_in_the_library(planted("lora.layer", "import lora_mnist.training"))
    assert found == ["lora.layer imports lora_mnist.training"]
    assert strangers_in_the_library(planted("lora.peft", "import pydantic")) != []


def test_the_folder_shows_the_rooms():
    shown = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    rooms = {room for level in ROOMS for room in level if (PACKAGE / room).is_dir()}
    assert shown == rooms | {"errors.py", "files.py", "__init__.py", "__main__.py", "py.typed"}
    assert rooms == set(re.findall(r"^\| `(\w+)/` \|", (ROOT / "docs" / "how-it-works.md").read_text(), re.MULTILINE))


def test_peft_names_stand_in_one_file_only():
    speakers = {name for name, text in SOURCES.items() if re.search(r"lora_alpha|[\"']r[\"']", text)}
    assert speakers == {"lora.peft"}
