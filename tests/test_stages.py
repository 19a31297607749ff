"""The stages on the embedded digits; the claims about real MNIST are in test_claims.py."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from lora_mnist import recipe, stages
from lora_mnist.errors import ProofError, RunError, UsageError
from lora_mnist.evaluate import weakest_digit
from lora_mnist.report import write_report
from lora_mnist.request import Applied, Request
from lora_mnist.rundir import Run
from lora_mnist.threshold import shifted_threshold
from lora_mnist.workspace import open_workspace

from .conftest import SMOKE, flip_bit, resume, snapshot


def smoke(path, **options):
    return Request(run=path, config="smoke", options={**SMOKE, **options})


def test_the_same_settings_give_the_same_bytes(finished_run, tmp_path):
    stages.pretrain(smoke(tmp_path / "again"))
    stages.finetune(Request(run=tmp_path / "again"))
    weights = ["base/model.safetensors", f"adapters/{Run(finished_run).adapter_names()[0]}/adapter_model.safetensors"]
    for file in weights:
        assert (tmp_path / "again" / file).read_bytes() == (finished_run / file).read_bytes()


def test_another_seed_gives_other_bytes_on_the_same_split(finished_run, tmp_path):
    stages.pretrain(smoke(tmp_path / "other", seed=1))
    one, other = Run(finished_run), Run(tmp_path / "other")
    assert one.evaluation()["base_seal"] != other.evaluation()["base_seal"]
    assert one.record()["dataset"] == other.record()["dataset"]


def test_finetuning_changes_no_byte_of_the_base(run_copy):
    before = snapshot(run_copy / "base")
    stages.finetune(Request(run=run_copy, options={"finetune": {"digit": 3, "rank": 1}}))
    assert snapshot(run_copy / "base") == before
    assert "digit3-r1" in Run(run_copy).adapter_names()


def test_the_weakest_digit_has_the_highest_error_rate_on_val(finished_run):
    run = Run(finished_run)
    document = run.document(run.adapter(run.adapter_names()[0]), "finetune.json")
    val = run.evaluation()["splits"]["val"]
    rates = [wrong / sum(row) for wrong, row in zip(val["wrong"], val["confusion"], strict=True)]
    assert rates[document["digit"]] == max(rates)
    assert document["weakest_on_val"]


def test_without_val_the_digit_must_be_named(tmp_path):
    stages.pretrain(smoke(tmp_path, data={"dataset": "digits", "val_share": 0.0}))
    assert "val" not in Run(tmp_path).evaluation()["splits"]
    with pytest.raises(UsageError, match="--digit"):
        stages.finetune(Request(run=tmp_path))
    document = stages.finetune(Request(run=tmp_path, options={"finetune": {"digit": 8}}))
    assert set(document["comparison"]) == {"test"}


def test_the_stored_comparison_is_that_of_the_two_evaluations(finished_run):
    run = Run(finished_run)
    name = run.adapter_names()[0]
    before, after = run.evaluation()["splits"]["test"], run.evaluation(run.adapter(name))["splits"]["test"]
    counts = run.document(run.adapter(name), "analysis.json")["splits"]["test"]
    assert counts["before"]["errors"] == sum(before["wrong"])
    assert counts["after"]["errors"] == sum(after["wrong"])
    digit = run.document(run.adapter(name), "finetune.json")["digit"]
    assert counts["after"]["missed"] == after["wrong"][digit]
    claimed = [row[digit] for true_digit, row in enumerate(after["confusion"]) if true_digit != digit]
    assert counts["after"]["claimed"] == sum(claimed)


@pytest.mark.parametrize("leak", ["weight", "bias"])
def test_an_adapter_whose_proof_fails_is_not_kept(run_copy, monkeypatch, leak):
    honest = recipe.train

    def leaking(model, *arguments, **more):
        getattr(model.linear2.base, leak).requires_grad_(True)
        return honest(model, *arguments, **more)

    monkeypatch.setattr(recipe, "train", leaking)
    before = snapshot(run_copy)
    with pytest.raises(ProofError, match=rf"linear2\.{leak}"):
        stages.finetune(Request(run=run_copy, options={"finetune": {"digit": 3}}))
    assert snapshot(run_copy) == before


def test_evaluate_agrees_with_what_was_stored(finished_run):
    run = Run(finished_run)
    assert stages.evaluate(Request(run=finished_run)) == run.evaluation()
    name = run.adapter_names()[0]
    assert stages.evaluate(Request(run=finished_run), [Applied(name)]) == run.evaluation(run.adapter(name))
    off = stages.evaluate(Request(run=finished_run), [Applied(name, 0.0)])
    assert off["splits"] == run.evaluation()["splits"]


def test_several_adapters_at_once_add_up(run_copy):
    first = Run(run_copy).adapter_names()[0]
    stages.finetune(Request(run=run_copy, options={"finetune": {"digit": 1, "name": "second"}}))
    both = stages.evaluate(Request(run=run_copy), [Applied(first), Applied("second")])
    assert [adapter["name"] for adapter in both["adapters"]] == [first, "second"]
    assert both["splits"] not in (
        Run(run_copy).evaluation(run_copy / "adapters" / first)["splits"],
        Run(run_copy).evaluation(run_copy / "adapters" / "second")["splits"],
    )


def test_verify_passes_on_an_honest_run(finished_run):
    before = snapshot(finished_run)
    findings = stages.verify(Request(run=finished_run))
    assert findings["passed"]
    assert [entry["passed"] for entry in findings["adapters"]] == [True]
    assert snapshot(finished_run) == before


@pytest.mark.parametrize(
    "file", ["model.safetensors", "logits.safetensors", "evaluation.json", "history.csv", "run.json", "manifest.json"]
)
def test_verify_catches_one_flipped_bit_in_the_base(run_copy, file):
    flip_bit(run_copy / "base" / file, -20)
    findings = stages.verify(Request(run=run_copy))
    assert not findings["passed"]
    assert file in findings["failures"][0]


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "finetune.json"])
def test_verify_catches_one_flipped_bit_in_an_adapter(run_copy, adapter, file):
    flip_bit(adapter / file, -20)
    findings = stages.verify(Request(run=run_copy))
    assert not findings["passed"]
    assert file in findings["failures"][0]
    assert findings["base"]["passed"]


def test_verify_takes_a_truncated_manifest_for_altered_bytes(run_copy, adapter):
    for folder in (adapter, run_copy / "base"):
        (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:30])
        assert str(folder) in stages.verify(Request(run=run_copy))["failures"][0]


def test_verify_sees_through_a_manifest_made_to_fit(run_copy, adapter):
    """Weights and manifest changed together: the seal and the stored logits still tell."""
    from lora_mnist.files import _write_manifest

    flip_bit(run_copy / "base" / "model.safetensors", -20)
    (run_copy / "base" / "manifest.json").unlink()
    _write_manifest(run_copy / "base")
    assert "is not the sealed one" in stages.verify(Request(run=run_copy))["failures"][0]


@pytest.mark.parametrize("of_base", [True, False])
def test_verify_notices_logits_that_are_not_those_of_the_weights(run_copy, adapter, of_base):
    from safetensors.torch import load_file, save_file

    from lora_mnist.files import _write_manifest

    folder = run_copy / "base" if of_base else adapter
    logits = load_file(folder / "logits.safetensors")
    save_file({**logits, "val": logits["val"].flip(0).contiguous()}, folder / "logits.safetensors")
    (folder / "manifest.json").unlink()
    _write_manifest(folder)
    failure = f"{'base' if of_base else adapter.name}: the stored logits of val are not those of its weights"
    assert stages.verify(Request(run=run_copy))["failures"] == [failure]


def test_finished_work_is_not_replaced_without_force(run_copy, adapter):
    before = snapshot(run_copy)
    with pytest.raises(RunError, match="finished already"):
        stages.pretrain(smoke(run_copy))
    with pytest.raises(RunError, match="finished already"):
        stages.finetune(Request(run=run_copy))
    assert snapshot(run_copy) == before


def test_a_forced_pretrain_removes_the_old_adapters_and_says_so(run_copy, adapter, caplog):
    write_report(run_copy)
    (run_copy / "adapters" / "notes.txt").write_text("the user's own")
    stages.pretrain(replace(smoke(run_copy, seed=5), force=True))
    assert adapter.name in caplog.text
    assert Run(run_copy).adapter_names() == []
    assert not (run_copy / "report").exists()
    assert (run_copy / "adapters" / "notes.txt").is_file()
    assert Run(run_copy).record()["settings"]["seed"] == 5


def test_a_forced_stage_that_dies_leaves_the_old_state(run_copy, monkeypatch):
    before = snapshot(run_copy)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "train", interrupted)
    for stage in (stages.pretrain, stages.finetune):
        with pytest.raises(KeyboardInterrupt):
            stage(Request(run=run_copy, force=True))
    assert snapshot(run_copy) == before


@pytest.mark.parametrize("place", ["adapters", "report", "base"])
def test_nothing_that_lies_where_a_run_would_go_is_removed_unasked(tmp_path, place):
    (tmp_path / place).mkdir()
    (tmp_path / place / "thesis.txt").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match=place):
        stages.pretrain(smoke(tmp_path))
    assert snapshot(tmp_path) == before


def test_a_network_whose_logits_are_no_numbers_is_not_kept(run_copy):
    before = snapshot(run_copy)
    options = {"finetune": {"digit": 3, "steps": 1, "learning_rate": 1e30}}
    with pytest.raises(UsageError, match="learning-rate"):
        stages.finetune(Request(run=run_copy, options=options))
    assert snapshot(run_copy) == before


def test_a_checkpoint_takes_no_adapters(finished_run):
    with pytest.raises(UsageError, match="no adapters"):
        stages.evaluate(Request(run=finished_run), [Applied("a")], checkpoint="b")


def test_an_adapters_name_is_not_inherited(tmp_path):
    resume(smoke(tmp_path, finetune={"name": "mine", "digit": 1}))
    stages.finetune(Request(run=tmp_path, options={"finetune": {"digit": 2}}))
    assert Run(tmp_path).adapter_names() == ["mine", "digit2-r2"]
    with pytest.raises(UsageError, match="repairs 1, not 3"):
        resume(smoke(tmp_path, finetune={"name": "mine", "digit": 3}))


@pytest.mark.parametrize("record", [b"", b"{}"])
def test_force_replaces_even_a_damaged_base(run_copy, record):
    (run_copy / "base" / "run.json").write_bytes(record)
    (run_copy / "base" / "model.safetensors").write_bytes(b"")
    stages.pretrain(replace(smoke(run_copy), force=True))
    assert stages.verify(Request(run=run_copy))["passed"]


def test_later_stages_inherit_the_runs_settings(run_copy):
    settings = Run(run_copy).record()["settings"]
    assert settings["finetune"]["steps"] == 20  # smoke's own for the digits
    document = stages.finetune(Request(run=run_copy, options={"finetune": {"digit": 2, "rank": 4}}))
    assert document["settings"]["steps"] == 20
    assert document["settings"]["alpha"] == settings["finetune"]["alpha"]
    assert document["settings"]["rank"] == 4


def test_a_config_that_says_auto_keeps_the_runs_data_set(run_copy):
    request = Request(run=run_copy, config="smoke", options={"finetune": {"digit": 2}})
    assert stages.finetune(request)["evaluation"]["dataset"]["name"] == "digits"


@pytest.mark.parametrize(
    "options", [{"data": {"val_share": 0.1}}, {"data": {"dataset": "mnist"}}, {"model": {"hidden": [5]}}]
)
def test_an_option_that_contradicts_the_run_is_an_error(run_copy, options):
    key = next(f"{table}.{name}" for table, values in options.items() for name in values)
    with pytest.raises(UsageError, match=key):
        stages.finetune(Request(run=run_copy, options={"finetune": {"digit": 2}, **options}))


def test_run_resumes_and_refuses_what_contradicts_the_finished_part(run_copy):
    before = snapshot(run_copy)
    again = resume(smoke(run_copy, finetune={"digit": "weakest"}))
    assert again["name"] == Run(run_copy).adapter_names()[0]
    assert snapshot(run_copy) == before
    with pytest.raises(UsageError, match=r"pretrain\.epochs"):
        resume(smoke(run_copy, pretrain={"epochs": 9}))
    with pytest.raises(UsageError, match=r"finetune\.steps"):
        resume(smoke(run_copy, finetune={"steps": 9}))
    with pytest.raises(UsageError, match="seed"):
        resume(smoke(run_copy, seed=9))
    assert snapshot(run_copy) == before


def test_stages_before_pretrain_say_what_to_do(tmp_path):
    for stage in (stages.evaluate, stages.finetune, stages.verify):
        with pytest.raises(RunError, match="lora-mnist pretrain"):
            stage(Request(run=tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_an_adapter_that_does_not_exist_is_named(finished_run):
    with pytest.raises(RunError, match="nine"):
        stages.evaluate(Request(run=finished_run), [Applied("nine")])
    assert stages.verify(Request(run=finished_run))["passed"]
    with pytest.raises(RunError, match="nine"):
        stages.verify(Request(run=finished_run), ["nine"])


def test_the_record_tells_how_the_run_was_made(finished_run):
    record = json.loads((finished_run / "run.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert record["dataset"]["name"] == "digits"
    assert record["settings"]["data"]["dataset"] == "digits"
    assert {"device", "threads", "seconds", "base_seal"} <= set(record)


# Repairs, measured against their excuses ----------------------------------------------------------------------------


def tuning(**options):
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
    options = tuning(digit=3, guard="errors", focus=1.0, learning_rate=0.05, schedule="constant")
    result = stages.finetune(Request(run=run_copy, options=options))
    assert result["kept"] is False
    assert result["guard"]["strength"] is None
    limit = result["guard"]["before"]["errors"]
    assert limit == sum(Run(run_copy).evaluation()["splits"]["val"]["wrong"])
    assert all(tried["errors"] > limit for tried in result["guard"]["tried"])
    assert snapshot(run_copy) == before


def test_what_the_guard_keeps_is_what_it_measured(run_copy):
    options = tuning(digit=3, guard="digit", focus=0.9, learning_rate=0.05, schedule="constant", name="kept")
    result = stages.finetune(Request(run=run_copy, options=options))
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
        stages.finetune(Request(run=tmp_path, options=tuning(digit=3, guard="errors")))


def test_the_twin_differs_in_the_share_of_the_digit_only(run_copy, monkeypatch):
    seen = []
    honest = recipe.focus_batches
    monkeypatch.setattr(recipe, "focus_batches", lambda *a: seen.append(a) or honest(*a))
    result = stages.finetune(Request(run=run_copy, options=tuning(digit=3)), twin=True)
    (labels, *one), (_, *other) = seen
    assert one[1] != other[1] == pytest.approx(float((labels == 3).float().mean()))
    assert (one[0], one[2:4]) == (other[0], other[2:4])
    twin = result["twin"]["splits"]["test"]
    pair, after = twin["all"], result["comparison"]["test"]["after"]
    assert after["errors"] - twin["errors"] == pair["only_twin_right"] - pair["only_adapter_right"]
    assert after["missed"] - twin["missed"] == twin["digit"]["only_twin_right"] - twin["digit"]["only_adapter_right"]
    alone = stages.finetune(Request(run=run_copy, options=tuning(digit=3, name="again")))
    assert alone["comparison"] == result["comparison"]  # training a twin changes nothing for the adapter


def test_a_repair_on_top_of_another(run_copy, adapter):
    before = snapshot(adapter)
    result = stages.finetune(Request(run=run_copy, options=tuning(digit=1)), on_top_of=[adapter.name])
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
    result = stages.finetune(Request(run=run_copy, options=tuning(digit=1)), on_top_of=[adapter.name])
    stages.evaluate(Request(run=run_copy), [Applied(result["name"])])
    assert f"trained on top of {adapter.name}, which is not on" in caplog.text


def test_rounds_go_from_weakest_to_weakest_and_resume(run_copy, adapter):
    results = stages.repair(Request(run=run_copy), 3)
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
    again = stages.repair(Request(run=run_copy), 3)
    assert [result["name"] for result in again] == [result["name"] for result in results]
    assert snapshot(run_copy) == before


def test_rounds_end_with_the_first_that_is_not_kept(run_copy, adapter):
    options = tuning(guard="errors", focus=1.0, learning_rate=0.05, schedule="constant")
    shutil.rmtree(adapter)
    results = stages.repair(Request(run=run_copy, options=options), 5)
    assert [result["kept"] for result in results] == [False]


@pytest.mark.parametrize("options", [{"digit": 3}, {"name": "x"}])
def test_rounds_with_one_digit_or_one_name_are_refused(run_copy, options):
    with pytest.raises(UsageError, match="rounds"):
        stages.repair(Request(run=run_copy, options=tuning(**options)), 2)
    with pytest.raises(UsageError, match="rounds"):
        stages.repair(Request(run=run_copy), 0)


def test_a_stack_is_named_in_the_order_it_was_trained_in(run_copy, adapter):
    stages.finetune(Request(run=run_copy, options=tuning(digit=1, name="beside")))
    upper = stages.finetune(Request(run=run_copy, options=tuning(digit=1)), on_top_of=[adapter.name])["name"]
    for stack in ([adapter.name, "beside"], [upper], ["nine"], [f"./{adapter.name}"]):
        with pytest.raises(RunError):
            stages.finetune(Request(run=run_copy, options=tuning(digit=2, name="new")), on_top_of=stack)
    result = stages.finetune(Request(run=run_copy, options=tuning(digit=2)), on_top_of=[adapter.name, upper])
    below = stages.evaluate(Request(run=run_copy), [Applied(adapter.name), Applied(upper)])["splits"]["test"]
    assert result["comparison"]["test"]["before"]["errors"] == sum(below["wrong"])


def test_what_others_are_on_top_of_is_not_replaced(run_copy, adapter):
    upper = stages.finetune(Request(run=run_copy, options=tuning(digit=1)), on_top_of=[adapter.name])["name"]
    before = snapshot(run_copy)
    with pytest.raises(RunError, match=f"{upper} was trained on top of it"):
        stages.finetune(Request(run=run_copy, options=tuning(name=adapter.name, digit=2), force=True))
    assert snapshot(run_copy) == before


def test_an_adapter_without_the_one_below_is_a_finding_of_verify_and_an_error_of_the_report(run_copy, adapter):
    upper = stages.finetune(Request(run=run_copy, options=tuning(digit=1)), on_top_of=[adapter.name])["name"]
    shutil.rmtree(adapter)
    findings = stages.verify(Request(run=run_copy))
    assert findings["failures"] == [f"{upper}: it was trained on top of {adapter.name}, which is not in the run"]
    with pytest.raises(RunError, match="which is not in the run"):
        write_report(run_copy)


def test_a_round_takes_a_name_that_is_free_in_the_run(run_copy, adapter):
    round_2 = stages.repair(Request(run=run_copy), 2)[1]
    shutil.rmtree(run_copy / "adapters" / round_2["name"])
    taken = tuning(digit=round_2["digit"], name=round_2["name"])
    stages.finetune(Request(run=run_copy, options=taken))  # of the same digit, but on the base
    again = stages.repair(Request(run=run_copy), 2)[1]
    assert again["name"] == f"{round_2['name']}-2"
    assert stages.repair(Request(run=run_copy), 2)[1]["name"] == again["name"]


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
        stages.require_rounds(smoke(tmp_path / "new", finetune={"digit": 3}), 2)
    with pytest.raises(UsageError, match="rounds"):
        stages.require_rounds(Request(run=tmp_path / "new", config="classic"), 2)
    stages.require_rounds(smoke(tmp_path / "new", finetune={"digit": 3}), 1)
    assert not (tmp_path / "new").exists()


def test_the_report_shows_the_twin_and_the_full_fine_tuning_beside_the_repair(run_copy):
    result = stages.finetune(Request(run=run_copy, options=tuning(digit=3)), twin=True)
    full = stages.finetune_full(Request(run=run_copy, options=tuning(digit=3)))
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
