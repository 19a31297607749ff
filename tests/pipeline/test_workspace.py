"""How adapters and checkpoints are found."""

import shutil

import pytest
import torch

from lora_mnist.errors import RunError
from lora_mnist.evaluation.metrics import logits_of
from lora_mnist.pipeline import Applied, Request, finetune_full, open_workspace, verify
from lora_mnist.runs.schemas import AppliedAdapter

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
    finetune_full(workspace(run_copy, digit=3))
    folder = run_copy / "checkpoints" / "digit3-full"
    work = workspace(run_copy)
    monkeypatch.chdir(folder)
    for reference in (None, "digit3-full", str(folder), str(folder / "model.safetensors"), "./model.safetensors"):
        _, found = work.checkpoint(reference)
        assert (found.name, found.folder.resolve()) == ("digit3-full", folder.resolve())


def test_the_latest_checkpoint_has_to_exist(finished_run):
    with pytest.raises(RunError, match="finetune --full"):
        workspace(finished_run).checkpoint(None)


@pytest.mark.parametrize("opening", [open_workspace, verify])
def test_before_pretrain_it_is_said_what_to_do(tmp_path, opening):
    with pytest.raises(RunError, match="lora-mnist pretrain"):
        opening(Request(run=tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
