"""How adapters and checkpoints are found, and what `evaluate` says of them."""

import shutil

import pytest
import torch

from lora_mnist.errors import RunError
from lora_mnist.pipeline import Applied, evaluate, finetune, finetune_full
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import AppliedAdapter
from lora_mnist.training.model import logits_of

from ..conftest import workspace


def test_an_adapter_by_its_folder_is_the_one_by_its_name(run_copy, adapter):
    work = workspace(run_copy)
    by_name, _ = work.adapted([Applied(adapter.name)])
    by_folder, used = work.adapted([Applied(str(adapter))])
    images = work.images["test"]
    assert torch.equal(logits_of(by_name, images), logits_of(by_folder, images))
    assert used == (AppliedAdapter(name=adapter.name, strength=1.0),)
    assert logits_of(by_name, images).ne(logits_of(work.base, images)).any()


def test_a_folder_needs_a_path_and_the_error_says_so(run_copy, adapter, tmp_path, monkeypatch):
    shutil.copytree(adapter, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    work = workspace(run_copy)
    with pytest.raises(RunError, match=r"\./elsewhere"):
        work.adapted([Applied("elsewhere")])
    assert work.adapted([Applied("./elsewhere")])[1][0].name == "elsewhere"


def test_a_checkpoint_by_name_folder_file_or_as_the_latest(run_copy, monkeypatch):
    with pytest.raises(RunError, match="finetune --full"):
        workspace(run_copy).checkpoint(None)
    finetune_full(workspace(run_copy, digit=3))
    folder = run_copy / "checkpoints" / "digit3-full"
    work = workspace(run_copy)
    monkeypatch.chdir(folder)
    for reference in (None, "digit3-full", str(folder), str(folder / "model.safetensors"), "./model.safetensors"):
        _, found = work.checkpoint(reference)
        assert (found.name, found.folder.resolve()) == ("digit3-full", folder.resolve())


def test_evaluate_agrees_with_what_was_stored(finished_run):
    run, work = Run(finished_run), workspace(finished_run)
    assert evaluate(work) == run.base.evaluation
    (adapter,) = run.adapters()
    assert evaluate(work, [Applied(adapter.name)]) == adapter.evaluation
    off = evaluate(work, [Applied(adapter.name, 0.0)])
    assert off.splits == run.base.evaluation.splits


def test_an_adapter_used_without_the_one_below_is_mentioned(run_copy, adapter, caplog):
    caplog.set_level("INFO", "lora_mnist")
    upper = finetune(workspace(run_copy, digit=1), on_top_of=[adapter.name]).record.name
    evaluate(workspace(run_copy), [Applied(upper)])
    assert f"trained on top of {adapter.name}, which is not on" in caplog.text
