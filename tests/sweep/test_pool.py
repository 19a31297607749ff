import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from lora_mnist.sweep import pool
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.rows import Failure, Row
from lora_mnist.sweep.work import Worker
from tests.sweep.grids import same

KILLED = """
import os, sys
from multiprocessing import get_context
from pathlib import Path
from lora_mnist.sweep.pool import _end_with_parent
get_context("spawn").Process(target=_end_with_parent, args=(Path(sys.argv[1]),)).start()
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def alone(small):
    _, world, jobs = small
    return {row.key: row for job in jobs for row in Worker(world).do([job])}


def test_processes_come_to_the_same_rows(small, alone):
    _, world, jobs = small
    found = [row for rows in pool.run(world, [[job] for job in jobs], 2) for row in rows]
    assert len(found) == len(jobs)
    assert all(same(row, alone[row.key]) for row in found)


def test_nothing_to_do_starts_no_process(small):
    assert list(pool.run(small[1], [], 2)) == []


def test_a_process_that_is_killed_loses_nothing(small, alone, monkeypatch):
    _, world, jobs = small
    killed = []
    found = []
    for rows in pool.run(world, [[job] for job in jobs], 1):
        found += rows
        if not killed:
            killed.append(_kill_a_child())
    assert killed
    assert {row.key for row in found} == alone.keys()
    assert len(found) == len(jobs)
    assert all(same(row, alone[row.key]) for row in found)


class Deadly(Job):
    """A job that ends the process which is to do it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_job_whose_process_dies_each_time_fails_and_takes_none_with_it(small, alone):
    _, world, jobs = small
    deadly = Deadly.model_validate(dict(jobs[1]))
    found = [one for rows in pool.run(world, [[jobs[0]], [deadly], *([job] for job in jobs[2:])], 2) for one in rows]
    (failed,) = [one for one in found if isinstance(one, Failure)]
    assert failed.cause.startswith("Its process died 3 times")
    done = {row.key for row in found if isinstance(row, Row)}
    assert done == alone.keys() - {failed.key}
    assert len(done) == len(jobs) - 1


def test_processes_leave_ctrl_c_to_their_parent_also_while_they_start(small, alone, monkeypatch):
    from multiprocessing import active_children

    def press():
        while not started.wait(0.02):
            for child in active_children():
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGINT)  # as a terminal does

    _, world, jobs = small
    monkeypatch.setattr(pool, "RETRIES", 0)
    started = threading.Event()
    thread = threading.Thread(target=press)
    thread.start()
    outcomes = pool.run(world, [[job] for job in jobs], 2)
    found = next(outcomes)
    started.set()
    thread.join()
    found += [row for rows in outcomes for row in rows]
    assert {row.key for row in found if not isinstance(row, Failure)} == alone.keys()


def test_the_folder_of_a_parent_that_was_killed_goes_with_its_processes(tmp_path):
    folder = tmp_path / "lora-mnist-left"
    folder.mkdir()
    (folder / "world.safetensors").write_bytes(b"large")
    # its output ends when the last of its processes has
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], capture_output=True, text=True, check=False)
    assert (killed.returncode, killed.stdout, killed.stderr) == (-signal.SIGKILL, "", "")
    assert not folder.exists()


def test_leaving_early_leaves_no_process(small):
    from multiprocessing import active_children

    _, world, jobs = small
    outcomes = pool.run(world, [[job] for job in jobs], 1)
    next(outcomes)
    outcomes.close()
    assert active_children() == []


def _kill_a_child():
    from multiprocessing import active_children

    (child,) = active_children()
    os.kill(child.pid, signal.SIGKILL)
    return child.pid
