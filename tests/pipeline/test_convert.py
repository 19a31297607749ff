"""A network of an adapter, an adapter of a network; on the embedded digits."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from lora_mnist.errors import LoRAError, RunError, UsageError
from lora_mnist.lora import disabled
from lora_mnist.lora.fingerprint import compute_fingerprint
from lora_mnist.pipeline import Applied, Request, evaluate, finetune, finetune_full, open_workspace, pretrain, verify
from lora_mnist.pipeline.convert import extract, merge
from lora_mnist.runs.artifact import ArtifactWriter, load_network
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import AppliedAdapter
from lora_mnist.training.model import logits_of

from ..conftest import flip_bit, relative, smoke, snapshot, workspace


@pytest.fixture(scope="module")
def tuned_run(finished_run, tmp_path_factory):
    """A run with an adapter, a full fine-tuning of digit 3, and what was extracted from it at rank 2."""
    path = shutil.copytree(finished_run, tmp_path_factory.mktemp("tuned") / "run")
    finetune_full(workspace(path, digit=3))
    extract(workspace(path), 2)
    return path


def test_full_fine_tuning_moves_every_tensor_of_a_copy_and_none_of_the_base(tuned_run, finished_run):
    before, after = snapshot(finished_run / "base"), snapshot(tuned_run / "base")
    assert before == after
    base, _ = load_network(tuned_run / "base" / "model.safetensors")
    tuned, fingerprint = load_network(tuned_run / "checkpoints" / "digit3-full" / "model.safetensors")
    assert fingerprint == compute_fingerprint(tuned.state_dict())
    assert all(not torch.equal(tensor, base.state_dict()[name]) for name, tensor in tuned.state_dict().items())


def test_extraction_reports_both_and_what_it_left_out(tuned_run):
    run = Run(tuned_run)
    record = run.adapter("digit3-full-r2").finetune
    facts = record.extraction
    full = run.checkpoint("digit3-full")
    assert facts.of_checkpoint.numbers == full.analysis.splits["test"].after.numbers
    assert facts.of_checkpoint.accuracy == full.evaluation.splits["test"].accuracy
    assert record.digit == 3
    assert all(0 < facts.left_out[f"linear{i}.bias"] < 1 for i in (1, 2, 3))
    for layer in facts.layers.values():
        values = layer.singular_values
        assert list(values) == sorted(values, reverse=True)
        kept = sum(value**2 for value in values[:2]) / sum(value**2 for value in values)
        assert layer.energy == pytest.approx(kept)
    assert record.proof.passed


def test_extracting_everything_but_the_biases(tuned_run, tmp_path):
    """With the biases of the base, the whole change is exact to rounding."""
    base, _ = load_network(tuned_run / "base" / "model.safetensors")
    tuned, _ = load_network(tuned_run / "checkpoints" / "digit3-full" / "model.safetensors")
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(base.state_dict()[name])
    ArtifactWriter(tmp_path / "mine.v1").network(tuned)
    record = extract(workspace(tuned_run, name="whole"), 999_999, str(tmp_path / "mine.v1")).record
    facts = record.extraction
    assert record.settings.rank == 24
    assert facts.checkpoint == "mine-v1"
    assert set(facts.left_out.values()) == {0.0}
    assert [layer.rank for layer in facts.layers.values()] == [24, 16, 10]  # of 999,999
    work = workspace(tuned_run)
    model, _ = work.adapted([Applied("whole")])
    images = work.images["test"]
    expected = logits_of(tuned, images)
    assert relative(logits_of(model, images), expected) < 1e-5


def test_a_merged_checkpoint_is_the_formula_and_stands_alone(run_copy, adapter):
    merging = merge(workspace(run_copy), [Applied(adapter.name, 0.5)])
    assert merging.largest_difference <= 1e-5 * merging.largest_logit
    merged, _ = load_network(run_copy / "checkpoints" / f"{adapter.name}-merged" / "model.safetensors")
    work = workspace(run_copy)
    model, _ = work.adapted([Applied(adapter.name, 0.5)])
    for path, linear in merged.named_children():
        update = model.get_submodule(path).updates[adapter.name]
        by_hand = work.base.get_submodule(path).weight + (0.5 * update.scaling) * (update.lora_B @ update.lora_A)
        assert torch.equal(linear.weight, by_hand)
        assert torch.equal(linear.bias, work.base.get_submodule(path).bias)
    with disabled(model):
        assert compute_fingerprint(work.base.state_dict()) == work.fingerprint
    stored = json.loads((run_copy / "checkpoints" / f"{adapter.name}-merged" / "evaluation.json").read_text())
    assert stored == merging.evaluation.model_dump(mode="json")
    assert evaluate(work, checkpoint=f"{adapter.name}-merged") == merging.evaluation


def test_merging_several(run_copy, adapter):
    finetune(workspace(run_copy, digit=1, name="second"))
    used = [Applied(adapter.name, 0.5), Applied("second")]
    merging = merge(workspace(run_copy, name="both"), used)
    assert merging.merged == tuple(AppliedAdapter(name=one.reference, strength=one.strength) for one in used)
    unmerged = evaluate(workspace(run_copy), used)
    assert merging.evaluation.splits == unmerged.splits


@pytest.mark.parametrize("stage", ["full", "extract", "merge"])
def test_nothing_finished_is_replaced_without_force(tuned_run, tmp_path, stage):
    path = shutil.copytree(tuned_run, tmp_path / "run")
    applied = [Applied(Run(path).adapter_names()[0])]
    merge(workspace(path), applied)
    repeat = {
        "full": finetune_full,
        "extract": lambda work: extract(work, 2),
        "merge": lambda work: merge(work, applied),
    }[stage]
    before = snapshot(path)
    with pytest.raises(RunError, match="--force"):
        repeat(workspace(path, digit=3))
    assert snapshot(path) == before
    repeat(open_workspace(Request(run=path, options={"finetune": {"digit": 3}}, force=True)))


def test_verify_looks_at_checkpoints_too_and_a_new_base_removes_them(tuned_run, tmp_path):
    path = shutil.copytree(tuned_run, tmp_path / "run")
    found = verify(Request(run=path))
    assert found.passed
    assert [entry.name for entry in found.checkpoints] == ["digit3-full"]
    flip_bit(path / "checkpoints" / "digit3-full" / "model.safetensors")
    found = verify(Request(run=path))
    assert not found.passed
    assert "digit3-full" in found.failures[0]
    pretrain(replace(smoke(path, seed=5), force=True))
    assert Run(path).checkpoints() == []
    assert not (path / "checkpoints" / "digit3-full").exists()


def test_a_checkpoint_of_another_base_is_refused(tuned_run, tmp_path):
    pretrain(smoke(tmp_path / "other", seed=5))
    finetune_full(workspace(tmp_path / "other", digit=0, name="digit3-full"))
    foreign = str(tmp_path / "other" / "checkpoints" / "digit3-full")
    with pytest.raises(RunError, match="another base"):
        extract(workspace(tuned_run, name="foreign"), 2, foreign)


@pytest.mark.parametrize(("wrong", "message"), [("shape", "different tensors"), ("nan", "NaN")])
def test_a_network_of_another_shape_or_not_finite_is_refused(tuned_run, tmp_path, wrong, message):
    network, _ = load_network(tuned_run / "base" / "model.safetensors")
    if wrong == "shape":
        network = type(network)((8,))
    else:
        torch.nn.init.constant_(network.linear1.weight, torch.nan)
    ArtifactWriter(tmp_path).network(network)
    file = str(tmp_path / "model.safetensors")
    with pytest.raises(LoRAError, match=message):
        extract(workspace(tuned_run, name="other"), 2, file)
    assert "other" not in Run(tuned_run).adapter_names()
    if wrong == "nan":
        with pytest.raises(UsageError, match="finite"):
            evaluate(workspace(tuned_run), checkpoint=file)
