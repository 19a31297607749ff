import pytest

from lora_mnist.errors import RunError, UsageError
from lora_mnist.evaluation.metrics import weakest_digit
from lora_mnist.lora import fingerprint_model
from lora_mnist.runs.atomic import is_finished
from lora_mnist.sweep.opening import open_world
from tests.conftest import snapshot
from tests.sweep.grids import asked, opened


def test_a_base_is_made_once_for_every_seed(small):
    folder, world, jobs = small
    assert len(world.bases) == 2
    assert {job.settings.seed for job in jobs if job.base == next(iter(world.bases))} == {0}
    before = snapshot(folder)
    again, same = opened(folder)
    assert same == jobs
    for key, base in world.bases.items():
        assert is_finished(folder / "bases" / key / "base")
        assert again.bases[key].fingerprint == base.fingerprint == fingerprint_model(base.network).sha256
    assert snapshot(folder) == before


def test_other_pretraining_is_another_base(small):
    folder, world, _ = small
    other, _ = opened(folder, "3", "1", "0", ["pretrain.epochs=1"])
    assert not other.bases.keys() & world.bases.keys()


def test_all_jobs_may_start_from_the_base_of_a_run(small, finished_run, tmp_path):
    with pytest.raises(UsageError, match="contradicts"):
        asked(tmp_path, settings=["pretrain.epochs=7"], base=finished_run).jobs()
    one = asked(tmp_path, base=finished_run)
    world, jobs = open_world(one, one.jobs())
    assert list(world.bases) == ["run"]
    assert {job.settings.seed for job in jobs} == {0, 1}
    assert {job.settings.model.hidden for job in jobs} == {(24, 16)}
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="no base"):
        asked(tmp_path, base=tmp_path).jobs()


def test_the_weakest_digit_is_that_of_every_base_and_no_job_is_there_twice(small):
    folder, world, _ = small
    found, jobs = opened(folder, "weakest", "1", "0-1")
    for job in jobs:
        logits = found.bases[job.base].logits["val"]
        assert job.digit == weakest_digit(logits, world.dataset.val.labels)
    _, with_all = opened(folder, "weakest,0,1,2,3,4,5,6,7,8,9", "1", "0-1")
    assert len(with_all) == 20


def test_doubts_are_taken_only_where_a_job_asks(small):
    folder, world, _ = small
    assert all(base.uncertainty is not None for base in world.bases.values())
    other, _ = opened(folder, "3", "1", "0", ["finetune.hard_examples=0.0"])
    assert all(base.uncertainty is None for base in other.bases.values())
