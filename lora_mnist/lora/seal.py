"""Seal a set of tensors, and tell exactly how two sets differ."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lora_mnist.errors import DamagedError


@dataclass(frozen=True)
class Seal:
    """SHA-256 of every tensor (over name, dtype, shape and raw bytes), and one over all of them."""

    tensors: dict[str, str]

    @property
    def sha256(self) -> str:
        """Of all the tensors' together."""
        return hashlib.sha256(json.dumps(self.tensors, sort_keys=True).encode()).hexdigest()

    def to_text(self) -> str:
        """As it rides in the metadata of a safetensors file."""
        return json.dumps({"sha256": self.sha256, "tensors": self.tensors})

    @classmethod
    def from_text(cls, text: str) -> "Seal":
        """Raises DamagedError if `text` is not a seal, or not a whole one."""
        try:
            document = json.loads(text)
            seal = cls(dict(document["tensors"]))
            whole = seal.sha256 == document["sha256"]
        except (ValueError, TypeError, KeyError, RecursionError):
            whole = False
        if not whole:
            raise DamagedError("The stored seal is damaged.", "Restore the file it came from.")
        return seal


def seal(tensors: Mapping[str, torch.Tensor]) -> Seal:
    """Seal tensors of any dtype and device by name."""
    return Seal({name: _digest(name, tensor) for name, tensor in sorted(tensors.items())})


def first_difference(one: Seal, other: Seal) -> str | None:
    """Name of the first tensor, in alphabetical order, that is not the same in `one` and `other`; None if all are."""
    names = sorted(one.tensors.keys() | other.tensors.keys())
    return next((name for name in names if one.tensors.get(name) != other.tensors.get(name)), None)


def changed_bytes(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Number of differing bytes of every tensor that is not the same in `before` and `after`, by name; -1 where name,
    dtype or shape differ."""
    changed = {}
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
            changed[name] = -1
        elif count := int((_bytes(one) != _bytes(other)).sum()):
            changed[name] = count
    return changed


def _digest(name: str, tensor: torch.Tensor) -> str:
    head = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
    return hashlib.sha256(head + b"\0" + _bytes(tensor).numpy().tobytes()).hexdigest()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
