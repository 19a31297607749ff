"""A network of an adapter, an adapter of a network; on the embedded digits."""

import copy
import json
import shutil

import pytest
import torch

from lora_mnist.errors import RunError, UsageError
from lora_mnist.evaluation.metrics import logits_of
from lora_mnist.lora import disabled
from lora_mnist.lora.seal import seal
from lora_mnist.pipeline import finetune as tuning
from lora_mnist.pipeline import stages
from lora_mnist.pipeline.convert import extract_adapter, merge_adapters
from lora_mnist.pipeline.workspace import open_workspace
from lora_mnist.runs.checkpoint import load_network, save_network
from lora_mnist.runs.rundir import Run
from lora_mnist.settings.request import Applied, Request

from ..conftest import SMOKE, flip_bit, snapshot


def named(path, name):
    return Request(run=path, options={"finetune": {"name": name}})


@pytest.fixture(scope="module")
def tuned_run(finished_run, tmp_path_factory):
    """A run with an adapter, a full fine-tuning of digit 3, and what was extracted from it at rank 2."""
    path = shutil.copytree(finished_run, tmp_path_factory.mktemp("tuned") / "run")
    tuning.finetune_full(Request(run=path, options={"finetune": {"digit": 3}}))
    extract_adapter(Request(run=path), 2)
    return path


def test_full_fine_tuning_moves_every_tensor_of_a_copy_and_none_of_the_base(tuned_run, finished_run):
    before, after = snapshot(finished_run / "base"), snapshot(tuned_run / "base")
    assert before == after
    base, _ = load_network(tuned_run / "base" / "model.safetensors")
    tuned, sealed = load_network(tuned_run / "checkpoints" / "digit3-full" / "model.safetensors")
    assert sealed == seal(tuned.state_dict())
    assert all(not torch.equal(tensor, base.state_dict()[name]) for name, tensor in tuned.state_dict().items())


def test_full_fine_tuning_has_the_batches_of_an_adapter(run_copy, monkeypatch):
    seen = []
    from lora_mnist.training import train as recipe

    honest = recipe.train
    monkeypatch.setattr(recipe, "train", lambda *a: seen.append((a[1].batches, a[1].warps)) or honest(*a))
    options = {"finetune": {"digit": 3}}
    tuning.finetune(Request(run=run_copy, options=options))
    tuning.finetune(Request(run=run_copy, options={"finetune": {"digit": 3, "rank": 5}}))
    tuning.finetune_full(Request(run=run_copy, options=options))
    for batches, warps in seen[1:]:
        assert torch.equal(batches, seen[0][0])
        assert torch.equal(warps, seen[0][1])


def test_the_record_of_a_full_fine_tuning_names_no_rank(tuned_run):
    document = json.loads((tuned_run / "checkpoints" / "digit3-full" / "finetune.json").read_text())
    assert (document["method"], document["digit"], document["proof"]) == ("full", 3, None)
    assert document["parameters"]["trained"] == 784 * 24 + 24 + 24 * 16 + 16 + 16 * 10 + 10
    assert not {"rank", "alpha", "targets", "full_learning_rate"} & set(document["settings"])
    assert document["settings"]["learning_rate"] == 0.001


def test_extraction_reports_both_and_what_it_left_out(tuned_run):
    run = Run(tuned_run)
    document = run.document(run.adapter("digit3-full-r2"), "finetune.json")
    facts = document["extraction"]
    whole = run.document(run.checkpoint("digit3-full"), "analysis.json")["splits"]["test"]["after"]
    assert {key: facts["of_checkpoint"][key] for key in whole} == whole
    assert document["digit"] == 3
    assert all(0 < facts["left_out"][f"linear{i}.bias"] < 1 for i in (1, 2, 3))
    for layer in facts["layers"].values():
        values = layer["singular_values"]
        assert values == sorted(values, reverse=True)
        kept = sum(value**2 for value in values[:2]) / sum(value**2 for value in values)
        assert layer["energy"] == pytest.approx(kept)
    assert document["proof"]["passed"]


def test_extracting_everything_but_the_biases(tuned_run, tmp_path):
    """With the biases of the base, the whole change is exact to rounding."""
    base, _ = load_network(tuned_run / "base" / "model.safetensors")
    tuned, _ = load_network(tuned_run / "checkpoints" / "digit3-full" / "model.safetensors")
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(base.state_dict()[name])
    save_network(tmp_path / "mine.v1" / "model.safetensors", tuned)
    document = extract_adapter(named(tuned_run, "whole"), 24, str(tmp_path / "mine.v1"))
    assert set(document["extraction"]["left_out"].values()) == {0.0}
    assert [row["rank"] for row in document["extraction"]["layers"].values()] == [24, 16, 10]
    work = open_workspace(Request(run=tuned_run))
    model, _ = work.adapted([Applied("whole")])
    images = work.images["test"]
    expected = logits_of(tuned, images)
    assert float((logits_of(model, images) - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_a_merged_checkpoint_is_the_formula_and_stands_alone(run_copy, adapter):
    document = merge_adapters(Request(run=run_copy), [Applied(adapter.name, 0.5)])
    assert document["largest_difference"] <= 1e-5 * document["largest_logit"]
    merged, _ = load_network(run_copy / "checkpoints" / f"{adapter.name}-merged" / "model.safetensors")
    work = open_workspace(Request(run=run_copy))
    model, _ = work.adapted([Applied(adapter.name, 0.5)])
    for path, linear in merged.named_children():
        update = model.get_submodule(path).updates[adapter.name]
        by_hand = work.base.get_submodule(path).weight + (0.5 * update.scaling) * (update.lora_B @ update.lora_A)
        assert torch.equal(linear.weight, by_hand)
        assert torch.equal(linear.bias, work.base.get_submodule(path).bias)
    with disabled(model):
        assert seal(work.base.state_dict()) == work.sealed
    stored = json.loads((run_copy / "checkpoints" / f"{adapter.name}-merged" / "evaluation.json").read_text())
    assert stored == document["evaluation"]
    assert stages.evaluate(Request(run=run_copy), checkpoint=f"{adapter.name}-merged") == stored


def test_merging_several(run_copy, adapter):
    tuning.finetune(Request(run=run_copy, options={"finetune": {"digit": 1, "name": "second"}}))
    used = [Applied(adapter.name, 0.5), Applied("second")]
    document = merge_adapters(named(run_copy, "both"), used)
    assert document["merged"] == [{"name": adapter.name, "strength": 0.5}, {"name": "second", "strength": 1.0}]
    unmerged = stages.evaluate(Request(run=run_copy), used)
    assert document["evaluation"]["splits"] == unmerged["splits"]


@pytest.mark.parametrize("again", [0, 1, 2])
def test_nothing_finished_is_replaced_without_force(tuned_run, tmp_path, again):
    path = shutil.copytree(tuned_run, tmp_path / "run")
    adapter = Run(path).adapter_names()[0]
    actions = [
        lambda r: tuning.finetune_full(r),
        lambda r: extract_adapter(r, 2),
        lambda r: merge_adapters(r, [Applied(adapter)]),
    ]
    options = {"finetune": {"digit": 3}}
    merge_adapters(Request(run=path), [Applied(adapter)])
    before = snapshot(path)
    with pytest.raises(RunError, match="--force"):
        actions[again](Request(run=path, options=options))
    assert snapshot(path) == before
    actions[again](Request(run=path, options=options, force=True))


def test_verify_looks_at_checkpoints_too(tuned_run, tmp_path):
    path = shutil.copytree(tuned_run, tmp_path / "run")
    found = stages.verify(Request(run=path))
    assert found["passed"]
    assert [entry["name"] for entry in found["checkpoints"]] == ["digit3-full"]
    flip_bit(path / "checkpoints" / "digit3-full" / "model.safetensors")
    found = stages.verify(Request(run=path))
    assert not found["passed"]
    assert "digit3-full" in found["failures"][0]


def test_a_new_base_takes_its_checkpoints_along(tuned_run, tmp_path):
    path = shutil.copytree(tuned_run, tmp_path / "run")
    stages.pretrain(Request(run=path, config="smoke", options={**SMOKE, "seed": 5}, force=True))
    assert Run(path).checkpoint_names() == []
    assert not (path / "checkpoints" / "digit3-full").exists()


def test_a_network_of_another_shape_is_refused(tuned_run, tmp_path):
    base, _ = load_network(tuned_run / "base" / "model.safetensors")
    other = type(base)((8,))
    save_network(tmp_path / "model.safetensors", copy.deepcopy(other))
    with pytest.raises(UsageError, match="different tensors"):
        extract_adapter(named(tuned_run, "other"), 2, str(tmp_path / "model.safetensors"))
    assert "other" not in Run(tuned_run).adapter_names()


def test_a_checkpoint_of_another_base_is_refused(tuned_run, tmp_path):
    stages.pretrain(Request(run=tmp_path / "other", config="smoke", options={**SMOKE, "seed": 5}))
    tuning.finetune_full(Request(run=tmp_path / "other", options={"finetune": {"digit": 0, "name": "digit3-full"}}))
    foreign = str(tmp_path / "other" / "checkpoints" / "digit3-full")
    with pytest.raises(RunError, match="another base"):
        extract_adapter(named(tuned_run, "foreign"), 2, foreign)


def test_a_network_that_is_not_finite_is_refused(tuned_run, tmp_path):
    base, _ = load_network(tuned_run / "base" / "model.safetensors")
    with torch.no_grad():
        base.linear1.weight[0, 0] = torch.nan
    save_network(tmp_path / "model.safetensors", base)
    with pytest.raises(UsageError, match="finite"):
        stages.evaluate(Request(run=tuned_run), checkpoint=str(tmp_path / "model.safetensors"))
    with pytest.raises(UsageError, match="NaN"):
        extract_adapter(named(tuned_run, "nan"), 2, str(tmp_path / "model.safetensors"))


def test_a_rank_beyond_all_layers_is_recorded_as_what_it_came_to(tuned_run, tmp_path):
    path = shutil.copytree(tuned_run, tmp_path / "run")
    assert extract_adapter(named(path, "all"), 999_999)["settings"]["rank"] == 24
