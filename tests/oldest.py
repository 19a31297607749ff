"""Print constraints for pip: the oldest versions that pyproject.toml allows.

`python tests/oldest.py torch torchvision`: but those that constraints.txt has of the packages named.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def oldest(*but: str) -> list[str]:
    """A line for each package that the suite needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tried = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.partition("==")[0] in but]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in ("onnx", "ray", "test") for line in extras[extra])]
    bounds = [re.match(r"(?P<name>[\w-]+)>=(?P<version>[\w.]+)", line) for line in wanted]
    return [f"{bound['name']}=={bound['version']}" for bound in bounds if bound and bound["name"] not in but] + tried


if __name__ == "__main__":
    print(*oldest(*sys.argv[1:]), sep="\n")
