"""Engines come to the same rows; a process or a command that dies loses nothing and leaves nothing."""

import os
import resource
import signal
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_mnist.errors import DiskError, UsageError
from lora_mnist.sweep import engines
from lora_mnist.sweep.engines import engine_of
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.jobs import run_jobs
from lora_mnist.sweep.rows import Failure, Row, Store
from lora_mnist.sweep.sweep import sweep
from tests.sweep.conftest import request_of, same
from tests.test_architecture import ROOT

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")
TOML = "pretrain.epochs = 1\nmodel.hidden = [24, 16]\nfinetune = {steps = 200, guard = 'none', dropout = 0.1}\n"


def local(context, jobs, processes=2):
    """Outcomes of one job after the other, as soon as they are known."""
    return engine_of("local", processes)(context, jobs, lambda done: None)


@pytest.fixture(scope="module")
def alone(small):
    """Rows of the jobs done in this process, by key."""
    _, context, jobs = small
    return {row.key: row for job in jobs for row in run_jobs(context, [job])}


@pytest.mark.parametrize("engine", ["local", "stacked"])
def test_the_engines_come_to_the_same_rows(small, folder, alone, engine, monkeypatch):
    monkeypatch.setattr(engines, "FEW", 0)  # or so few jobs would stay in this process
    found = sweep(request_of(folder), engine_of(engine, 2))
    assert {row.engine for row in found.rows} == {"alone" if engine == "local" else "stacked"}
    assert len(found.rows) == len(alone)
    assert all(same(row, alone[row.key]) for row in found.rows)
    assert active_children() == []


class Deadly(Job):
    """A job that ends the process to which it is sent, so many times."""

    folder: Path  # has a file for each time
    times: int

    def __reduce__(self):
        fields = {name: value for name, value in self if name in Job.model_fields}
        return arrive, (Job(**fields), self.folder, self.times)


def arrive(job, folder, times):
    if len(deaths := list(folder.iterdir())) < times:
        (folder / str(len(deaths))).touch()
        os._exit(9)
    return job


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Ray
@pytest.mark.parametrize(
    ("engine", "times", "failures"), [("local", 1, 0), ("local", 9, 1), pytest.param("ray", 1, 0, marks=needs_ray)]
)
def test_a_process_that_dies_loses_nothing_but_what_kills_it(
    small, alone, tmp_path, monkeypatch, engine, times, failures
):
    # Ray's workers import what these tests do, and get their share of a busy machine, as Ray's own rank does not
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    _, context, jobs = small
    deadly = Deadly(**dict(jobs[1]), folder=tmp_path, times=times)
    outcomes = engine_of(engine, 2)(context, [jobs[0], deadly, *jobs[2:]], lambda done: None)
    found = {one.key: one for some in outcomes for one in some}
    assert found.keys() == alone.keys()
    assert len(list(tmp_path.iterdir())) == min(times, 2)
    failed = [one for one in found.values() if isinstance(one, Failure)]
    assert [one.cause.startswith("Its process died twice") for one in failed] == [True] * failures
    assert all(same(row, alone[key]) for key, row in found.items() if isinstance(row, Row))


def test_leaving_early_leaves_no_process(small):
    _, context, jobs = small
    with closing(local(context, jobs, 1)) as outcomes:
        next(outcomes)
    assert active_children() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("quick",), "none of stacked, local, ray"),
        (("local", None, "cuda"), "--engine local"),
        (("stacked", None, "cpu", "auto"), "Ray cluster"),
        (("local", None, "cpu", None, 0.5), "Ray cluster"),
        (("ray", 2, "cuda"), "--engine ray"),
        (("ray", 2, "auto", None, 2.0), r"`gpus` \(=2.0\) must be from 0 to 1"),
        (("ray", 2, "auto", None, 0.5), r"`gpus` \(=0.5\) is more than this machine has"),
    ],
)
def test_what_an_engine_cannot_do(arguments, said, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engines, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=said):
        engine_of(*arguments)


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[ray\]'"):
        engine_of("ray")


def test_a_temporary_folder_that_is_full_is_a_full_disk(small):
    _, context, jobs = small
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DiskError, match="File too large"):
            next(local(context, jobs))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FakeRay(SimpleNamespace):
    """What of Ray is called before there is a task; `refusal` is what its start raises."""

    def __init__(self, *machines, refusal=None):
        nodes = [{"Alive": alive, "Resources": resources} for alive, resources in machines]
        super().__init__(init=self.start, nodes=lambda: nodes, shutdown=lambda: None, refusal=refusal)

    def start(self, *_, **options):
        self.folder = Path.cwd()
        if self.refusal:
            raise self.refusal


@pytest.fixture
def first_of_ray(small, monkeypatch):
    """Ask a Ray that is made up for the first outcomes."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engines, "find_spec", lambda name: name)

    def ask(ray: FakeRay, address=None, gpus=0.0):
        monkeypatch.setitem(sys.modules, "ray", ray)
        _, context, jobs = small
        return next(engine_of("ray", 2, address=address, gpus=gpus)(context, jobs, lambda done: None))

    return ask


@pytest.mark.parametrize(
    ("gpus", "machines"),
    [
        (0.5, [(True, {"CPU": 8.0})]),
        (0.5, [(True, {"CPU": 8.0}), (True, {"GPU": 4.0})]),  # but none has both
        (0.5, [(True, {"CPU": 8.0}), (False, {"CPU": 8.0, "GPU": 4.0})]),
        (0.0, [(True, {"memory": 1e9})]),
    ],
)
def test_a_cluster_where_a_task_would_wait_for_ever_is_refused(first_of_ray, gpus, machines):
    with pytest.raises(UsageError, match="No machine of the Ray cluster has a CPU" + (" and `gpus`" if gpus else "")):
        first_of_ray(FakeRay(*machines), "auto", gpus)


@pytest.mark.parametrize(
    ("refusal", "address", "kind", "said"),
    [
        (ValueError("the object store is too\nsmall."), None, UsageError, "start on this machine: the object store is"),
        (RuntimeError("Timed out."), None, UsageError, r"start on this machine: Timed out\."),
        (OSError(28, "No space left on device"), None, DiskError, "start on this machine: .*No space left"),
        (None, "127.0.0.1:1", UsageError, r"no Ray cluster at '127\.0\.0\.1:1'"),
        (ConnectionError("nobody answers"), "auto", UsageError, "no Ray cluster at 'auto': nobody answers"),
        (RuntimeError("Version mismatch"), "auto", UsageError, "not connect to 'auto': Version mismatch"),
    ],
)
def test_a_ray_that_does_not_start_says_so_in_its_own_words(first_of_ray, refusal, address, kind, said):
    with pytest.raises(kind, match=said):
        first_of_ray(FakeRay(refusal=refusal), address)


def test_the_workers_of_ray_do_not_import_from_the_working_folder(first_of_ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ray = FakeRay()
    with pytest.raises(UsageError, match="No machine"):
        first_of_ray(ray)
    assert (ray.folder, Path.cwd()) == (ROOT, tmp_path)


def test_a_local_ray_needs_room_for_its_files(first_of_ray, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with pytest.raises(DiskError, match="file"):
        first_of_ray(FakeRay())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=needs_ray)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_ends_early_leaves_no_process_and_goes_on_where_it_was(tmp_path, monkeypatch, engine, number):
    if (engine, number) == ("ray", signal.SIGINT):
        pytest.skip("Ray takes its time to stop")
    if engine == "local":  # Ray's sockets need a short path
        monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "small.toml").write_text(TOML)
    options = ["--digit", "0-9", "--rank", "1", "--seed", "0", "--dataset", "mnist-5k", "--threads", "2"]
    more = ["--engine", engine, "--config", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "lora_mnist", "sweep", *options, *more]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "start_new_session": True}
    # a suite that runs in the background has interrupts ignored, and so would have what it starts
    plain = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(command, cwd=ROOT, text=True, preexec_fn=plain, **pipes) as driver:
        next(line for line in driver.stderr if "jobs: 10 %" in line)  # one is kept by then
        if number == signal.SIGKILL:
            driver.kill()
        else:
            os.killpg(driver.pid, number)  # as a terminal does
        rest = driver.stderr.read() if engine == "local" else ""  # ends with the last process that has it
    if number == signal.SIGINT:
        assert (driver.returncode, rest.splitlines()[-1:]) == (130, ["Interrupted; what was finished before is kept."])
    assert not list(tmp_path.glob("lora-mnist-*"))
    there = Store(tmp_path / "out").rows
    assert 0 < len(there) < 10
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f'"trained": {10 - len(there)}' in done.stdout
    rows = Store(tmp_path / "out").rows
    assert len(rows) == 10
    assert all(rows[key] == row for key, row in there.items())
