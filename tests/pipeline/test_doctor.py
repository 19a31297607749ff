import os
from collections import namedtuple
from importlib import metadata

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_mnist.datasets.mnist import MNIST_FILES
from lora_mnist.pipeline import doctor
from lora_mnist.pipeline.convert import merge
from lora_mnist.runs.atomic import one_writer
from lora_mnist.settings.request import Applied

from ..conftest import flip_bit, rehash, snapshot, workspace


@pytest.fixture
def healthy(run_copy, monkeypatch):
    """A machine that has nothing else to do, with one good run and no MNIST."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    cores = range(max(2, torch.get_num_threads()))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(cores), raising=False)

    def examine(**options):
        diagnosis = doctor.doctor(run_copy.parent, run_copy.parent / "data", **options)
        return {check.name: check for check in diagnosis.checks}, diagnosis

    return examine


def test_all_is_well_and_nothing_is_written(healthy, run_copy):
    merge(workspace(run_copy), [Applied(next((run_copy / "adapters").iterdir()).name)])
    before = snapshot(run_copy.parent)
    checks, diagnosis = healthy()
    assert (diagnosis.passed, diagnosis.exit_code) == (True, 0)
    assert list(checks) == ["packages", "device", "threads", "disk", "data", str(run_copy)]
    assert torch.__version__ in checks["packages"].finding
    assert "the base and 2 made from it; nobody writes" in checks[str(run_copy)].finding
    assert snapshot(run_copy.parent) == before
    with one_writer(run_copy):
        checks, diagnosis = healthy()
    assert diagnosis.passed  # it is no fault
    assert f"written by process {os.getpid()}" in checks[str(run_copy)].finding


def failed(examined, name, code, *words):
    checks, diagnosis = examined
    assert not diagnosis.passed
    assert diagnosis.exit_code == code
    assert [one.name for one in checks.values() if not one.passed] == [name]
    for word in words:
        assert word in f"{checks[name].finding} {checks[name].way_out}"


@pytest.mark.parametrize("file", ["base/model.safetensors", "A/adapter_model.safetensors", "A/analysis.json"])
def test_a_run_with_an_altered_file_is_named(healthy, run_copy, adapter, file):
    path = run_copy / file.replace("A/", f"adapters/{adapter.name}/")
    flip_bit(path, -3)
    failed(healthy(), str(run_copy), 5, path.name, "Restore it")
    if path.name == "model.safetensors":
        rehash(path.parent)  # behind a good manifest the fingerprint still shows it
        failed(healthy(), str(run_copy), 5, "does not have the recorded fingerprint")


def test_an_adapter_of_another_base_is_found_behind_a_good_manifest(healthy, run_copy, adapter):
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path), path)
    rehash(adapter)
    failed(healthy(), str(run_copy), 4, "not for this base: it has no fingerprint")


def test_data_that_are_not_the_published_ones_are_named(healthy, run_copy):
    raw = run_copy.parent / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    first, *_ = MNIST_FILES
    (raw / first).write_bytes(b"x")
    failed(healthy(), "data", 3, f"has only {first}")
    for name in MNIST_FILES:
        (raw / name).write_bytes(b"x")
    failed(healthy(), "data", 3, f"{first} is not the published file")


def test_a_torchvision_of_another_torch_is_named(healthy, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda package: ["numpy", "torch==1.2.3", "gdown; extra == 'gdown'"])
    failed(healthy(), "packages", 2, "was made for torch 1.2.3", "pip install torch==1.2.3")
    monkeypatch.setattr(metadata, "requires", lambda package: ["numpy"])
    assert healthy()[1].passed  # fits any


def test_traps_of_the_machine_are_named(healthy, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    checks, diagnosis = healthy(threads=3)
    assert (checks["threads"].way_out, diagnosis.exit_code) == ("Use --threads 2.", 0)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.2, 0.0, 0.0))
    checks, diagnosis = healthy(threads=2)  # load slows commands down and stops none
    assert checks["threads"].finding.startswith("2 for 2 cores, load 1.2")
    assert (checks["threads"].way_out, diagnosis.exit_code) == ("Use --threads 1, or wait.", 0)
    assert healthy(threads=1)[0]["threads"].way_out is None
    failed(healthy(threads=1, device="cuda:77"), "device", 2, "cuda:77")
    monkeypatch.setattr("shutil.disk_usage", lambda place: namedtuple("usage", "free")(free=10**6))
    failed(healthy(threads=1), "disk", 6, "0.0 GB free")


def test_mnist_and_where_it_is(healthy, run_copy, mnist):
    (run_copy.parent / "data").symlink_to(mnist)
    assert "all four files as published" in healthy()[0]["data"].finding
