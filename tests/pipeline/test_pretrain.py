"""The base: how it is made, what its record says, and what is never replaced unasked."""

import json
from dataclasses import replace

import pytest

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.pipeline import Request, finetune, pretrain, verify
from lora_mnist.report.page import write_report
from lora_mnist.runs.run import Run

from ..conftest import smoke, snapshot, workspace


def test_another_seed_gives_other_bytes_on_the_same_split(finished_run, tmp_path):
    pretrain(smoke(tmp_path / "other", seed=1))
    one, other = Run(finished_run), Run(tmp_path / "other")
    assert one.base.evaluation.base_fingerprint != other.base.evaluation.base_fingerprint
    assert one.record.dataset == other.record.dataset


def test_what_is_returned_is_what_was_stored(tmp_path):
    work, pretraining = pretrain(smoke(tmp_path))
    stored = json.loads((tmp_path / "base" / "evaluation.json").read_text())
    seconds = json.loads((tmp_path / "base" / "provenance.json").read_text())["seconds"]
    found = pretraining.model_dump(mode="json")
    weakest = found.pop("weakest")
    assert found == {**stored, "run": str(tmp_path), "seconds": seconds}
    assert weakest["digit"] == work.target_digit()
    assert (weakest["wrong"], weakest["images"]) == (max(stored["splits"]["val"]["wrong"]), 100)
    assert work.fingerprint.sha256 == pretraining.base_fingerprint


def test_finished_work_is_not_replaced_without_force(run_copy, adapter):
    before = snapshot(run_copy)
    (run_copy / "run.json").unlink()  # as after a kill behind the base: a refusal makes up for it
    with pytest.raises(RunError, match="finished already"):
        pretrain(smoke(run_copy))
    with pytest.raises(RunError, match="finished already"):
        finetune(workspace(run_copy))
    assert snapshot(run_copy) == before


def test_a_forced_pretrain_removes_the_old_adapters_and_says_so(run_copy, adapter, caplog):
    write_report(Run(run_copy))
    (run_copy / "adapters" / "notes.txt").write_text("the user's own")
    pretrain(replace(smoke(run_copy, seed=5), force=True))
    assert adapter.name in caplog.text
    assert Run(run_copy).adapter_names() == []
    assert not (run_copy / "report").exists()
    assert (run_copy / "adapters" / "notes.txt").is_file()
    assert Run(run_copy).record.settings.seed == 5


@pytest.mark.parametrize("place", ["adapters", "checkpoints", "report", "base"])
def test_nothing_that_lies_where_a_run_would_go_is_removed_unasked(tmp_path, place):
    (tmp_path / place).mkdir()
    (tmp_path / place / "thesis.txt").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match=f"{place} exists, but there is no finished base"):
        pretrain(smoke(tmp_path))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("record", [b"", b"{}", b"version 1"])
def test_force_replaces_even_a_damaged_base_or_one_of_another_schema(run_copy, record):
    path = run_copy / "base" / "run.json"
    if record == b"version 1":
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 1}))
        with pytest.raises(RunError, match="another version"):
            _ = Run(run_copy).record
    else:
        path.write_bytes(record)
        (run_copy / "base" / "model.safetensors").write_bytes(b"")
    pretrain(replace(smoke(run_copy), force=True))
    assert verify(Request(run=run_copy)).passed


def test_what_a_damaged_base_was_trained_with_is_kept_or_asked_for(run_copy, caplog):
    settings = Run(run_copy).record.settings
    (run_copy / "base" / "model.safetensors").write_bytes(b"")
    pretrain(Request(run=run_copy, force=True, options={"seed": 5}))
    assert Run(run_copy).record.settings == settings.model_copy(update={"seed": 5})
    record = run_copy / "base" / "run.json"
    record.write_text(record.read_text().replace('"epochs": 3', '"epochs": 4'))
    before = snapshot(run_copy)
    with pytest.raises(AlteredError, match=r"run\.json .* not known with what settings .* --config"):
        pretrain(Request(run=run_copy, force=True, options={"seed": 6}))
    assert snapshot(run_copy) == before
    pretrain(replace(smoke(run_copy), force=True))
    assert "Only --config says with what settings to train again." in caplog.text
