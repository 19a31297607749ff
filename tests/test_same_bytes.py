"""The same settings give the same bytes in another process, but for what says when and where."""

import json
import os
import subprocess
import sys
from pathlib import Path

APART = {"provenance.json"}  # of a run: time, machine, versions
AFTER = {"manifest.json", "report.json", "index.html"}  # have its hash, or show what stands there


def make(folder: Path, hash_seed: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "lora_mnist", "run", "--run", str(folder), "--config", "smoke", "--quiet"]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen([*command, "--dataset", "mnist-5k", "--control", "--threads", "1"], env=environment)


def listed(manifest: Path) -> dict[str, str]:
    """What a manifest says of files that are not apart."""
    files = json.loads(manifest.read_text())["files"]
    return {name: digest for name, digest in files.items() if name not in APART | AFTER}


def without_making(document: object) -> object:
    """A report's table without what it shows of provenance.json, and without the digest over that."""
    if isinstance(document, dict):
        apart = {"seconds", "date", "run_digest"}
        return {key: without_making(value) for key, value in document.items() if key not in apart}
    return [without_making(one) for one in document] if isinstance(document, list) else document


def test_two_processes_make_the_same_run(tmp_path):
    places = [tmp_path / "one" / "run", tmp_path / "two" / "run"]
    makers = [make(place, seed) for seed, place in enumerate(places, 1)]
    assert [maker.wait() for maker in makers] == [0, 0]
    one, two = ({str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()} for place in places)
    assert one == two
    assert len(one) > 40
    for name in sorted(one):
        first, second = (place / name for place in places)
        if first.name == "manifest.json":
            assert listed(first) == listed(second), name
        elif first.name == "report.json":
            tables = [json.loads(file.read_text()) for file in (first, second)]
            assert without_making(tables[0]) == without_making(tables[1])
        elif first.name not in APART | AFTER:
            assert first.read_bytes() == second.read_bytes(), name
