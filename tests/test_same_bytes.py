"""The same settings give the same bytes in another process, but for what says when and where."""

import os
import subprocess
import sys
from pathlib import Path

from .conftest import snapshot
from .faults.conftest import facts

APART = {"provenance.json", "manifest.json", "report.json", "index.html"}  # say when and where, hash it or show it


def make(folder: Path, hash_seed: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "lora_mnist", "run", "--run", str(folder), "--config", "smoke", "--quiet"]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen([*command, "--dataset", "mnist-5k", "--control", "--threads", "1"], env=environment)


def test_two_processes_make_the_same_run(tmp_path):
    places = [tmp_path / "one" / "run", tmp_path / "two" / "run"]
    makers = [make(place, seed) for seed, place in enumerate(places, 1)]
    assert [maker.wait() for maker in makers] == [0, 0]
    one, two = map(snapshot, places)
    assert len(one) > 40
    assert facts(places[0]) == facts(places[1])  # of those apart, too, what is in them besides
    assert [name for name in one if Path(name).name not in APART and one[name] != two[name]] == []
