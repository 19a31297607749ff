"""A whole network ↔ one safetensors file from which alone it can be rebuilt: weights, architecture, fingerprint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.files import LARGEST_WEIGHTS, open_regular, read_regular, write_file
from lora_mnist.lora.fingerprint import Fingerprint, compute_fingerprint, first_difference
from lora_mnist.training.model import MLP

ABOUT = "lora_mnist"  # one entry: safetensors writes several in random order, and equal networks are to be equal files
RESTORE = "Restore it from a copy, or make it again with --force."


def save_network(path: Path, model: MLP) -> None:
    """Write `model`, fp32, with its fingerprint. Raises DiskError."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = {
        "architecture": {"class": "MLP", "hidden": model.hidden},
        "fingerprint": compute_fingerprint(tensors).to_text(),
    }
    write_file(path, save(tensors, {ABOUT: json.dumps(about)}))


def load_network(path: Path, device: torch.device | str = "cpu") -> tuple[MLP, Fingerprint]:
    """The network in `path`, and its fingerprint.

    Raises:
        RunError: it is missing or damaged.
        AlteredError: its tensors are not the recorded ones.
    """
    tensors, metadata = _read(path)
    try:
        about = json.loads(metadata[ABOUT])
        hidden, text = about["architecture"]["hidden"], about["fingerprint"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path} does not say what network it holds.", RESTORE) from error
    stored = Fingerprint.from_text(text)
    if name := first_difference(stored, compute_fingerprint(tensors)):
        raise AlteredError(f"{path}: tensor {name} is not the recorded one.", RESTORE)
    try:
        if _shapes(tensors) != _shapes_of(hidden):  # before memory is taken for them
            raise RuntimeError(f"its tensors are not those of the layers {hidden!r}")
        model = MLP(hidden)
        model.load_state_dict(tensors)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".:")  # torch's goes on with frames of C++
        raise RunError(f"{path} holds no network of ours: {reason}.", RESTORE) from error
    return model.to(device), stored


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors by name. Raises DiskError."""
    write_file(path, save(tensors))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read what `save_tensors` wrote. Raises RunError if it is missing or damaged."""
    return _read(path)[0]


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _shapes_of(hidden: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a network with such layers. Raises TypeError or RuntimeError if there can be none."""
    with torch.device("meta"):
        return _shapes(MLP(hidden).state_dict())


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        open_regular(path).close()  # safetensors would wait for a pipe
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return dict(sorted(load(read_regular(path, LARGEST_WEIGHTS)).items())), metadata  # from a random order
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not know
        raise RunError(f"{path} cannot be read: {error}.", RESTORE) from error
