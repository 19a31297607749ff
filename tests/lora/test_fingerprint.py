"""SHA-256 over every tensor: what it notices, what it says of a difference, and how it is stored."""

import hashlib
import json

import pytest
import torch
from torch import nn

from lora_mnist.errors import DamagedError
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


def test_a_plain_fingerprint_has_neither_casts_nor_buffers(network):
    fingerprint = compute_fingerprint(network.state_dict())
    assert set(json.loads(fingerprint.to_text())) == {"sha256", "tensors"}
    assert set(differences(fingerprint, compute_fingerprint(network.bfloat16().state_dict())).values()) == {"other"}
