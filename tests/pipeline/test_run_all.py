"""The main job as one function: its stages in order, its rounds, and how it goes on where it was left."""

import shutil

import pytest

from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import weakest_digit
from lora_mnist.pipeline import FinetuneResult, PretrainResult, Request, VerifyResult, finetune, run
from lora_mnist.pipeline.run_all import repair
from lora_mnist.runs.run import Run

from ..conftest import resume, smoke, snapshot, workspace


def test_every_stage_is_shown_as_soon_as_it_is_known_and_returned(tmp_path):
    shown, there = [], []

    def show(done):
        shown.append(done)
        there.append((Run(tmp_path).base.is_finished, len(Run(tmp_path).adapters())))

    work, whole = run(smoke(tmp_path), 2, show=show)
    assert (whole.pretraining, *whole.rounds, whole.verification) == tuple(done.result for done in shown)
    assert [type(done.result) for done in shown] == [PretrainResult, FinetuneResult, FinetuneResult, VerifyResult]
    assert there == [(True, 0), (True, 1), (True, 2), (True, 2)]
    assert all(done.seconds > 0 and not done.skipped for done in shown)
    assert whole.verification.passed
    names = [one.record.name for one in whole.rounds]
    assert [saved.name for saved in work.run.adapters()] == names
    assert [entry.name for entry in whole.verification.adapters] == names
    shown.clear()
    before = snapshot(tmp_path)
    assert run(smoke(tmp_path), 2, show=show)[1] == whole  # nothing is done twice
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
    request = smoke(run_copy, finetune={"rank": 1})
    (tuning,) = run(request)[1].rounds
    assert Run(run_copy).adapter_names() == [adapter.name, tuning.record.name]
    note = f"{tuning.record.name} is added to this run, beside {adapter.name}"
    assert note in caplog.text
    caplog.clear()
    run(request)
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
    resumed = repair(workspace(run_copy), 3)
    assert [result.record.name for result in resumed] == [result.record.name for result in results]
    assert snapshot(run_copy) == before


def test_rounds_end_with_the_first_that_is_not_kept(run_copy, adapter):
    shutil.rmtree(adapter)
    assert [result.kept for result in repair(workspace(run_copy, **RUINOUS), 5)] == [False]


RUINOUS = {"guard": "errors", "focus": 1.0, "learning_rate": 0.05, "schedule": "constant"}


@pytest.mark.parametrize(("rounds", "asked"), [(0, {}), (2, {"digit": 3}), (2, {"name": "x"})])
def test_impossible_rounds_are_refused_before_anything_is_trained(run_copy, tmp_path, rounds, asked):
    new = tmp_path / "new"
    requests = [Request(run=run_copy, options={"finetune": asked}), smoke(new, finetune=asked)]
    for request in [*requests, Request(run=new, config="classic")][: 3 if rounds == 2 else 2]:
        with pytest.raises(UsageError, match="rounds"):
            run(request, rounds)
    assert not new.exists()


def test_run_resumes_and_refuses_what_contradicts_the_finished_part(run_copy):
    before = snapshot(run_copy)
    resumed = resume(smoke(run_copy, finetune={"digit": "weakest"}))
    assert resumed.record.name == Run(run_copy).adapter_names()[0]
    assert snapshot(run_copy) == before
    for changed in ({"pretrain": {"epochs": 9}}, {"finetune": {"steps": 9}}, {"seed": 9}):
        with pytest.raises(UsageError, match=r"pretrain\.epochs|finetune\.steps|seed"):
            resume(smoke(run_copy, **changed))
    assert snapshot(run_copy) == before


def test_an_adapters_name_is_not_inherited(tmp_path):
    resume(smoke(tmp_path, finetune={"name": "mine", "digit": 1}))
    finetune(workspace(tmp_path, digit=2))
    assert Run(tmp_path).adapter_names() == ["mine", "digit2-r2"]
    with pytest.raises(UsageError, match="repairs 1, not 3"):
        resume(smoke(tmp_path, finetune={"name": "mine", "digit": 3}))
