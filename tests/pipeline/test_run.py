"""The main job as one function: its stages in order, its rounds, and how it goes on where it was left."""

import shutil

import pytest

from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import weakest_digit
from lora_mnist.pipeline import (
    FinetuneResult,
    PretrainResult,
    Request,
    VerifyResult,
    finetune,
    repair,
    run,
)
from lora_mnist.runs.run import Run

from ..conftest import resume, smoke, snapshot, workspace


def test_every_stage_is_shown_as_soon_as_it_is_known_and_returned(tmp_path):
    shown, there = [], []

    def show(done):
        shown.append(done)
        there.append((Run(tmp_path).base.is_finished, len(Run(tmp_path).adapters())))

    work, whole = run(smoke(tmp_path), 2, show=show)
    pretraining, *rounds, verification = [done.result for done in shown]
    assert isinstance(pretraining, PretrainResult)
    assert all(isinstance(one, FinetuneResult) for one in rounds)
    assert isinstance(verification, VerifyResult)
    assert (whole.pretraining, whole.rounds, whole.verification) == (pretraining, tuple(rounds), verification)
    assert there == [(True, 0), (True, 1), (True, 2), (True, 2)]
    assert not any(done.skipped for done in shown)
    assert all(done.seconds > 0 for done in shown)
    assert verification.passed
    assert [saved.name for saved in work.run.adapters()] == [one.record.name for one in rounds]
    assert [entry.name for entry in verification.adapters] == [one.record.name for one in rounds]
    shown.clear()
    before = snapshot(tmp_path)
    assert run(smoke(tmp_path), 2, show=show)[1] == whole  # nothing is done again
    assert [done.skipped for done in shown] == [True, True, True, False]
    assert snapshot(tmp_path) == before


def test_overall_is_from_the_base_to_all_rounds(tmp_path):
    work, whole = run(smoke(tmp_path), 2)
    base, last = work.run.base.logits(), work.run.adapter(whole.rounds[-1].record.name).logits()
    for split, truth in work.labels.items():
        right, after = base[split].argmax(1) == truth, last[split].argmax(1) == truth
        found = whole.overall[split]
        assert (found.before.errors, found.after.errors) == (int((~right).sum()), int((~after).sum()))
        assert sum(found.broken) == int((right & ~after).sum())


def test_a_second_run_with_another_rank_adds_an_adapter_and_says_so(run_copy, adapter, caplog):
    caplog.set_level("INFO")
    resume = smoke(run_copy, finetune={"rank": 1})
    (tuning,) = run(resume)[1].rounds
    assert Run(run_copy).adapter_names() == [adapter.name, tuning.record.name]
    note = f"{tuning.record.name} is added to this run, beside {adapter.name}"
    assert note in caplog.text
    caplog.clear()
    run(resume)
    assert note not in caplog.text


def test_a_control_is_trained_when_asked_for_and_missed_when_it_is_not_there(tmp_path):
    (tuning,) = run(smoke(tmp_path), control=True)[1].rounds
    assert tuning.analysis.control is not None
    assert run(smoke(tmp_path), control=True)[1].rounds == (tuning,)
    other = smoke(tmp_path, finetune={"rank": 1})
    run(other)
    with pytest.raises(UsageError, match="without a control"):
        run(other, control=True)


def test_rounds_go_from_weakest_to_weakest_and_resume(run_copy, adapter):
    results = repair(workspace(run_copy), 3)
    assert [result.record.on_top_of for result in results] == [
        (),
        (adapter.name,),
        (adapter.name, results[1].record.name),
    ]
    labels = workspace(run_copy).labels["val"]
    for below, result in zip([None, *results], results, strict=False):
        saved = Run(run_copy).adapter(below.record.name) if below else Run(run_copy).base
        assert result.record.digit == weakest_digit(saved.logits()["val"], labels)
    before = snapshot(run_copy)
    again = repair(workspace(run_copy), 3)
    assert [result.record.name for result in again] == [result.record.name for result in results]
    assert snapshot(run_copy) == before


def test_rounds_end_with_the_first_that_is_not_kept(run_copy, adapter):
    shutil.rmtree(adapter)
    assert [result.kept for result in repair(workspace(run_copy, **RUINOUS), 5)] == [False]


RUINOUS = {"guard": "errors", "focus": 1.0, "learning_rate": 0.05, "schedule": "constant"}


@pytest.mark.parametrize("options", [{"digit": 3}, {"name": "x"}])
def test_rounds_with_one_digit_or_one_name_are_refused(run_copy, options):
    with pytest.raises(UsageError, match="rounds"):
        run(Request(run=run_copy, options={"finetune": options}), 2)
    with pytest.raises(UsageError, match="rounds"):
        run(Request(run=run_copy), 0)


def test_impossible_rounds_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(UsageError, match="rounds"):
        run(smoke(tmp_path / "new", finetune={"digit": 3}), 2)
    with pytest.raises(UsageError, match="rounds"):
        run(Request(run=tmp_path / "new", config="classic"), 2)
    assert not (tmp_path / "new").exists()
    assert len(run(smoke(tmp_path / "new", finetune={"digit": 3}), 1)[1].rounds) == 1


def test_a_round_takes_a_name_that_is_free_in_the_run(run_copy, adapter):
    round_2 = repair(workspace(run_copy), 2)[1].record
    shutil.rmtree(run_copy / "adapters" / round_2.name)
    finetune(workspace(run_copy, digit=round_2.digit, name=round_2.name))  # of the same digit, but on the base
    again = repair(workspace(run_copy), 2)[1].record
    assert again.name == f"{round_2.name}-2"
    assert repair(workspace(run_copy), 2)[1].record.name == again.name


def test_run_resumes_and_refuses_what_contradicts_the_finished_part(run_copy):
    before = snapshot(run_copy)
    again = resume(smoke(run_copy, finetune={"digit": "weakest"}))
    assert again.record.name == Run(run_copy).adapter_names()[0]
    assert snapshot(run_copy) == before
    with pytest.raises(UsageError, match=r"pretrain\.epochs"):
        resume(smoke(run_copy, pretrain={"epochs": 9}))
    with pytest.raises(UsageError, match=r"finetune\.steps"):
        resume(smoke(run_copy, finetune={"steps": 9}))
    with pytest.raises(UsageError, match="seed"):
        resume(smoke(run_copy, seed=9))
    assert snapshot(run_copy) == before


def test_an_adapters_name_is_not_inherited(tmp_path):
    resume(smoke(tmp_path, finetune={"name": "mine", "digit": 1}))
    finetune(workspace(tmp_path, digit=2))
    assert Run(tmp_path).adapter_names() == ["mine", "digit2-r2"]
    with pytest.raises(UsageError, match="repairs 1, not 3"):
        resume(smoke(tmp_path, finetune={"name": "mine", "digit": 3}))
