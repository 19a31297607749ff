"""Repairs on the embedded digits: guard, proof, control, stacks, and what stands beside them."""

import pytest

from lora_mnist.errors import ProofError, RunError, UsageError
from lora_mnist.pipeline import Applied, FinetuneResult, Request, evaluate, finetune, open_workspace, pretrain
from lora_mnist.pipeline import verify as verify_run
from lora_mnist.report.page import write_report
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import AppliedAdapter
from lora_mnist.training import train as recipe

from ..conftest import smoke, snapshot, workspace


def verify(path, *adapters):
    return verify_run(Request(run=path), adapters)


def test_what_is_returned_is_what_was_stored_and_no_byte_of_the_base_changed(run_copy):
    before = snapshot(run_copy / "base")
    result = finetune(workspace(run_copy, digit=3))
    assert snapshot(run_copy / "base") == before
    saved = Run(run_copy).adapter(result.record.name)
    assert result == FinetuneResult(
        record=saved.finetune, provenance=saved.provenance, analysis=saved.analysis, evaluation=saved.evaluation
    )
    assert result == finetune(workspace(run_copy, digit=3), resume=True)


def test_without_val_the_digit_must_be_named_and_there_is_no_guard(tmp_path):
    pretrain(smoke(tmp_path, data={"dataset": "mnist-5k", "val_share": 0.0}))
    assert "val" not in Run(tmp_path).base.evaluation.splits
    with pytest.raises(UsageError, match="--digit"):
        finetune(workspace(tmp_path))
    with pytest.raises(UsageError, match="--guard none"):
        finetune(workspace(tmp_path, digit=3, guard="errors"))
    assert set(finetune(workspace(tmp_path, digit=8)).analysis.splits) == {"test"}


# What is counted ------------------------------------------------------------------------------------------------------


def test_the_stored_comparison_is_that_of_the_two_evaluations(finished_run):
    (adapter,) = Run(finished_run).adapters()
    before, after = Run(finished_run).base.evaluation.splits["test"], adapter.evaluation.splits["test"]
    counts, digit = adapter.analysis.splits["test"], adapter.finetune.digit
    assert counts.before.errors == sum(before.wrong)
    assert counts.after.errors == sum(after.wrong)
    assert counts.after.missed == after.wrong[digit]
    false_alarms = [row[digit] for true_digit, row in enumerate(after.confusion) if true_digit != digit]
    assert counts.after.false_alarms == sum(false_alarms)


# Guard and proof ------------------------------------------------------------------------------------------------------


def test_an_adapter_that_the_guard_refuses_is_reported_and_not_kept(run_copy):
    before = snapshot(run_copy)
    asked = {"digit": 3, "guard": "errors", "focus": 1.0, "learning_rate": 0.05, "schedule": "constant"}
    result = finetune(workspace(run_copy, **asked))
    assert snapshot(run_copy) == before
    guard = result.record.guard
    assert guard.scale is None
    assert guard.before.errors == Run(run_copy).base.evaluation.splits["val"].errors
    assert all(tried.errors > guard.before.errors for tried in guard.tried)
    assert (result.analysis, result.evaluation, result.file, result.record.proof) == (None, None, None, None)
    assert (result.record.name, result.record.digit, result.record.method) == ("digit3-r2", 3, "lora")
    assert {key: getattr(result.record.settings, key) for key in asked} == asked
    record, provenance = result.record.model_dump(mode="json"), result.provenance.model_dump(mode="json")
    assert result.model_dump(mode="json") == {"kept": False, **record, **provenance}


def test_what_the_guard_keeps_is_what_it_measured(run_copy):
    asked = {"digit": 3, "guard": "digit", "focus": 0.9, "learning_rate": 0.05, "schedule": "constant"}
    result = finetune(workspace(run_copy, **asked, name="kept"))
    assert result.kept
    guard, val = result.record.guard, result.analysis.splits["val"]
    chosen = next(one for one in guard.tried if one.scale == guard.scale)
    assert chosen.numbers == val.after.numbers
    assert val.after.missed <= val.before.missed == guard.before.missed
    assert result.evaluation.adapters == (AppliedAdapter(name="kept", strength=1.0),)  # it is in the weights
    assert verify(run_copy, "kept").passed


@pytest.mark.parametrize("leak", ["weight", "bias"])
def test_an_adapter_whose_proof_fails_is_not_kept(run_copy, monkeypatch, leak):
    honest = recipe.train

    def leaking(model, *arguments, **more):
        getattr(model.linear2, leak).requires_grad_(True)
        return honest(model, *arguments, **more)

    monkeypatch.setattr(recipe, "train", leaking)
    before = snapshot(run_copy)
    with pytest.raises(ProofError, match=rf"linear2\.{leak}"):
        finetune(workspace(run_copy, digit=3))
    assert snapshot(run_copy) == before


def test_a_network_whose_logits_are_no_numbers_is_not_kept(run_copy):
    before = snapshot(run_copy)
    with pytest.raises(UsageError, match="learning-rate"):
        finetune(workspace(run_copy, digit=3, steps=1, learning_rate=1e30))
    assert snapshot(run_copy) == before


def test_later_stages_inherit_the_runs_settings(run_copy):
    inherited = Run(run_copy).record.settings.finetune
    assert inherited.steps == 20  # smoke's own for the digits
    settings = finetune(workspace(run_copy, digit=2, rank=4)).record.settings
    assert (settings.steps, settings.alpha, settings.rank) == (20, inherited.alpha, 4)
    work = open_workspace(Request(run=run_copy, config="smoke", options={"finetune": {"digit": 2}}))  # says "auto"
    assert finetune(work).evaluation.dataset.name == "mnist-5k"


@pytest.mark.parametrize(
    "options", [{"data": {"val_share": 0.1}}, {"data": {"dataset": "mnist"}}, {"model": {"hidden": [5]}}]
)
def test_an_option_that_contradicts_the_run_is_an_error(run_copy, options):
    key = next(f"{table}.{name}" for table, values in options.items() for name in values)
    with pytest.raises(UsageError, match=key):
        open_workspace(Request(run=run_copy, options={"finetune": {"digit": 2}, **options}))


# The control, and what is trained on top ------------------------------------------------------------------------------


def test_a_control_is_compared_and_changes_nothing_for_the_adapter(run_copy):
    result = finetune(workspace(run_copy, digit=3), control=True)
    control, after = result.analysis.control.splits["test"], result.analysis.splits["test"].after
    assert after.errors - control.errors == control.all.only_control_right - control.all.only_adapter_right
    assert after.missed - control.missed == control.digit.only_control_right - control.digit.only_adapter_right
    alone = finetune(workspace(run_copy, digit=3, name="alone"))
    assert alone.analysis.splits == result.analysis.splits


def test_a_repair_on_top_of_another(run_copy, adapter):
    before = snapshot(adapter)
    result = finetune(workspace(run_copy, digit=1), on_top_of=[adapter.name])
    below = Run(run_copy).adapter(adapter.name).evaluation.splits["test"]
    assert result.record.on_top_of == (adapter.name,)
    assert result.analysis.splits["test"].before.errors == sum(below.wrong)
    assert [one.name for one in result.evaluation.adapters] == [adapter.name, result.record.name]
    both = evaluate(workspace(run_copy), [Applied(adapter.name), Applied(result.record.name)])
    assert both == result.evaluation
    assert snapshot(adapter) == before
    assert verify(run_copy).passed
    assert "on top of" in write_report(Run(run_copy)).read_text()


def test_a_stack_is_named_in_the_order_it_was_trained_in(run_copy, adapter):
    finetune(workspace(run_copy, digit=1, name="beside"))
    upper = finetune(workspace(run_copy, digit=1), on_top_of=[adapter.name]).record.name
    for stack in ([adapter.name, "beside"], [upper], ["nine"], [f"./{adapter.name}"]):
        with pytest.raises(RunError):
            finetune(workspace(run_copy, digit=2, name="new"), on_top_of=stack)
    result = finetune(workspace(run_copy, digit=2), on_top_of=[adapter.name, upper])
    below = evaluate(workspace(run_copy), [Applied(adapter.name), Applied(upper)]).splits["test"]
    assert result.analysis.splits["test"].before.errors == sum(below.wrong)


def test_what_others_are_on_top_of_is_not_replaced(run_copy, adapter):
    upper = finetune(workspace(run_copy, digit=1), on_top_of=[adapter.name]).record.name
    before = snapshot(run_copy)
    options = {"finetune": {"name": adapter.name, "digit": 2}}
    with pytest.raises(RunError, match=f"{upper} was trained on top of it"):
        finetune(open_workspace(Request(run=run_copy, options=options, force=True)))
    assert snapshot(run_copy) == before
