import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.integrity import seal
from lora_mnist.rundir import Run

from .conftest import flip_bit


def test_a_run_lies_as_designed(finished_run):
    found = {str(file.relative_to(finished_run)) for file in finished_run.rglob("*") if file.is_file()}
    outcome = {"history.csv", "evaluation.json", "logits.safetensors", "manifest.json"}
    base = {f"base/{name}" for name in outcome | {"model.safetensors", "run.json"}}
    adapter = {"adapter_config.json", "adapter_model.safetensors", "finetune.json", "analysis.json"}
    name = Run(finished_run).adapter_names()[0]
    assert found == {"run.json"} | base | {f"adapters/{name}/{file}" for file in outcome | adapter}


def test_the_base_is_rebuilt_from_its_checkpoint_alone(run_copy):
    (run_copy / "run.json").unlink()
    model, sealed = Run(run_copy).load_base()
    assert model.hidden == (24, 16)
    assert seal(model.state_dict()) == sealed


def test_a_base_whose_tensors_are_not_the_sealed_ones_is_refused(run_copy):
    path = run_copy / "base" / "model.safetensors"
    flip_bit(path)
    with pytest.raises(AlteredError, match=r"tensor linear\d\.\w+ is not the sealed one"):
        Run(run_copy).load_base()


def test_an_adapter_on_another_base_is_refused_and_the_first_tensor_named(run_copy):
    run = Run(run_copy)
    base, _ = run.load_base()
    with torch.no_grad():
        base.linear2.bias[0] += 1
    with pytest.raises(RunError, match=r"another base: tensor linear2\.bias differs"):
        run.load_adapter(base, seal(base.state_dict()), run.adapter_names()[0])


def test_an_adapter_without_a_seal_is_refused(run_copy, adapter):
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path), path)
    run = Run(run_copy)
    with pytest.raises(RunError, match="which base"):
        run.load_adapter(*run.load_base(), adapter.name)


def test_the_copy_at_the_top_follows_the_base(run_copy):
    record = (run_copy / "base" / "run.json").read_bytes()
    assert (run_copy / "run.json").read_bytes() == record
    (run_copy / "run.json").write_text("edited")
    Run(run_copy).tidy()
    assert (run_copy / "run.json").read_bytes() == record


def test_a_killed_replacement_is_finished_by_the_next_writer(run_copy, adapter):
    """The new base is in place, the process died before it removed the old adapters."""
    run = Run(run_copy)
    record = run.record()
    stranger = shutil.copytree(adapter, adapter.with_name("stranger"))
    evaluation = json.loads((stranger / "evaluation.json").read_text())
    (stranger / "evaluation.json").write_text(json.dumps({**evaluation, "base_seal": "of a third base"}))
    new = {**record, "base_seal": "of the new base", "replaced_seal": record["base_seal"]}
    (run_copy / "base" / "run.json").write_text(json.dumps(new))
    assert run.adapter_names() == ["stranger"]  # readers go past it
    run.tidy()
    assert not adapter.exists()
    assert stranger.exists()


def test_an_adapter_between_its_two_renames_is_not_lost(run_copy, adapter):
    adapter.rename(adapter.with_name(f".{adapter.name}.old"))
    assert Run(run_copy).adapter_names() == [adapter.name]


def test_adapters_come_oldest_first_and_only_whole_ones(run_copy, adapter):
    younger = adapter.with_name("a-younger-one")
    shutil.copytree(adapter, younger)
    (younger / "manifest.json").touch()
    adapter.with_name("half").mkdir()
    assert Run(run_copy).adapter_names() == [adapter.name, younger.name]


def test_what_was_stored_comes_back(finished_run):
    run = Run(finished_run)
    name = run.adapter_names()[0]
    for which in (None, name):
        logits = run.logits(which)
        assert set(logits) == {"val", "test"}
        assert logits["test"].shape == (run.evaluation(which)["splits"]["test"]["count"], 10)
    assert len(run.losses(name)) == 20
    header = (run.adapter(name) / "history.csv").read_text().splitlines()[0]
    assert header == "step,learning_rate,loss"


def test_json_on_disk_has_no_nan(finished_run):
    for file in finished_run.rglob("*.json"):
        assert json.loads(file.read_text(), parse_constant=pytest.fail)


def test_a_model_with_another_shape_does_not_take_the_adapter(run_copy, adapter):
    run = Run(run_copy)
    base, sealed = run.load_base()
    other = copy.deepcopy(base)
    other.linear1 = torch.nn.Linear(784, 25)
    with pytest.raises(RunError, match=r"linear1\.lora_B"):
        run.load_adapter(other, sealed, adapter.name)
