"""An adapter ↔ `adapter_config.json` + `adapter_model.safetensors`, as PEFT writes and reads them.

PEFT ignores the metadata of a safetensors file, so the fingerprint of the base rides there.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from lora_mnist.errors import AdapterError, DiskError, LoRAError
from lora_mnist.lora.config import DTYPES, LoRAConfig
from lora_mnist.lora.fingerprint import Fingerprint, compute_fingerprint, differences, fingerprint_model
from lora_mnist.lora.layer import LoRAUpdate
from lora_mnist.lora.model import attach, base_tensors, copies_of, modules_to_train, remove, updates_of
from lora_mnist.lora.peft_config import config_of, document_of, is_saved_whole, read_bytes, read_document
from lora_mnist.lora.targets import is_in, linear_layers, own_modules

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_adapter(folder: Path | str, model: nn.Module, name: str, base_fingerprint: Fingerprint | None = None) -> None:
    """Write adapter `name` of `model` so that PEFT, and `load_adapter`, read it onto the same base.

    A and B are stored in fp32, or in fp64 if they are; modules that it trains whole as they are. A strength is not
    stored: it belongs to the use of an adapter. Where PEFT goes past its own adapters, it goes past this one: at the
    second place of a layer that occurs twice, and where torch reads a layer's weight instead of calling it (see
    `LoRALinear`).

    Args:
        base_fingerprint: of the base; None makes it now, by `fingerprint_model`.

    Raises:
        LoRAError: there is no such adapter, it is not finite, or a name of what it trains whole means more to PEFT.
        DiskError: the disk refused; what was in the folder before is still there.
    """
    model = _unwrapped(model)
    folder, updates, copies = Path(folder), updates_of(model, name), copies_of(model, name)
    document = stored_config(model, name)
    tensors = {
        key: part.detach().to(torch.promote_types(part.dtype, torch.float32)).cpu().contiguous()
        for key, part in factors_of(updates).items()
    } | {key: part.detach().cpu().contiguous().clone() for key, part in tensors_of_copies(copies).items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise LoRAError(f"Adapter {name!r} has NaN or infinity in it.", "Train it with a lower learning rate.")
    base_fingerprint = base_fingerprint or fingerprint_model(model)
    weights = _with_metadata(save(tensors), base_fingerprint)
    contents = {CONFIG: (json.dumps(document, indent=1) + "\n").encode(), WEIGHTS: weights}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as fresh:
            for name, content in contents.items():  # all are written before the first is replaced
                with open(Path(fresh, name), "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            (folder / WEIGHTS).unlink(missing_ok=True)  # or old weights might be read beside a new config
            for name in contents:
                Path(fresh, name).replace(folder / name)
    except OSError as error:
        cause = f"Cannot write {folder}: {error.strerror or error}."
        raise DiskError(cause, "Free space or choose another folder; what was in this one is kept.") from error


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a handle of DataParallel, DDP or torch.compile, whose prefix is not part of its names."""
    while True:
        children = dict(model.named_children())
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = children["module"]
        elif list(children) == ["_orig_mod"]:
            model = children["_orig_mod"]
        else:
            return model


def _with_metadata(content: bytes, base_fingerprint: Fingerprint) -> bytes:
    """A safetensors file with `format`, which accelerate asks for, and the fingerprint of the base in its metadata.

    safetensors itself writes several entries in random order, and equal adapters are to be equal files.
    """
    length = int.from_bytes(content[:8], "little")
    metadata = {"base_fingerprint": base_fingerprint.to_text(), "format": "pt"}
    header = json.dumps({"__metadata__": metadata, **json.loads(content[8 : 8 + length])}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def stored_config(model: nn.Module, name: str) -> dict[str, Any]:
    """What `save_adapter` writes to adapter_config.json. Raises LoRAError as it does."""
    modules = list(own_modules(model, every_name=True))
    return document_of(updates_of(model, name), list(copies_of(model, name)), modules)


def load_adapter(
    folder: Path | str,
    model: nn.Module,
    name: str,
    base_fingerprint: Fingerprint | None = None,
    allow_unverified: bool = False,
    base: Literal["same", "any"] = "same",
) -> dict[str, LoRAUpdate]:
    """Add the adapter in `folder` to `model` as `name`, at strength 1. If it raises, the model is as it was.

    The base may be in another dtype than it was trained in. If only its buffers differ, as running statistics do after
    training, a UserWarning says so. What the adapter trained whole need not be the same.

    Args:
        base_fingerprint: of `model`'s base; None makes it now.
        allow_unverified: take an adapter that does not say what base it was trained on, as PEFT's own do not.
        base: `any` takes the adapter whatever base it was trained on, with a UserWarning.

    Returns:
        The updates by layer.

    Raises:
        AdapterError: a file is missing or damaged, does not fit, uses an option that is not implemented, or was made on
            another base; the first tensor that differs is named.
        LoRAError: as `inject` does for the name, and for what is trained whole.
    """
    folder, model = Path(folder), _unwrapped(model)
    stored, document = load_fingerprint(folder), read_document(folder / CONFIG)
    whole = modules_to_train(model, [path for path in own_modules(model) if is_saved_whole(document, path)])
    if base == "any":
        warnings.warn(f"Whether {folder} was trained on this base is not checked.", UserWarning, stacklevel=2)
    elif stored is not None:
        _require_base(folder, stored, base_fingerprint or compute_fingerprint(base_tensors(model)), whole)
    elif not allow_unverified:
        _refuse_unverified(folder)
    layers = [path for path in linear_layers(model) if not is_in(path, whole)]
    tensors = read_tensors(folder / WEIGHTS)
    config = replace(config_of(folder / CONFIG, document, layers), dtype=dtype_of(tensors))
    if stored is None:
        _refuse_what_peft_adapts_once(folder, model, config)
    configs = config.of_layers([path for path in layers if path in config.targets])
    require_ranks(folder / WEIGHTS, tensors, configs)
    take_out_the_base(folder / WEIGHTS, tensors, model, whole, any_base=base == "any")
    return _attach_filled(folder / WEIGHTS, tensors, model, name, configs, whole)


def _attach_filled(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module,
    name: str,
    configs: Mapping[str, LoRAConfig],
    whole: Iterable[str],
) -> dict[str, LoRAUpdate]:
    """`attach`, and copy in the tensors that were read from `path`. If it raises, the model is as it was."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # its own generator: what it draws is overwritten
    updates = attach(model, name, configs, torch.Generator(), whole)
    try:
        copy_in(path, tensors, factors_of(updates) | tensors_of_copies(copies_of(model, name)))
    except BaseException:
        remove(model, name)
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        raise
    return updates


def load_config(folder: Path, layers: Iterable[str]) -> LoRAConfig:
    """Read adapter_config.json, with PEFT's patterns resolved to the names in `layers`, those of the linear layers.

    Raises:
        AdapterError: it is missing, damaged, finds no layer, or uses an option of PEFT's that is not implemented here.
    """
    return config_of(folder / CONFIG, read_document(folder / CONFIG), layers)


def load_fingerprint(folder: Path | str) -> Fingerprint | None:
    """The fingerprint of the base that the adapter was trained on, if it carries one.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    text = read_metadata(Path(folder) / WEIGHTS).get("base_fingerprint")
    return None if text is None else Fingerprint.from_text(text)


def _refuse_unverified(folder: Path) -> None:
    raise AdapterError(
        f"{folder / WEIGHTS} does not say which base it was trained on.",
        "Pass allow_unverified=True if you know that it was this one.",
    )


def _require_base(folder: Path, stored: Fingerprint, found: Fingerprint, whole: Iterable[str]) -> None:
    """Other tensors of the base must be those that it was trained on than those it brings along, in `whole`."""
    different = {name: kind for name, kind in differences(stored, found).items() if not is_in(name, whole)}
    for name, kind in different.items():
        if kind == "other":
            raise AdapterError(
                f"The adapter in {folder} was trained on another base: tensor {name} differs.",
                "Use it with the base it came from, or train it again on this one.",
            )
    if buffers := [name for name, kind in different.items() if kind == "buffer"]:
        warnings.warn(
            f"The adapter in {folder} was trained on these weights, but other buffers: {buffers[0]} differs.",
            UserWarning,
            stacklevel=3,
        )


def _refuse_what_peft_adapts_once(folder: Path, model: nn.Module, config: LoRAConfig) -> None:
    """PEFT adapts a layer that occurs twice at the first place only; here it is one layer."""
    layers = linear_layers(model)
    everywhere = [id(layer) for layer in linear_layers(model, every_name=True).values()]
    for target in config.targets:
        if everywhere.count(id(layers[target])) > 1:
            raise AdapterError(
                f"{folder}: {target} occurs twice in the model, and PEFT adapts only its first place.",
                "Give the model two layers there.",
            )


# The tensors, by PEFT's keys ------------------------------------------------------------------------------------------

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
        return dict(sorted(load(read_bytes(path)).items()))  # it gives them in random order
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not know
        raise AdapterError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Of a safetensors file. Raises AdapterError."""
    try:
        if path.exists() and not path.is_file():  # safetensors would wait for a pipe
            raise AdapterError(f"{path} is not a regular file.", "Restore the adapter.")
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error


def dtype_of(tensors: Mapping[str, torch.Tensor]) -> torch.dtype | None:
    """In which A and B are to be kept: fp64 if one of them is stored so, or else LoRAConfig's default."""
    wide = any(tensor.dtype == torch.float64 for key, tensor in tensors.items() if key.endswith(PARTS))
    return torch.float64 if wide else None


def require_ranks(path: Path, tensors: Mapping[str, torch.Tensor], configs: Mapping[str, LoRAConfig]) -> None:
    """Before memory is taken: the tensors are there and have the ranks that the config says. Raises AdapterError."""
    for layer, config in configs.items():
        for part in PARTS:
            if (key := f"{PREFIX}{layer}{part}") not in tensors:
                raise AdapterError(f"{path} lacks {key}.", "Restore the adapter.")
        key = f"{PREFIX}{layer}{PARTS[0]}"
        if tensors[key].shape[:1] != (config.rank,):  # (rank, in)
            raise AdapterError(
                f"{path}: {key} is {tuple(tensors[key].shape)}, not of rank {config.rank}.", "Restore it."
            )


def take_out_the_base(
    path: Path, tensors: dict[str, torch.Tensor], model: nn.Module, whole: Iterable[str], any_base: bool
) -> None:
    """PEFT stores an output layer that it adapts, and embeddings, with the adapter: they must be the base's."""
    base = base_tensors(model)
    for key in list(tensors):
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if key.startswith(PREFIX) and name in base and not is_in(name, whole):
            stored, own = tensors.pop(key), base[name]
            if any_base and ".base_layer." in key:  # PEFT's copy of a layer that it adapts, of another base
                continue
            if not (stored.shape == own.shape and torch.equal(stored.to(own.dtype), own.cpu())):
                raise AdapterError(f"{path} has {name}, which is not the base's.", "Use it with its own base.")


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
