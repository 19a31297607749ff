"""`adapter_model.safetensors`: the keys under which PEFT stores an adapter's tensors, read strictly."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import nn

from lora_mnist.errors import AdapterError
from lora_mnist.files import LARGEST_WEIGHTS, open_regular, read_regular
from lora_mnist.lora.adapters import base_tensors
from lora_mnist.lora.config import DTYPES, LoRAConfig
from lora_mnist.lora.targets import is_in
from lora_mnist.lora.update import LoRAUpdate

PREFIX = "base_model.model."
PARTS = (".lora_A.weight", ".lora_B.weight")


def factors_of(updates: Mapping[str, LoRAUpdate]) -> dict[str, torch.Tensor]:
    """A and B of every layer, by their keys. Not copies."""
    return {
        f"{PREFIX}{path}.{part}.weight": getattr(update, part)
        for path, update in updates.items()
        for part in ("lora_A", "lora_B")
    }


def tensors_of_copies(copies: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The tensors of modules that are trained whole, by their keys. Not copies of them."""
    return {f"{PREFIX}{path}.{key}": part for path, copy in copies.items() for key, part in copy.state_dict().items()}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All of a safetensors file, by key. Raises AdapterError."""
    try:
        return dict(sorted(load(read_regular(path, LARGEST_WEIGHTS)).items()))  # it gives them in random order
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not know
        raise AdapterError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Of a safetensors file. Raises AdapterError."""
    try:
        open_regular(path).close()  # safetensors would wait for a pipe
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error


def dtype_of(tensors: Mapping[str, torch.Tensor]) -> torch.dtype | None:
    """In which A and B are to be kept: fp64 if one of them is stored so, or else LoRAConfig's default."""
    wide = any(tensor.dtype == torch.float64 for key, tensor in tensors.items() if key.endswith(PARTS))
    return torch.float64 if wide else None


def require_ranks(path: Path, tensors: Mapping[str, torch.Tensor], config: LoRAConfig) -> None:
    """Before memory is taken for them: the tensors are there and have the ranks that the config says. AdapterError."""
    for layer in config.targets:
        rank = config.rank_pattern.get(layer, config.rank)
        for part in PARTS:
            if (key := f"{PREFIX}{layer}{part}") not in tensors:
                raise AdapterError(f"{path} lacks {key}.", "Restore the adapter.")
        key = f"{PREFIX}{layer}{PARTS[0]}"
        if tensors[key].shape[:1] != (rank,):  # (rank, in)
            raise AdapterError(f"{path}: {key} is {tuple(tensors[key].shape)}, not of rank {rank}.", "Restore it.")


def take_out_the_base(
    path: Path, tensors: dict[str, torch.Tensor], model: nn.Module, whole: Iterable[str], check: bool
) -> None:
    """PEFT stores an output layer that it adapts, and embeddings, with the adapter: they must be the base's."""
    base = base_tensors(model)
    for key in list(tensors):
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if key.startswith(PREFIX) and name in base and not is_in(name, whole):
            stored, own = tensors.pop(key), base[name]
            if check and not (stored.shape == own.shape and torch.equal(stored.to(own.dtype), own.cpu())):
                raise AdapterError(f"{path} was made on another base: tensor {name} differs.", "Use it with its own.")


def copy_in(path: Path, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Copy the stored tensors to `wanted`, strictly: every one must be there, fit and be finite, and no other."""
    for trouble, keys in (
        ("lacks", wanted.keys() - tensors.keys()),
        ("should not have", tensors.keys() - wanted.keys()),
    ):
        if keys:
            raise AdapterError(f"{path} {trouble} {', '.join(sorted(keys))}.", "Restore the adapter.")
    for key, place in wanted.items():
        stored = tensors[key]
        known = stored.dtype in DTYPES if place.is_floating_point() else stored.dtype == place.dtype
        if stored.shape != place.shape or not known:
            found = f"{tuple(stored.shape)} of {stored.dtype}"
            raise AdapterError(f"{path}: {key} is {found}, not {tuple(place.shape)} floats.", "Restore the adapter.")
        if not stored.to(place.dtype).isfinite().all():
            raise AdapterError(f"{path}: {key} is not finite in {place.dtype}.", "Restore the adapter.")
        with torch.no_grad():
            place.copy_(stored)
