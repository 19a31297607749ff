"""Print constraints for pip: the oldest versions that pyproject.toml allows.

`python tests/oldest.py torch torchvision`: but those that constraints.txt has of the packages named.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tried() -> dict[str, str]:
    """By package, its line in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {line.partition("==")[0]: line for line in lines if "==" in line}


def oldest(*but: str) -> list[str]:
    """A line for each package that the suite needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own, *tests = extras["test"]  # lora-mnist[onnx,ray]: the extras that the suite needs too
    wanted = [*project["dependencies"], *tests]
    wanted += [line for extra in re.findall(r"\w+", own.partition("[")[2]) for line in extras[extra]]
    bounds = dict(line.split(">=") for line in wanted)
    return [tried()[name] if name in but else f"{name}=={version}" for name, version in bounds.items()]


if __name__ == "__main__":
    print(*oldest(*sys.argv[1:]), sep="\n")
