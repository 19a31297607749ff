"""Repairs on the embedded digits: guard, proof, control, stacks, and what stands beside them."""

import json

import pytest

from lora_mnist.errors import ProofError, RunError, UsageError
from lora_mnist.evaluation.baselines import shifted_threshold
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.pipeline import (
    Applied,
    FinetuneResult,
    Request,
    evaluate,
    finetune,
    finetune_full,
    open_workspace,
    pretrain,
)
from lora_mnist.pipeline import verify as verify_run
from lora_mnist.report.page import write_report
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import AppliedAdapter
from lora_mnist.training import train as recipe

from ..conftest import smoke, snapshot, workspace


def verify(path, *adapters):
    return verify_run(Request(run=path), adapters)


def without_val(path):
    pretrain(smoke(path, data={"dataset": "digits", "val_share": 0.0}))
    return path


def test_finetuning_changes_no_byte_of_the_base(run_copy):
    before = snapshot(run_copy / "base")
    finetune(workspace(run_copy, digit=3, rank=1))
    assert snapshot(run_copy / "base") == before
    assert "digit3-r1" in Run(run_copy).adapter_names()


def test_what_is_returned_is_what_was_stored(run_copy):
    result = finetune(workspace(run_copy, digit=3))
    saved = Run(run_copy).adapter(result.record.name)
    assert result == FinetuneResult(
        record=saved.finetune, provenance=saved.provenance, analysis=saved.analysis, evaluation=saved.evaluation
    )
    assert result == finetune(workspace(run_copy, digit=3), resume=True)


def test_as_json_it_is_one_flat_table(run_copy, adapter):
    result = finetune(workspace(run_copy), resume=True)
    stored = {
        name: json.loads((adapter / f"{name}.json").read_text())
        for name in ("finetune", "provenance", "analysis", "evaluation")
    }
    found = {key: value for key, value in stored["analysis"].items() if key not in ("schema_version", "splits")}
    verdict = verdict_of(result.analysis, result.record.digit).model_dump(mode="json")
    rest = {"comparison": stored["analysis"]["splits"], **found, "verdict": verdict}
    rest["evaluation"] = stored["evaluation"]
    flat = result.model_dump(mode="json")
    record = stored["finetune"] | stored["provenance"]
    assert flat == {"kept": True, **record, **rest}
    assert list(flat) == ["kept", *record, *rest]


# The digit ------------------------------------------------------------------------------------------------------------


def test_the_weakest_digit_has_the_highest_error_rate_on_val(finished_run):
    (adapter,) = Run(finished_run).adapters()
    val = Run(finished_run).base.evaluation.splits["val"]
    rates = [wrong / images for wrong, images in zip(val.wrong, val.images, strict=True)]
    assert rates[adapter.finetune.digit] == max(rates)
    assert adapter.finetune.weakest_on_val


def test_without_val_the_digit_must_be_named(tmp_path):
    without_val(tmp_path)
    assert "val" not in Run(tmp_path).base.evaluation.splits
    with pytest.raises(UsageError, match="--digit"):
        finetune(workspace(tmp_path))
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


def test_every_repair_stands_beside_one_shifted_logit(finished_run):
    (adapter,) = Run(finished_run).adapters()
    base, labels = Run(finished_run).base, workspace(finished_run).labels
    expected = shifted_threshold(base.logits(), adapter.logits(), labels, adapter.finetune.digit)
    assert adapter.analysis.threshold == expected
    assert expected.chosen_on == "val"


# Guard and proof ------------------------------------------------------------------------------------------------------


def test_an_adapter_that_the_guard_refuses_is_not_kept(run_copy):
    before = snapshot(run_copy)
    asked = {"digit": 3, "guard": "errors", "focus": 1.0, "learning_rate": 0.05, "schedule": "constant"}
    result = finetune(workspace(run_copy, **asked))
    assert result.kept is False
    guard = result.record.guard
    assert guard.scale is None
    assert guard.before.errors == Run(run_copy).base.evaluation.splits["val"].errors
    assert all(tried.errors > guard.before.errors for tried in guard.tried)
    assert snapshot(run_copy) == before


def test_what_is_not_kept_is_told_like_any_other(run_copy, adapter):
    asked = {"digit": 3, "guard": "errors", "focus": 1.0, "learning_rate": 0.05, "schedule": "constant"}
    result = finetune(workspace(run_copy, **asked))
    assert isinstance(result, FinetuneResult)
    assert (result.analysis, result.evaluation, result.file, result.record.proof) == (None, None, None, None)
    assert (result.record.name, result.record.digit, result.record.method) == ("digit3-r2", 3, "lora")
    assert {key: getattr(result.record.settings, key) for key in asked} == asked
    assert Run(run_copy).adapter_names() == [adapter.name]
    told = result.model_dump(mode="json")
    assert told == {"kept": False, **result.record.model_dump(mode="json"), **result.provenance.model_dump(mode="json")}
    assert told["guard"]["scale"] is None


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


def test_a_guard_needs_val(tmp_path):
    without_val(tmp_path)
    with pytest.raises(UsageError, match="--guard none"):
        finetune(workspace(tmp_path, digit=3, guard="errors"))


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


def test_a_forced_finetuning_that_dies_leaves_the_old_state(run_copy, monkeypatch):
    before = snapshot(run_copy)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "train", interrupted)
    work = open_workspace(Request(run=run_copy, force=True))
    with pytest.raises(KeyboardInterrupt):
        finetune(work)
    assert snapshot(run_copy) == before


# Settings -------------------------------------------------------------------------------------------------------------


def test_later_stages_inherit_the_runs_settings(run_copy):
    inherited = Run(run_copy).record.settings.finetune
    assert inherited.steps == 20  # smoke's own for the digits
    settings = finetune(workspace(run_copy, digit=2, rank=4)).record.settings
    assert settings.steps == 20
    assert settings.alpha == inherited.alpha
    assert settings.rank == 4


def test_a_config_that_says_auto_keeps_the_runs_data_set(run_copy):
    work = open_workspace(Request(run=run_copy, config="smoke", options={"finetune": {"digit": 2}}))
    assert finetune(work).evaluation.dataset.name == "digits"


@pytest.mark.parametrize(
    "options", [{"data": {"val_share": 0.1}}, {"data": {"dataset": "mnist"}}, {"model": {"hidden": [5]}}]
)
def test_an_option_that_contradicts_the_run_is_an_error(run_copy, options):
    key = next(f"{table}.{name}" for table, values in options.items() for name in values)
    with pytest.raises(UsageError, match=key):
        open_workspace(Request(run=run_copy, options={"finetune": {"digit": 2}, **options}))


# The control, and what is trained on top ------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{"hard_examples": 0.2}, {"logit_adjustment": 0.5}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("train", [finetune, finetune_full])
def test_what_is_minimised_can_be_chosen(run_copy, changed, train):
    plain = train(workspace(run_copy, digit=3, guard="none", name="plain"))
    other = train(workspace(run_copy, digit=3, guard="none", name="other", **changed))
    assert other.record.settings.model_dump().items() >= changed.items()
    weights = [hashes_of(run_copy, one) for one in (plain, other)]
    assert weights[0] != weights[1]


def hashes_of(path, tuning):
    run = Run(path)
    saved = run.checkpoint if tuning.record.method == "full" else run.adapter
    saved = saved(tuning.record.name)
    return saved.hashes[saved.weights]


def test_the_control_sees_every_image_alike_and_differs_in_nothing_else(run_copy, monkeypatch):
    seen = []
    honest = recipe.focus_batches
    monkeypatch.setattr(recipe, "focus_batches", lambda *a: seen.append(a) or honest(*a))
    result = finetune(workspace(run_copy, digit=3), control=True)
    (labels, *one), (_, *other) = seen
    (digit, (focus, batch), steps, _, weights), (*same, _, unweighted) = one, other
    assert focus != same[1][0] == pytest.approx(float((labels == 3).float().mean()))
    assert weights is not None
    assert unweighted is None
    assert (digit, batch, steps) == (same[0], same[1][1], same[2])
    control, after = result.analysis.control.splits["test"], result.analysis.splits["test"].after
    assert after.errors - control.errors == control.all.only_control_right - control.all.only_adapter_right
    assert after.missed - control.missed == control.digit.only_control_right - control.digit.only_adapter_right
    alone = finetune(workspace(run_copy, digit=3, name="again"))
    assert alone.analysis.splits == result.analysis.splits  # training a control changes nothing for the adapter


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


def test_the_report_shows_the_control_and_the_full_fine_tuning_beside_the_repair(run_copy):
    analysis = finetune(workspace(run_copy, digit=3), control=True).analysis
    full = finetune_full(workspace(run_copy, digit=3)).analysis
    page = " ".join(write_report(Run(run_copy)).read_text().split())
    pair = analysis.control.splits["test"].all
    assert (
        f"{pair.only_adapter_right} are right with the adapter only, {pair.only_control_right} with the control" in page
    )

    def cells(counts):
        return "".join(f"<td>{count}</td>" for count in counts.numbers)

    assert f"digit3-full: all weights trained</th>{cells(full.splits['test'].after)}" in page
    assert f"on the logit of 3, chosen on val</th>{cells(analysis.threshold.splits['test'])}" in page


def test_a_digit_without_a_miss_on_val_is_said_before_it_is_trained(run_copy, caplog, monkeypatch):
    caplog.set_level("INFO")
    work = workspace(run_copy)
    truth = work.dataset.val.labels
    right = work.run.base.logits()["val"].argmax(1) == truth
    flawless = [digit for digit in range(10) if right[truth == digit].all()]
    assert flawless
    monkeypatch.setattr(recipe, "train", None)  # calling it fails
    for digit in (flawless[0], work.target_digit()):
        caplog.clear()
        with pytest.raises(TypeError):
            finetune(workspace(run_copy, digit=digit, name="x"))
        assert ("are right already" in caplog.text) == (digit == flawless[0])
