import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.files import LARGEST_DOCUMENT
from lora_mnist.lora.fingerprint import compute_fingerprint
from lora_mnist.runs.checkpoint import load_network, load_tensors, save_network, save_tensors
from lora_mnist.training.model import MLP

from ..conftest import flip_bit


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = MLP((12, 11))
    save_network(tmp_path / "model.safetensors", model)
    return model, tmp_path / "model.safetensors"


def test_a_network_is_rebuilt_from_its_file_alone(saved):
    model, path = saved
    again, fingerprint = load_network(path)
    assert again.hidden == (12, 11)
    assert sealed == compute_fingerprint(again.state_dict()) == compute_fingerprint(model.state_dict())
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["lora_mnist"])
    assert about == {"architecture": {"class": "MLP", "hidden": [12, 11]}, "fingerprint": fingerprint.to_text()}


def test_equal_networks_are_equal_files(saved, tmp_path):
    model, path = saved
    save_network(tmp_path / "again.safetensors", model)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_tensors_that_are_not_the_sealed_ones_are_refused_by_name(saved):
    flip_bit(saved[1])
    with pytest.raises(AlteredError, match=r"tensor linear\d\.\w+ is not the sealed one"):
        load_network(saved[1])


def test_a_damaged_seal_is_an_altered_file(saved):
    model, path = saved
    about = {
        "architecture": {"hidden": [12, 11]},
        "fingerprint": compute_fingerprint(model.state_dict()).to_text().replace("1", "2"),
    }
    save_file(load_file(path), path, {"lora_mnist": json.dumps(about)})
    with pytest.raises(AlteredError, match="fingerprint is damaged"):
        load_network(path)


@pytest.mark.parametrize("damage", ["empty", "truncated", "no metadata", "no architecture", "other shape", "missing"])
def test_a_file_that_holds_no_network_of_ours_is_refused(saved, damage):
    model, path = saved
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "missing":
        path.unlink()
    else:
        about = {"architecture": {"hidden": [12, 10]}, "fingerprint": compute_fingerprint(model.state_dict()).to_text()}
        if damage == "no architecture":
            del about["architecture"]
        save_file(load_file(path), path, None if damage == "no metadata" else {"lora_mnist": json.dumps(about)})
    with pytest.raises(RunError, match=r"model\.safetensors"):
        load_network(path)


def test_logits_come_back_bit_for_bit(tmp_path):
    logits = {"val": torch.randn(3, 10), "test": torch.randn(4, 10)}
    save_tensors(tmp_path / "logits", logits)
    assert all(torch.equal(part, logits[split]) for split, part in load_tensors(tmp_path / "logits").items())


def test_tensors_may_be_larger_than_any_document(tmp_path):
    save_tensors(tmp_path / "large", {"a": torch.zeros(LARGEST_DOCUMENT, dtype=torch.uint8)})
    assert load_tensors(tmp_path / "large")["a"].numel() == LARGEST_DOCUMENT
