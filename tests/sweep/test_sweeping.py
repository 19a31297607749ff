import shutil
import subprocess
import sys

import pytest

from lora_mnist.errors import UsageError
from lora_mnist.sweep import sweeping
from lora_mnist.sweep.rows import CSV, Failure, Store
from lora_mnist.sweep.sweeping import engine_of, sweep
from lora_mnist.sweep.work import Worker
from tests.sweep.grids import asked, same
from tests.test_architecture import ROOT


@pytest.fixture
def folder(small, tmp_path):
    """The folder of a sweep whose bases are made already."""
    shutil.copytree(small[0] / "bases", tmp_path / "bases")
    return tmp_path


def counting(done, until=None):
    """An engine that notes what it does, and is interrupted after so many."""

    def run(world, jobs, told):
        for job in jobs:
            if len(done) == until:
                raise KeyboardInterrupt
            done.append(job)
            yield Worker(world).do([job])

    return run


def test_what_is_finished_is_not_done_again_and_a_new_value_is(folder):
    done = []
    first = sweep(asked(folder), counting(done))
    assert (first.trained, len(first.rows), len(done)) == (8, 8, 8)
    again = sweep(asked(folder), counting(done))
    assert (again.trained, again.rows, len(done)) == (0, first.rows, 8)
    more = sweep(asked(folder, ranks="1,2,3"), counting(done))
    assert (more.trained, len(more.rows), len(done)) == (4, 12, 12)
    assert {job.settings.finetune.rank for job in done[8:]} == {3}
    assert len(Store(folder).rows) == 12


def test_an_interrupt_leaves_what_is_finished(folder):
    done = []
    with pytest.raises(KeyboardInterrupt):
        sweep(asked(folder), counting(done, until=3))
    assert len(Store(folder).rows) == 3
    assert (folder / CSV).is_file()
    rest = []
    assert sweep(asked(folder), counting(rest)).trained == 5
    assert len(rest) == 5


def test_a_failed_job_is_reported_and_tried_again(folder):
    wanted = asked(folder, settings=["finetune.learning_rate=0.01,1e30"])
    found = sweep(wanted, engine_of("stacked", 1))
    assert (found.trained, len(found.failures), len(found.rows)) == (8, 8, 8)
    assert all("--learning-rate" in one.cause for one in found.failures)
    done = []
    assert len(sweep(wanted, counting(done)).failures) == len(done) == 8


def test_the_engines_come_to_the_same_rows(folder):
    stacked = sweep(asked(folder), engine_of("stacked", 1))
    (folder / "results.json").unlink()
    local = sweep(asked(folder), engine_of("local", 2))
    assert {row.engine for row in stacked.rows} == {"stacked"}
    assert {row.engine for row in local.rows} == {"alone"}
    assert all(same(one, other) for one, other in zip(stacked.rows, local.rows, strict=True))


def test_several_stacks_are_spread_over_processes(folder, monkeypatch):
    from lora_mnist.sweep import pool, stacked

    one = sweep(asked(folder), engine_of("stacked", 1))
    (folder / "results.json").unlink()
    monkeypatch.setattr(stacked, "FEW", 0)
    spreading, run = [], pool.run
    monkeypatch.setattr(pool, "run", lambda *given: spreading.append(given[-1]) or run(*given))
    spread = sweep(asked(folder), engine_of("stacked", 2))
    assert spreading == [2]
    assert all(same(a, b) for a, b in zip(one.rows, spread.rows, strict=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("quick",), "none of stacked, local, ray"),
        (("local", None, "cuda"), "--engine local"),
        (("stacked", None, "cpu", "auto"), "Ray cluster"),
        (("local", None, "cpu", None, 0.5), "Ray cluster"),
    ],
)
def test_what_an_engine_cannot_do(arguments, said):
    with pytest.raises(UsageError, match=said):
        engine_of(*arguments)


@pytest.mark.parametrize("engine", ["stacked", "local"])
def test_no_other_engine_is_imported(engine):
    others = {"lora_mnist.sweep.stacked", "lora_mnist.sweep.local", "lora_mnist.sweep.cluster", "ray"}
    others -= {f"lora_mnist.sweep.{engine}"}
    program = (
        "import sys\nfrom lora_mnist.sweep.sweeping import engine_of\n"
        f"engine_of({engine!r})\nprint({others!r} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_nothing_but_the_answer_is_missing_if_all_fail(folder):
    found = sweep(asked(folder, settings=["finetune.learning_rate=1e30"]), engine_of("stacked", 1))
    assert isinstance(found.failures[0], Failure)
    assert found.answered().answer is None
    assert sweeping.Answered.model_validate_json(found.answered().model_dump_json()).sweep == found
