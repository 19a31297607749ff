import re
import tomllib

from .oldest import ROOT, oldest


def test_every_package_has_a_lower_bound_and_a_version_that_was_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own, *others = extras["test"]
    assert own == "lora-mnist[onnx,ray]"
    wanted = [*project["dependencies"], *others, *extras["onnx"], *extras["ray"]]
    names = {re.split("[<>=]", line)[0] for line in wanted}
    assert {line.split("==")[0] for line in oldest()} == names
    tried = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert names <= tried | {"scipy"}  # scikit-learn brings it


def test_packages_that_are_left_out_are_as_they_were_tried():
    (line,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    assert line in oldest("torch")
    assert "torch==2.10" in oldest()
