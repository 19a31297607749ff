"""Fingerprint a set of tensors, and tell exactly how two sets differ."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from lora_mnist.errors import DamagedError
from lora_mnist.lora.config import DTYPES
from lora_mnist.lora.layer import gather_shards, require_numbers
from lora_mnist.lora.model import base_state, unsaved_buffers


@dataclass(frozen=True)
class Fingerprint:
    """SHA-256 of every tensor (over name, dtype, shape and raw bytes), by name, and one over all of them.

    The others are empty unless `fingerprint_model` made it.
    """

    tensors: dict[str, str]
    casts: dict[str, dict[str, str]] = field(default_factory=dict)  # of the floating tensors in other dtypes, by dtype
    buffers: tuple[str, ...] = ()  # names of the tensors that are no parameters, as running statistics are
    unsaved: dict[str, str] = field(default_factory=dict)  # of the buffers that no state dict has, by name

    @property
    def sha256(self) -> str:
        """Of all the tensors' together."""
        return _sha256(self.tensors)

    def to_text(self) -> str:
        """As it rides in the metadata of a safetensors file."""
        document: dict[str, object] = {"sha256": self.sha256, "tensors": self.tensors}
        if self.casts or self.buffers or self.unsaved:
            more = {"casts": self.casts, "buffers": list(self.buffers)}
            more |= {"unsaved": self.unsaved} if self.unsaved else {}
            document |= {**more, "more_sha256": _sha256(more)}
        return json.dumps(document)

    @classmethod
    def from_text(cls, text: str) -> "Fingerprint":
        """Raises DamagedError if `text` is not a fingerprint, or not a whole one."""
        try:
            document = json.loads(text)
            casts, unsaved = dict(document.get("casts", {})), dict(document.get("unsaved", {}))
            fingerprint = cls(dict(document["tensors"]), casts, tuple(document.get("buffers", [])), unsaved)
            if json.loads(fingerprint.to_text()) == document:
                return fingerprint
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        raise DamagedError("The stored fingerprint is damaged.", "Restore the file it came from.")


def compute_fingerprint(tensors: Mapping[str, torch.Tensor]) -> Fingerprint:
    """Fingerprint tensors of any dtype and device by name."""
    return Fingerprint({name: _digest(name, tensor) for name, tensor in sorted(tensors.items())})


def fingerprint_model(model: nn.Module) -> Fingerprint:
    """Fingerprint the base of a model so that it is recognised in other dtypes, and its buffers apart from its weights.

    It hashes every tensor once for each of four float dtypes. A UserWarning names what it cannot hash.
    """
    state = dict(sorted(base_state(model).items()))
    tensors = {name: value.detach() for name, value in state.items() if isinstance(value, torch.Tensor)}
    buffers = tuple(name for name in tensors if not isinstance(state[name], nn.Parameter))
    if packed := [name for name, value in state.items() if name not in tensors and value is not None]:
        warnings.warn(f"The fingerprint leaves out what is no tensor: {', '.join(packed)}.", stacklevel=2)
    digests: dict[str, str] = {}
    casts: dict[str, dict[str, str]] = {str(dtype).removeprefix("torch."): {} for dtype in DTYPES}
    for name, part in tensors.items():
        tensor = gather_shards(part)  # one after another, so that a sharded model is never whole
        digests[name] = _digest(name, tensor)
        # the dtype of a quantised tensor is only what it stands for
        if tensor.is_floating_point() and not hasattr(tensor, "__tensor_flatten__"):
            for known, dtype in zip(casts.values(), DTYPES, strict=True):
                if tensor.dtype != dtype:
                    known[name] = _digest(name, tensor.to(dtype))
    return Fingerprint(digests, casts, buffers, compute_fingerprint(unsaved_buffers(model)).tensors)


def differences(fingerprint: Fingerprint, found: Fingerprint) -> dict[str, str]:
    """What is not the same in `found`, by name: `other`, or, where `fingerprint_model` made `fingerprint`, `buffer` or
    `cast to bfloat16` and the like.
    """
    different = {}
    for name in sorted(fingerprint.tensors.keys() | found.tensors.keys()):
        digest = found.tensors.get(name)
        if digest != fingerprint.tensors.get(name):
            casts = (dtype for dtype, digests in fingerprint.casts.items() if digests.get(name, "") == digest)
            kind = "buffer" if name in fingerprint.buffers and digest else "other"
            different[name] = next((f"cast to {dtype}" for dtype in casts), kind)
    return different


def first_difference(one: Fingerprint, other: Fingerprint) -> str | None:
    """Name of the first tensor, in alphabetical order, that is not the same in `one` and `other`; None if all are."""
    return next(iter(differences(one, other)), None)


def changed_bytes(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Number of differing bytes of every tensor that is not the same in `before` and `after`, by name; -1 where name,
    dtype or shape differ."""
    changed = {}
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
            changed[name] = -1
            continue
        one, other = _bytes(one), _bytes(other)
        if not torch.equal(one, other):  # unlike `!=`, it allocates nothing
            changed[name] = int(torch.count_nonzero(one != other))
    return changed


def _digest(name: str, tensor: torch.Tensor) -> str:
    require_numbers(name, tensor)
    head = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
    digest = hashlib.sha256(head + b"\0")
    digest.update(_bytes(tensor).numpy().data)
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    tensor = gather_shards(tensor.detach())
    if hasattr(tensor, "__tensor_flatten__"):  # a quantised one: what it consists of
        return torch.cat([_bytes(getattr(tensor, part)) for part in tensor.__tensor_flatten__()[0]])
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return tensor.cpu().contiguous().view(-1).view(torch.uint8)


def _sha256(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
