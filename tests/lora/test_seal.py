import hashlib
import json

import pytest
import torch

from lora_mnist.errors import DamagedError
from lora_mnist.lora.seal import Seal, changed_bytes, first_difference, seal


def tensors():
    return {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1, 2], dtype=torch.int16)}


def test_the_seal_is_sha256_over_name_dtype_shape_and_bytes():
    expected = hashlib.sha256(b'["a", "torch.int16", [2]]\0' + b"\1\0\2\0").hexdigest()
    assert seal(tensors()).tensors["a"] == expected


@pytest.mark.parametrize("change", ["bit", "sign of zero", "shape", "dtype", "name", "missing"])
def test_the_seal_notices_every_change_and_names_the_tensor(change):
    other = tensors()
    if change == "bit":
        other["b"].view(torch.uint8)[1, 5] ^= 1
    elif change == "sign of zero":
        other["b"][0, 0] = -0.0
    elif change == "shape":
        other["b"] = other["b"].view(3, 2)
    elif change == "dtype":
        other["b"] = other["b"].view(torch.int32)
    elif change == "name":
        other["c"] = other.pop("b")
    else:
        del other["b"]
    assert seal(other).sha256 != seal(tensors()).sha256
    assert first_difference(seal(tensors()), seal(other)) == "b"
    assert "b" in changed_bytes(tensors(), other)


def test_equal_tensors_have_equal_seals_in_any_order_and_layout():
    other = dict(reversed(tensors().items()))
    other["b"] = other["b"].T.contiguous().T
    assert seal(other) == seal(tensors())
    assert first_difference(seal(other), seal(tensors())) is None
    assert changed_bytes(other, tensors()) == {}


def test_changed_bytes_are_counted():
    other = tensors()
    other["b"].view(torch.uint8)[0, :3] ^= 255
    assert changed_bytes(tensors(), other) == {"b": 3}


def test_a_seal_survives_as_text_and_a_damaged_one_is_refused():
    text = seal(tensors()).to_text()
    assert Seal.from_text(text) == seal(tensors())
    document = json.loads(text)
    document["tensors"]["a"] = "0" * 64
    for damaged in (json.dumps(document), "", "[]", "{}", "null"):
        with pytest.raises(DamagedError):
            Seal.from_text(damaged)
