"""Jobs alone and in stacks, against each other and against what `finetune` and `run` make of the same base."""

from pathlib import Path

import pytest
import torch

from lora_mnist.lora import fingerprint_model
from lora_mnist.pipeline import Request, finetune, open_workspace
from lora_mnist.pipeline.run_all import repair
from lora_mnist.sweep.engines import engine_of
from lora_mnist.sweep.jobs import COPIES, STACK_BYTES, STACK_IMAGES, adapter_size, restore, run_jobs, stacks_of
from lora_mnist.sweep.rows import Failure, Row
from lora_mnist.sweep.sweep import sweep
from lora_mnist.training.train import shape_of
from tests.sweep.conftest import SMALL, request_of, same


def rows_of(out, *settings, **more):
    """By method, for the weakest digit at rank 2."""
    done = sweep(request_of(out, "weakest", "2", "0", settings, **more), engine_of("stacked", 1))
    assert not done.failures
    return {row.method: row for row in done.rows}


def workspace(out, **tuning):
    """The run of the one base, as a command for such an adapter opens it."""
    (run,) = (out / "bases").glob("seed0-*")
    return open_workspace(Request(run=run, options=SMALL | {"finetune": SMALL["finetune"] | {"rank": 2} | tuning}))


@pytest.mark.parametrize("guard", ["every-digit", "errors", "digit", "none"])
@pytest.mark.parametrize("targets", [["linear1", "linear2", "linear3"], ["linear2"]])
def test_a_row_says_what_finetune_says(folder, guard, targets):
    row = rows_of(folder, f"finetune.guard={guard}", f"finetune.targets={targets}".replace("'", '"'))["lora"]
    found = finetune(workspace(folder, guard=guard, targets=targets))
    assert row.scale == found.record.guard.scale
    assert row.parameters == found.record.parameters.added
    if not found.kept:
        assert (row.after, row.verdict) == (row.before, None)
        return
    assert row.verdict == found.verdict.kind
    assert row.threshold == found.analysis.threshold.splits
    for split, comparison in found.analysis.splits.items():
        assert row.before[split].numbers == comparison.before.numbers
        assert row.after[split].numbers == comparison.after.numbers
        assert row.after[split].wrong == found.evaluation.splits[split].wrong


def test_a_control_is_that_of_finetune(tmp_path):
    rows = rows_of(tmp_path, "finetune.guard=none", control=True)
    control, found = finetune(workspace(tmp_path, guard="none"), control=True).analysis.control, rows["control"]
    assert found.scale == control.scale
    for split, counts in found.after.items():
        assert counts.numbers == control.splits[split].numbers
    at_as_many = found.shifted[min(rows["lora"].after["val"].missed, len(found.shifted) - 1)]
    assert at_as_many == control.threshold.splits["test"]
    assert found.shifted[-1].numbers == found.after["test"].numbers  # no number is needed

    # the hard control is the same fine-tuning with the natural share
    work = workspace(tmp_path)
    digit = work.target_digit()
    share = float((work.dataset.train.labels == digit).float().mean())
    hard = finetune(workspace(tmp_path, digit=digit, focus=share, name="hard", guard="none"))
    assert rows["hard control"].after["test"].numbers == hard.analysis.splits["test"].after.numbers


def test_rounds_are_those_of_run(tmp_path):
    found = rows_of(tmp_path, rounds=3)["rounds"]
    tunings = repair(workspace(tmp_path), 3)
    assert [one.digit for one in found.rounds] == [tuning.record.digit for tuning in tunings]
    assert [one.scale for one in found.rounds] == [tuning.record.guard.scale for tuning in tunings]
    for one, tuning in zip(found.rounds, tunings, strict=True):
        if tuning.kept:
            assert one.after == tuning.analysis.splits["test"].after


def test_a_stack_comes_to_the_same_rows_as_its_jobs_alone(small):
    _, context, jobs = small
    for stack in stacks_of(context, jobs):
        together = run_jobs(context, stack)
        assert all(isinstance(row, Row) and row.engine == "stacked" for row in together)
        for job, row in zip(stack, together, strict=True):
            assert same(row, run_jobs(context, [job])[0])


@pytest.mark.parametrize("wild", [{"learning_rate": 1e30}, {"focus": 0.01}])
def test_one_that_fails_says_why_and_stops_no_other(small, wild):
    _, context, jobs = small
    good, other = stacks_of(context, jobs)[0]
    outcomes = run_jobs(context, [good, other.with_finetune(**wild)])
    assert isinstance(outcomes[1], Failure)
    assert "--learning-rate" in outcomes[1].cause or "`focus`" in outcomes[1].cause
    assert same(outcomes[0], run_jobs(context, [good])[0])


def test_the_work_that_is_done_grows_to_all_of_it(small):
    _, context, jobs = small
    shown = []
    run_jobs(context, stacks_of(context, jobs)[0], shown.append)
    assert shown == sorted(shown)
    assert shown[-1] == pytest.approx(2)
    assert len(shown) > 10


def test_stacks_hold_every_job_once_with_one_base_and_shape(small):
    _, context, jobs = small
    odd = [jobs[0].with_finetune(dropout=0.1), jobs[0].model_copy(update={"method": "full"})]
    stacks = stacks_of(context, [*jobs, *odd])
    assert sorted(id(job) for stack in stacks for job in stack) == sorted(map(id, [*jobs, *odd]))
    assert [[one] for one in odd] == stacks[-2:]
    for stack in stacks:
        assert len({(job.base, shape_of(job.settings.finetune)) for job in stack}) == 1


def test_stacks_keep_to_the_memory(small, monkeypatch):
    _, context, jobs = small
    each, batch = 4 * COPIES * adapter_size(context, jobs[0]), jobs[0].settings.finetune.batch_size
    assert run_jobs(context, [jobs[0]])[0].parameters == adapter_size(context, jobs[0])

    def sizes(count, most_bytes=STACK_BYTES, most_images=STACK_IMAGES, processes=1):
        monkeypatch.setattr("lora_mnist.sweep.jobs.STACK_BYTES", most_bytes)
        monkeypatch.setattr("lora_mnist.sweep.jobs.STACK_IMAGES", most_images)
        return [len(stack) for stack in stacks_of(context, [jobs[0]] * count, processes)]

    assert sizes(10) == [10]
    assert sizes(10, most_bytes=4 * each) == sizes(10, most_bytes=8 * each, processes=2) == [4, 4, 2]
    assert sizes(10, most_bytes=1) == [1] * 10
    assert sizes(10, most_images=5 * batch) == [5, 5]
    assert sizes(150, most_images=60 * batch) == [50, 50, 50]
    assert sizes(150, most_images=60 * batch, processes=2) == [38, 38, 38, 36]  # as many for each process


def test_a_context_is_mapped_from_a_file_and_not_copied(small, tmp_path):
    _, context, _ = small
    flat, file = context.flatten(), tmp_path / "context.pt"
    torch.save(flat, file)
    mapped = restore(torch.load(file, mmap=True, weights_only=True))
    assert str(file) in Path("/proc/self/maps").read_text()
    for key, base in context.bases.items():
        assert fingerprint_model(mapped.bases[key].network) == fingerprint_model(base.network)
        assert torch.equal(mapped.bases[key].uncertainty, base.uncertainty)
    assert restore(flat).dataset.train.images.data_ptr() == context.dataset.train.images.data_ptr()
