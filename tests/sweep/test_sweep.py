"""Whole sweeps: resuming, planning, bases, held-out images, and keeping an adapter."""

from pathlib import Path

import pytest

from lora_mnist.errors import AlteredError, RunError, UsageError
from lora_mnist.evaluation.metrics import weakest_digit
from lora_mnist.lora import fingerprint_model
from lora_mnist.pipeline import open_workspace
from lora_mnist.pipeline.verify import verify_workspace
from lora_mnist.settings.request import Request
from lora_mnist.sweep.engines import engine_of
from lora_mnist.sweep.jobs import run_jobs
from lora_mnist.sweep.rows import CSV, Store
from lora_mnist.sweep.sweep import choose_row, keep, open_context, plan, sweep
from tests.conftest import snapshot
from tests.sweep.conftest import opened, request_of


def counting(done, until=None):
    """An engine that notes what it does, and is interrupted after so many."""

    def run(context, jobs, show):
        for job in jobs:
            if len(done) == until:
                raise KeyboardInterrupt
            done.append(job)
            yield run_jobs(context, [job])

    return run


def test_what_is_finished_is_not_done_again_and_a_new_value_is(folder):
    done = []
    planned = plan(request_of(folder / "new"))
    assert (planned.jobs, planned.finished, planned.bases) == (8, 0, 2)
    assert not (folder / "new").exists()
    first = sweep(request_of(folder), counting(done))
    assert (first.trained, len(first.rows), len(done)) == (8, 8, 8)
    again = sweep(request_of(folder), counting(done))
    assert (again.trained, again.rows, len(done)) == (0, first.rows, 8)
    before = snapshot(folder)
    planned = plan(request_of(folder, ranks="1,2,3"))
    assert (planned.jobs, planned.finished, planned.bases) == (12, 8, 0)
    assert snapshot(folder) == before
    more = sweep(request_of(folder, ranks="1,2,3"), counting(done))
    assert (more.trained, len(more.rows), len(done)) == (4, 12, 12)
    assert {job.settings.finetune.rank for job in done[8:]} == {3}


def test_an_interrupt_leaves_what_is_finished(folder):
    with pytest.raises(KeyboardInterrupt):
        sweep(request_of(folder), counting([], until=3))
    assert len(Store(folder).rows) == 3
    assert (folder / CSV).is_file()
    rest = []
    assert sweep(request_of(folder), counting(rest)).trained == len(rest) == 5


def test_a_failed_job_is_reported_and_tried_again(folder):
    wanted = request_of(folder, settings=["finetune.learning_rate=0.01,1e30"])
    found = sweep(wanted, engine_of("stacked", 1))
    assert (found.trained, len(found.failures), len(found.rows)) == (8, 8, 8)
    assert all("--learning-rate" in one.cause for one in found.failures)
    done = []
    again = sweep(wanted, counting(done))
    assert len(again.failures) == len(done) == 8
    none = sweep(request_of(folder, settings=["finetune.learning_rate=1e30"]), engine_of("stacked", 1))
    assert none.rows == ()


def test_a_base_is_made_once_for_every_seed(small):
    folder, context, jobs = small
    assert len(context.bases) == 2
    assert {job.settings.seed for job in jobs if job.base == next(iter(context.bases))} == {0}
    before = snapshot(folder)
    again, same_jobs = opened(folder)
    assert (same_jobs, snapshot(folder)) == (jobs, before)
    for key, base in context.bases.items():
        assert again.bases[key].fingerprint == base.fingerprint == fingerprint_model(base.network).sha256


def test_all_jobs_may_start_from_the_base_of_a_run(finished_run, tmp_path):
    with pytest.raises(UsageError, match="contradicts"):
        request_of(tmp_path, settings=["pretrain.epochs=7"], base=finished_run).jobs()
    one = request_of(tmp_path, base=finished_run)
    context, jobs = open_context(one, one.jobs())
    assert list(context.bases) == ["run"]
    assert {job.settings.seed for job in jobs} == {0, 1}
    assert {job.settings.model.hidden for job in jobs} == {(24, 16)}
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="no base"):
        request_of(tmp_path, base=tmp_path).jobs()


def test_the_weakest_digit_is_that_of_every_base_and_no_job_is_done_twice(small, folder):
    _, context, _ = small
    weakest = request_of(folder, "weakest", "1", "0-1")
    assert plan(weakest).finished == 0
    found, jobs = open_context(weakest, weakest.jobs())
    for job in jobs:
        assert job.digit == weakest_digit(found.bases[job.base].logits["val"], context.dataset.val.labels)
    done = []
    with_all = sweep(request_of(folder, "weakest,0,1,2,3,4,5,6,7,8,9", "1", "0-1"), counting(done))
    assert len(with_all.rows) == len(done) == 20
    assert (plan(weakest).jobs, plan(weakest).finished) == (2, 2)


def test_what_is_held_out_is_none_of_test_and_none_that_trains(folder):
    plain, _ = opened(folder, "3", "1", "0")
    held, jobs = opened(folder, "3", "1", "0", hold_out=True)
    assert len(held.dataset.val) + len(held.dataset.test) == len(plain.dataset.val)
    halves = sorted(image.numpy().tobytes() for part in held.dataset.held_out.values() for image in part.images)
    assert halves == sorted(image.numpy().tobytes() for image in plain.dataset.val.images)
    (base,) = held.bases.values()
    assert all(len(base.logits[split]) == len(part) for split, part in held.dataset.held_out.items())
    assert jobs[0].key(base.fingerprint, held.dataset.sha256) != jobs[0].key(base.fingerprint, plain.dataset.sha256)


@pytest.fixture
def swept(folder):
    """What was asked, and what it came to."""
    wanted = request_of(folder, seeds="0", settings=["finetune.guard=none"])
    return wanted, sweep(wanted, engine_of("stacked", 1)), Store(folder)


def test_the_best_on_val_becomes_an_adapter_of_its_run(swept):
    wanted, found, store = swept
    row = choose_row("best", found.rows, store)
    assert row.after["val"].errors == min(one.after["val"].errors for one in found.rows)
    kept = keep(wanted, row)
    assert kept.found == kept.in_sweep
    work = open_workspace(Request(run=Path(kept.run)))
    saved = work.run.require_adapter(kept.name).finetune
    assert (saved.digit, saved.settings.rank, saved.seed) == (row.digit, row.rank, row.seed)
    assert verify_workspace(work).passed
    assert keep(wanted, row) == kept  # it is there already
    weights = work.run.adapter(kept.name).file("adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises((AlteredError, RunError)):
        keep(wanted, row)


def test_a_row_is_named_by_its_key_or_how_it_begins(swept):
    _, found, store = swept
    assert choose_row(found.rows[3].key, (), store) == choose_row(found.rows[3].key[:10], (), store) == found.rows[3]
    for wrong in ("", "zzz"):
        with pytest.raises(UsageError, match=r"key of \d+ rows"):
            choose_row(wrong, found.rows, store)


def test_what_has_no_adapter_or_no_base_cannot_be_kept(swept):
    wanted, found, store = swept
    with pytest.raises(UsageError, match="met its guard"):
        choose_row("best", [row.model_copy(update={"scale": None}) for row in found.rows], store)
    store.rows = {"full": found.rows[0].model_copy(update={"key": "full", "method": "full"})}
    with pytest.raises(UsageError, match="no adapter to keep"):
        choose_row("full", (), store)
    with pytest.raises(RunError, match=r"not in .* any more"):
        keep(wanted, found.rows[0].model_copy(update={"base": "gone"}))
