"""SHA-256 over every tensor: what it notices, what it says of a difference, and how it is stored."""

import copy
import hashlib
import json

import pytest
import torch
from torch import nn

from lora_mnist.errors import DamagedError
from lora_mnist.lora import LoRAConfig, inject, load_adapter, save_adapter
from lora_mnist.lora.fingerprint import (
    Fingerprint,
    changed_bytes,
    compute_fingerprint,
    differences,
    fingerprint_model,
    first_difference,
)


def tensors():
    return {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1, 2], dtype=torch.int16)}


def test_the_fingerprint_is_sha256_over_name_dtype_shape_and_bytes():
    expected = hashlib.sha256(b'["a", "torch.int16", [2]]\0' + b"\1\0\2\0").hexdigest()
    assert compute_fingerprint(tensors()).tensors["a"] == expected


CHANGES = {
    "bit": lambda tensors: tensors["b"].view(torch.uint8)[1, 5].bitwise_xor_(1),
    "sign of zero": lambda tensors: tensors["b"][0, 0].fill_(-0.0),
    "shape": lambda tensors: tensors.update(b=tensors["b"].view(3, 2)),
    "dtype": lambda tensors: tensors.update(b=tensors["b"].view(torch.int32)),
    "name": lambda tensors: tensors.update(c=tensors.pop("b")),
    "missing": lambda tensors: tensors.pop("b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_notices_every_change_and_names_the_tensor(change):
    CHANGES[change](other := tensors())
    assert compute_fingerprint(other).sha256 != compute_fingerprint(tensors()).sha256
    assert first_difference(compute_fingerprint(tensors()), compute_fingerprint(other)) == "b"
    changed = changed_bytes(tensors(), other)
    assert changed["b"] > 0 if change in ("bit", "sign of zero") else changed["b"] == -1


def test_equal_tensors_have_equal_fingerprints_in_any_order_and_layout():
    other = dict(reversed(tensors().items()))
    other["b"] = other["b"].T.contiguous().T
    assert compute_fingerprint(other) == compute_fingerprint(tensors())
    assert first_difference(compute_fingerprint(other), compute_fingerprint(tensors())) is None
    assert changed_bytes(other, tensors()) == {}


def test_changed_bytes_are_counted():
    other = tensors()
    other["b"].view(torch.uint8)[0, :3] ^= 255
    assert changed_bytes(tensors(), other) == {"b": 3}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_a_fingerprint_survives_as_text_and_a_damaged_one_is_refused(network):
    plain, fingerprint = compute_fingerprint(network.state_dict()), fingerprint_model(network)
    assert fingerprint.sha256 == plain.sha256
    damaged = ["", "[]", "{}", "null"]
    for one, part in ((plain, "tensors"), (fingerprint, "tensors"), (fingerprint, "casts")):
        assert Fingerprint.from_text(one.to_text()) == one
        document = json.loads(one.to_text())
        digests = document[part] if part == "tensors" else document[part]["bfloat16"]
        digests["0.weight"] = "0" * 64
        damaged.append(json.dumps(document))
    for text in damaged:
        with pytest.raises(DamagedError):
            Fingerprint.from_text(text)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_same_weights_in_another_dtype_are_known_for_that(network, dtype):
    fingerprint = fingerprint_model(network)
    found = differences(fingerprint, compute_fingerprint(network.to(dtype).state_dict()))
    assert found.pop("0.weight") == f"cast to {str(dtype).removeprefix('torch.')}"
    assert set(found.values()) == {f"cast to {str(dtype).removeprefix('torch.')}"}
    with torch.no_grad():
        network[0].weight[1, 1] *= 1.5
    assert differences(fingerprint, compute_fingerprint(network.state_dict()))["0.weight"] == "other"


def test_running_statistics_are_distinguished_from_weights(network):
    fingerprint = fingerprint_model(network)
    network(torch.randn(5, 4))
    assert differences(fingerprint, compute_fingerprint(network.state_dict())) == {
        "1.num_batches_tracked": "buffer",
        "1.running_mean": "buffer",
        "1.running_var": "buffer",
    }
    found = network.state_dict()
    del found["1.running_mean"]
    assert differences(fingerprint, compute_fingerprint(found))["1.running_mean"] == "other"  # missing is not moved


class Odd(nn.Module):
    """A base with what a plain state dict lacks."""

    def __init__(self, extra=None):
        super().__init__()
        self.fc, self.extra = nn.Linear(4, 3), extra
        self.register_buffer("unsaved", torch.ones(3), persistent=False)
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        for dtype in (torch.complex64, torch.float8_e4m3fn, torch.bool, torch.uint16):
            self.register_buffer(str(dtype)[6:], torch.ones(2).to(dtype))

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


@pytest.mark.parametrize("name", ["unsaved", "sparse", "complex64", "float8_e4m3fn", "bool", "uint16", "_extra_state"])
def test_buffers_of_every_kind_are_known_also_if_no_state_dict_has_them(tmp_path, name):
    torch.manual_seed(0)
    model = Odd(extra=torch.ones(2))
    other = copy.deepcopy(model)
    inject(model, "a", LoRAConfig(rank=2))
    save_adapter(tmp_path, model, "a")
    assert (
        Fingerprint.from_text(fingerprint_model(model).to_text())
        == fingerprint_model(model)
        == fingerprint_model(other)
    )
    load_adapter(tmp_path, copy.deepcopy(other), "a")  # a warning is an error in the tests
    if name == "_extra_state":
        other.extra = torch.zeros(2)
    else:
        setattr(other, name, torch.zeros_like(getattr(other, name)))
    with pytest.warns(UserWarning, match=rf"other buffers: {name} differs"):
        load_adapter(tmp_path, other, "a")


def test_what_is_no_tensor_is_named_where_it_is_left_out():
    with pytest.warns(UserWarning, match="leaves out what is no tensor: _extra_state"):
        fingerprint_model(Odd(extra={"packed": 1}))


def test_a_plain_fingerprint_has_neither_casts_nor_buffers(network):
    fingerprint = compute_fingerprint(network.state_dict())
    assert set(json.loads(fingerprint.to_text())) == {"sha256", "tensors"}
    assert set(differences(fingerprint, compute_fingerprint(network.bfloat16().state_dict())).values()) == {"other"}
