"""A cluster of this machine, with two workers. Ray starts and ends with each test, which takes seconds."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_mnist.errors import UsageError
from lora_mnist.sweep.rows import Store
from lora_mnist.sweep.sweeping import engine_of, sweep
from lora_mnist.sweep.work import Worker
from tests.sweep.grids import asked, opened, same
from tests.test_architecture import ROOT

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def folder(small, tmp_path):
    shutil.copytree(small[0] / "bases", tmp_path / "bases")
    return tmp_path


@pytest.fixture(autouse=True)
def _ours(monkeypatch):
    """The workers import what these tests do, and get their share of a busy machine, as Ray's own rank does not."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_worker_niceness", "0")


def test_it_comes_to_the_rows_of_local(folder):
    wanted = asked(folder, settings=["finetune.dropout=0.0,0.1"])  # stacks, and jobs alone
    found = sweep(wanted, engine_of("ray", 2))
    (folder / "results.json").unlink()
    local = sweep(wanted, engine_of("local", 2))
    assert len(found.rows) == len(local.rows) == 16
    assert found.failures == ()
    assert all(same(one, other) for one, other in zip(found.rows, local.rows, strict=True))


def test_a_worker_that_is_killed_loses_nothing_and_changes_nothing(small, folder):
    long = ["finetune.steps=600", "finetune.learning_rate=0.001,0.002", "finetune.dropout=0.1"]  # many tasks
    world, jobs = opened(folder, "3,8", "1,2", "0", long)
    alone = {row.key: row for job in jobs for row in Worker(world).do([job])}
    found, killed = [], []
    for outcomes in engine_of("ray", 2)(world, jobs, lambda done: None):
        found += outcomes
        if not killed:
            killed = at_work()
            os.kill(killed[0], signal.SIGKILL)
    assert killed
    assert len(found) == len(jobs) == len(alone)
    assert all(same(row, alone[row.key]) for row in found)


def test_a_driver_that_is_killed_goes_on_where_it_was(folder):
    options = ["--digit", "0-9", "--rank", "1", "--seed", "0-1", "--dataset", "digits", "--threads", "2"]
    more = ["--engine", "ray", "--config", str(folder / "small.toml"), "--out", str(folder)]
    (folder / "small.toml").write_text(
        "[model]\nhidden = [24, 16]\n[pretrain]\nepochs = 3\n[finetune]\nsteps = 300\ndropout = 0.1\nbatch_size = 10\n"
    )
    command = [sys.executable, "-m", "lora_mnist", "sweep", *options, *more]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
        next(line for line in driver.stderr if "10 %" in line)  # two jobs are kept by then
        driver.kill()
    there = Store(folder).rows
    assert 0 < len(there) < 20
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f'"trained": {20 - len(there)}' in done.stdout
    assert len(Store(folder).rows) == 20
    assert all(Store(folder).rows[key] == row for key, row in there.items())


def test_where_there_is_no_cluster_it_says_so(small):
    _, world, jobs = small
    with pytest.raises(UsageError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        next(engine_of("ray", 2, address="127.0.0.1:1")(world, jobs, lambda done: None))
    with pytest.raises(UsageError, match="`gpus`"):
        engine_of("ray", 2, gpus=2.0)


def test_a_sigterm_while_ray_starts_is_answered_as_everywhere(small, monkeypatch):
    def start(*_, **options):  # as Ray does, whose handler answers SIGTERM by then
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    def ours(number, frame):
        raise InterruptedError

    _, world, jobs = small
    monkeypatch.setattr(ray, "init", start)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(InterruptedError):
            next(engine_of("ray", 2)(world, jobs, lambda done: None))
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"lora-mnist\[ray\]"):
        engine_of("ray")


def at_work() -> list[int]:
    """The processes that do a task now: Ray calls them so. Those of this test's cluster alone."""
    session = ray._private.worker.global_worker.node.session_name
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes()
            if title.startswith(b"ray::lora_mnist_stack") and session in _of_session(entry):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _of_session(entry: Path) -> str:
    """Where it writes what it says."""
    return " ".join(os.readlink(link) for link in (entry / "fd").glob("*"))
