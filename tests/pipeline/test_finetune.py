"""Repairs on the embedded digits: guard, twin, rounds, stacks, and what stands beside them."""

import json
import shutil
from dataclasses import replace

import pytest

from lora_mnist.errors import RunError, UsageError
from lora_mnist.evaluation.metrics import weakest_digit
from lora_mnist.evaluation.threshold import shifted_threshold
from lora_mnist.pipeline import finetune as tuning
from lora_mnist.pipeline import stages
from lora_mnist.pipeline.workspace import open_workspace
from lora_mnist.report.page import write_report
from lora_mnist.runs.rundir import Run
from lora_mnist.settings.request import Applied, Request
from lora_mnist.training import train as recipe

from ..conftest import SMOKE, snapshot


def smoke(path, **options):
    return Request(run=path, config="smoke", options={**SMOKE, **options})


def asking(**options):
    return {"finetune": options}


def test_every_repair_stands_beside_one_shifted_logit(finished_run):
    run = Run(finished_run)
    name = run.adapter_names()[0]
    analysis = run.document(run.adapter(name), "analysis.json")
    digit = run.document(run.adapter(name), "finetune.json")["digit"]
    labels = open_workspace(Request(run=finished_run)).labels
    expected = shifted_threshold(run.logits(), run.logits(run.adapter(name)), labels, digit)
    assert analysis["threshold"] == expected
    assert expected["chosen_on"] == "val"


def test_an_adapter_that_the_guard_refuses_is_not_kept(run_copy):
    before = snapshot(run_copy)
    options = asking(digit=3, guard="errors", focus=1.0, learning_rate=0.05, schedule="constant")
    result = tuning.finetune(Request(run=run_copy, options=options))
    assert result["kept"] is False
    assert result["guard"]["strength"] is None
    limit = result["guard"]["before"]["errors"]
    assert limit == sum(Run(run_copy).evaluation()["splits"]["val"]["wrong"])
    assert all(tried["errors"] > limit for tried in result["guard"]["tried"])
    assert snapshot(run_copy) == before


def test_what_the_guard_keeps_is_what_it_measured(run_copy):
    options = asking(digit=3, guard="digit", focus=0.9, learning_rate=0.05, schedule="constant", name="kept")
    result = tuning.finetune(Request(run=run_copy, options=options))
    assert result["kept"]
    chosen = next(one for one in result["guard"]["tried"] if one["strength"] == result["guard"]["strength"])
    val = result["comparison"]["val"]
    assert {key: chosen[key] for key in ("missed", "claimed", "errors")} == val["after"]
    assert val["after"]["missed"] <= val["before"]["missed"] == result["guard"]["before"]["missed"]
    assert result["evaluation"]["adapters"] == [{"name": "kept", "strength": 1.0}]  # it is in the weights
    assert stages.verify(Request(run=run_copy), ["kept"])["passed"]


def test_a_guard_needs_val(tmp_path):
    stages.pretrain(smoke(tmp_path, data={"dataset": "digits", "val_share": 0.0}))
    with pytest.raises(UsageError, match="--guard none"):
        tuning.finetune(Request(run=tmp_path, options=asking(digit=3, guard="errors")))


def test_the_twin_differs_in_the_share_of_the_digit_only(run_copy, monkeypatch):
    seen = []
    honest = recipe.focus_batches
    monkeypatch.setattr(recipe, "focus_batches", lambda *a: seen.append(a) or honest(*a))
    result = tuning.finetune(Request(run=run_copy, options=asking(digit=3)), twin=True)
    (labels, *one), (_, *other) = seen
    assert one[1] != other[1] == pytest.approx(float((labels == 3).float().mean()))
    assert (one[0], one[2:4]) == (other[0], other[2:4])
    twin = result["twin"]["splits"]["test"]
    pair, after = twin["all"], result["comparison"]["test"]["after"]
    assert after["errors"] - twin["errors"] == pair["only_twin_right"] - pair["only_adapter_right"]
    assert after["missed"] - twin["missed"] == twin["digit"]["only_twin_right"] - twin["digit"]["only_adapter_right"]
    alone = tuning.finetune(Request(run=run_copy, options=asking(digit=3, name="again")))
    assert alone["comparison"] == result["comparison"]  # training a twin changes nothing for the adapter


def test_a_repair_on_top_of_another(run_copy, adapter):
    before = snapshot(adapter)
    result = tuning.finetune(Request(run=run_copy, options=asking(digit=1)), on_top_of=[adapter.name])
    run = Run(run_copy)
    below = run.evaluation(adapter)["splits"]["test"]
    assert result["on_top_of"] == [adapter.name]
    assert result["comparison"]["test"]["before"]["errors"] == sum(below["wrong"])
    assert [one["name"] for one in result["evaluation"]["adapters"]] == [adapter.name, result["name"]]
    both = stages.evaluate(Request(run=run_copy), [Applied(adapter.name), Applied(result["name"])])
    assert both == result["evaluation"]
    assert snapshot(adapter) == before
    assert stages.verify(Request(run=run_copy))["passed"]
    assert "on top of" in write_report(run_copy).read_text()


def test_an_adapter_used_without_the_one_below_is_mentioned(run_copy, adapter, caplog):
    caplog.set_level("INFO", "lora_mnist")
    result = tuning.finetune(Request(run=run_copy, options=asking(digit=1)), on_top_of=[adapter.name])
    stages.evaluate(Request(run=run_copy), [Applied(result["name"])])
    assert f"trained on top of {adapter.name}, which is not on" in caplog.text


def test_rounds_go_from_weakest_to_weakest_and_resume(run_copy, adapter):
    results = tuning.repair(Request(run=run_copy), 3)
    assert [result["on_top_of"] for result in results] == [
        [],
        [adapter.name],
        [adapter.name, results[1]["name"]],
    ]
    run, labels = Run(run_copy), open_workspace(Request(run=run_copy)).labels["val"]
    for below, result in zip([None, *results], results, strict=False):
        logits = run.logits(run.adapter(below["name"]) if below else None)["val"]
        assert result["digit"] == weakest_digit(logits, labels)
    before = snapshot(run_copy)
    again = tuning.repair(Request(run=run_copy), 3)
    assert [result["name"] for result in again] == [result["name"] for result in results]
    assert snapshot(run_copy) == before


def test_rounds_end_with_the_first_that_is_not_kept(run_copy, adapter):
    options = asking(guard="errors", focus=1.0, learning_rate=0.05, schedule="constant")
    shutil.rmtree(adapter)
    results = tuning.repair(Request(run=run_copy, options=options), 5)
    assert [result["kept"] for result in results] == [False]


@pytest.mark.parametrize("options", [{"digit": 3}, {"name": "x"}])
def test_rounds_with_one_digit_or_one_name_are_refused(run_copy, options):
    with pytest.raises(UsageError, match="rounds"):
        tuning.repair(Request(run=run_copy, options=asking(**options)), 2)
    with pytest.raises(UsageError, match="rounds"):
        tuning.repair(Request(run=run_copy), 0)


def test_a_stack_is_named_in_the_order_it_was_trained_in(run_copy, adapter):
    tuning.finetune(Request(run=run_copy, options=asking(digit=1, name="beside")))
    upper = tuning.finetune(Request(run=run_copy, options=asking(digit=1)), on_top_of=[adapter.name])["name"]
    for stack in ([adapter.name, "beside"], [upper], ["nine"], [f"./{adapter.name}"]):
        with pytest.raises(RunError):
            tuning.finetune(Request(run=run_copy, options=asking(digit=2, name="new")), on_top_of=stack)
    result = tuning.finetune(Request(run=run_copy, options=asking(digit=2)), on_top_of=[adapter.name, upper])
    below = stages.evaluate(Request(run=run_copy), [Applied(adapter.name), Applied(upper)])["splits"]["test"]
    assert result["comparison"]["test"]["before"]["errors"] == sum(below["wrong"])


def test_what_others_are_on_top_of_is_not_replaced(run_copy, adapter):
    upper = tuning.finetune(Request(run=run_copy, options=asking(digit=1)), on_top_of=[adapter.name])["name"]
    before = snapshot(run_copy)
    with pytest.raises(RunError, match=f"{upper} was trained on top of it"):
        tuning.finetune(Request(run=run_copy, options=asking(name=adapter.name, digit=2), force=True))
    assert snapshot(run_copy) == before


def test_an_adapter_without_the_one_below_is_a_finding_of_verify_and_an_error_of_the_report(run_copy, adapter):
    upper = tuning.finetune(Request(run=run_copy, options=asking(digit=1)), on_top_of=[adapter.name])["name"]
    shutil.rmtree(adapter)
    findings = stages.verify(Request(run=run_copy))
    assert findings["failures"] == [f"{upper}: it was trained on top of {adapter.name}, which is not in the run"]
    with pytest.raises(RunError, match="which is not in the run"):
        write_report(run_copy)


def test_a_round_takes_a_name_that_is_free_in_the_run(run_copy, adapter):
    round_2 = tuning.repair(Request(run=run_copy), 2)[1]
    shutil.rmtree(run_copy / "adapters" / round_2["name"])
    taken = asking(digit=round_2["digit"], name=round_2["name"])
    tuning.finetune(Request(run=run_copy, options=taken))  # of the same digit, but on the base
    again = tuning.repair(Request(run=run_copy), 2)[1]
    assert again["name"] == f"{round_2['name']}-2"
    assert tuning.repair(Request(run=run_copy), 2)[1]["name"] == again["name"]


def test_a_run_of_another_schema_is_refused_and_can_be_replaced(run_copy):
    record = json.loads((run_copy / "base" / "run.json").read_text())
    files_of = run_copy / "base"
    (files_of / "run.json").write_text(json.dumps({**record, "schema_version": 1}))
    with pytest.raises(RunError, match="another version"):
        Run(run_copy).record()
    stages.pretrain(replace(smoke(run_copy), force=True))
    assert stages.verify(Request(run=run_copy))["passed"]


def test_impossible_rounds_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(UsageError, match="rounds"):
        tuning.require_rounds(smoke(tmp_path / "new", finetune={"digit": 3}), 2)
    with pytest.raises(UsageError, match="rounds"):
        tuning.require_rounds(Request(run=tmp_path / "new", config="classic"), 2)
    tuning.require_rounds(smoke(tmp_path / "new", finetune={"digit": 3}), 1)
    assert not (tmp_path / "new").exists()


def test_the_report_shows_the_twin_and_the_full_fine_tuning_beside_the_repair(run_copy):
    result = tuning.finetune(Request(run=run_copy, options=asking(digit=3)), twin=True)
    full = tuning.finetune_full(Request(run=run_copy, options=asking(digit=3)))
    page = " ".join(write_report(run_copy).read_text().split())
    pair = result["twin"]["splits"]["test"]["all"]
    assert (
        f"{pair['only_adapter_right']} are right with the adapter only, {pair['only_twin_right']} with the twin" in page
    )
    after = full["comparison"]["test"]["after"]
    row = "digit3-full: all weights trained</th>" + "".join(
        f"<td>{after[k]}</td>" for k in ("missed", "claimed", "errors")
    )
    assert row in page
    counts = result["threshold"]["splits"]["test"]
    cells = "".join(f"<td>{counts[key]}</td>" for key in ("missed", "claimed", "errors"))
    assert f"on the logit of 3, chosen on val</th>{cells}" in page
