import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_mnist.errors import RunError
from lora_mnist.pipeline import finetune
from lora_mnist.runs.listing import list_adapters
from lora_mnist.runs.overview import find_runs, list_runs
from lora_mnist.runs.run import Run

from ..conftest import flip_bit, take_out, workspace


def test_every_run_below_a_folder_is_listed_with_what_its_documents_say(run_copy, adapter):
    finetune(workspace(run_copy, digit=3, name="other"))
    (run_copy.parent / "group").mkdir()
    second = shutil.copytree(run_copy, run_copy.parent / "group" / "second")
    (second / "base" / "manifest.json").unlink()
    line, damaged = list_runs(run_copy.parent).runs[::-1]
    assert (line.run, damaged.run) == (str(run_copy), str(second))
    stored = json.loads((run_copy / "base" / "evaluation.json").read_text())
    assert (line.dataset, line.accuracy) == ("digits", pytest.approx(stored["splits"]["test"]["accuracy"]))
    adapters = list_adapters(Run(run_copy)).adapters
    assert line.adapters == len(adapters) == 2
    assert line.best.after.errors == min(one.after.errors for one in adapters)
    assert line.bytes == sum(file.stat().st_size for file in run_copy.rglob("*") if file.is_file())
    assert "no base" in damaged.fault
    assert damaged.accuracy is None


def test_a_run_itself_is_found_and_what_lies_in_it_is_none(run_copy):
    assert find_runs(run_copy) == [run_copy]
    other = shutil.copytree(run_copy, run_copy.parent / "other")
    other.rename(run_copy / "adapters" / "inside")
    assert find_runs(run_copy.parent) == [run_copy]
    with pytest.raises(RunError, match="no folder"):
        list_runs(run_copy / "none")


@pytest.mark.parametrize("file", ["base/history.csv", "A/adapter_model.safetensors", "A/analysis.json"])
def test_a_digest_speaks_for_every_file(run_copy, adapter, file):
    before = Run(run_copy).digest()
    assert before == Run(shutil.copytree(run_copy, run_copy.with_name("copy"))).digest()
    flip_bit(run_copy / file.replace("A/", f"adapters/{adapter.name}/"), -3)
    assert list_runs(run_copy).runs[0].fault
    from ..conftest import rehash

    rehash((run_copy / file.replace("A/", f"adapters/{adapter.name}/")).parent)
    assert Run(run_copy).digest() != before


def test_a_digest_changes_when_an_adapter_goes(run_copy, adapter):
    before = Run(run_copy).digest()
    take_out(adapter)
    assert Run(run_copy).digest() != before


def test_a_digest_does_not_depend_on_which_adapter_was_first(run_copy, adapter):
    second = Path(shutil.copytree(adapter, adapter.with_name("second")))
    digests = []
    for at, younger in enumerate((second, adapter), start=1):
        os.utime(younger / "manifest.json", (2e9 + at, 2e9 + at))  # years from now
        assert Run(run_copy).adapter_names()[-1] == younger.name
        digests.append(Run(run_copy).digest())
    assert digests[0] == digests[1]


def test_it_needs_no_torch(finished_run):
    program = (
        "import sys\nfrom lora_mnist.cli.main import main\n"
        f"code = main(['runs', {str(finished_run)!r}])\n"
        "sys.exit(code or {'torch', 'numpy', 'matplotlib'} & set(sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
