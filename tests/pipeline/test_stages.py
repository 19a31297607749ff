"""The stages on the embedded digits; the claims about real MNIST are in test_claims.py."""

import json
from dataclasses import replace

import pytest
import torch

from lora_mnist.errors import ProofError, RunError, UsageError
from lora_mnist.pipeline import finetune as tuning
from lora_mnist.pipeline import stages
from lora_mnist.report.page import write_report
from lora_mnist.runs.rundir import Run
from lora_mnist.settings.request import Applied, Request
from lora_mnist.training import train as recipe

from ..conftest import SMOKE, flip_bit, resume, snapshot


def smoke(path, **options):
    return Request(run=path, config="smoke", options={**SMOKE, **options})


def test_the_same_settings_give_the_same_bytes(finished_run, tmp_path):
    stages.pretrain(smoke(tmp_path / "again"))
    tuning.finetune(Request(run=tmp_path / "again"))
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
    tuning.finetune(Request(run=run_copy, options={"finetune": {"digit": 3, "rank": 1}}))
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
        tuning.finetune(Request(run=tmp_path))
    document = tuning.finetune(Request(run=tmp_path, options={"finetune": {"digit": 8}}))
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
        tuning.finetune(Request(run=run_copy, options={"finetune": {"digit": 3}}))
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
    tuning.finetune(Request(run=run_copy, options={"finetune": {"digit": 1, "name": "second"}}))
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
        tuning.finetune(Request(run=run_copy))
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
    for stage in (stages.pretrain, tuning.finetune):
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
        tuning.finetune(Request(run=run_copy, options=options))
    assert snapshot(run_copy) == before


def test_a_checkpoint_takes_no_adapters(finished_run):
    with pytest.raises(UsageError, match="no adapters"):
        stages.evaluate(Request(run=finished_run), [Applied("a")], checkpoint="b")


def test_an_adapters_name_is_not_inherited(tmp_path):
    resume(smoke(tmp_path, finetune={"name": "mine", "digit": 1}))
    tuning.finetune(Request(run=tmp_path, options={"finetune": {"digit": 2}}))
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
    document = tuning.finetune(Request(run=run_copy, options={"finetune": {"digit": 2, "rank": 4}}))
    assert document["settings"]["steps"] == 20
    assert document["settings"]["alpha"] == settings["finetune"]["alpha"]
    assert document["settings"]["rank"] == 4


def test_a_config_that_says_auto_keeps_the_runs_data_set(run_copy):
    request = Request(run=run_copy, config="smoke", options={"finetune": {"digit": 2}})
    assert tuning.finetune(request)["evaluation"]["dataset"]["name"] == "digits"


@pytest.mark.parametrize(
    "options", [{"data": {"val_share": 0.1}}, {"data": {"dataset": "mnist"}}, {"model": {"hidden": [5]}}]
)
def test_an_option_that_contradicts_the_run_is_an_error(run_copy, options):
    key = next(f"{table}.{name}" for table, values in options.items() for name in values)
    with pytest.raises(UsageError, match=key):
        tuning.finetune(Request(run=run_copy, options={"finetune": {"digit": 2}, **options}))


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
    for stage in (stages.evaluate, tuning.finetune, stages.verify):
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
