"""What is trained beside adapters, against what `finetune` and `run` make of the same base."""

from lora_mnist.pipeline import Request, finetune, open_workspace, repair
from lora_mnist.sweep.grid import Beside
from lora_mnist.sweep.sweeping import engine_of, sweep
from tests.sweep.grids import SMALL, asked


def rows_of(out, **more):
    done = sweep(asked(out, "weakest", "2", "0", **more), engine_of("stacked", 1))
    assert not done.failures
    return {row.method: row for row in done.rows}


def opened(out, **tuning):
    (run,) = (out / "bases").iterdir()
    return open_workspace(Request(run=run, options=SMALL | {"finetune": SMALL["finetune"] | {"rank": 2} | tuning}))


def test_a_control_is_that_of_finetune(tmp_path):
    rows = rows_of(tmp_path, beside=Beside(control=True))
    tuning = finetune(opened(tmp_path), control=True)
    control, found = tuning.analysis.control, rows["control"]
    assert found.strength == control.scale
    for split, counts in found.after.items():
        assert counts.numbers == control.splits[split].numbers
    at_as_many = found.shifted[min(rows["lora"].after["val"].missed, len(found.shifted) - 1)]
    assert at_as_many == control.threshold.splits["test"]
    assert found.shifted[-1].numbers == found.after["test"].numbers  # no number is needed


def test_a_hard_control_is_the_same_fine_tuning_with_the_natural_share(tmp_path):
    found = rows_of(tmp_path, beside=Beside(control=True))["hard control"]
    work = opened(tmp_path)
    digit = work.target_digit()
    share = float((work.dataset.train.labels == digit).float().mean())
    theirs = finetune(opened(tmp_path, digit=digit, focus=share, name="hard"))
    assert found.after["test"].numbers == theirs.analysis.splits["test"].after.numbers


def test_rounds_are_those_of_run(tmp_path):
    found = rows_of(tmp_path, beside=Beside(rounds=3))["rounds"]
    tunings = repair(opened(tmp_path), 3)
    assert [one.digit for one in found.rounds] == [tuning.record.digit for tuning in tunings]
    assert [one.strength for one in found.rounds] == [tuning.record.guard.scale for tuning in tunings]
    for one, tuning in zip(found.rounds, tunings, strict=True):
        if tuning.kept:
            assert one.after == tuning.analysis.splits["test"].after
