"""An adapter ↔ `adapter_config.json` + `adapter_model.safetensors`, as PEFT writes and reads them.

PEFT ignores the metadata of a safetensors file, so the fingerprint of the base rides there.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from lora_mnist.errors import AdapterError, DiskError, LoRAError
from lora_mnist.lora.config import DTYPES
from lora_mnist.lora.fingerprint import Fingerprint, compute_fingerprint, differences, fingerprint_model
from lora_mnist.lora.layer import LoRAUpdate
from lora_mnist.lora.model import (
    attach,
    base_tensors,
    copies_of,
    is_in,
    linear_layers,
    modules_to_train,
    own_modules,
    updates_of,
    without_copies,
)
from lora_mnist.lora.peft_config import document_of, is_saved_whole, layer_configs, read_bytes, read_document

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, FACTORS = "base_model.model.", (".lora_A.weight", ".lora_B.weight")  # of the keys in the weights file


def save_adapter(folder: Path | str, model: nn.Module, name: str, base_fingerprint: Fingerprint | None = None) -> None:
    """Write adapter `name` of `model` so that PEFT, and `load_adapter`, read it onto the same base.

    A and B are stored in fp32, or in fp64 if they are; modules that it trains whole as they are. A strength is not
    stored: it belongs to the use of an adapter. PEFT adapts a layer that occurs twice at its first place only, and none
    where torch reads a layer's weight instead of calling it.

    Args:
        base_fingerprint: of the base; None makes it now, by `fingerprint_model`.

    Raises:
        LoRAError: there is no such adapter, it is not finite, or a name of what it trains whole means more to PEFT.
        DiskError: the disk refused; what was in the folder before is still there.
    """
    model = _unwrapped(model)
    folder, updates, copies = Path(folder), updates_of(model, name), copies_of(model, name)
    document = document_of(updates, list(copies), list(own_modules(model, every_name=True)))
    tensors = {
        key: part.to(torch.promote_types(part.dtype, torch.float32)) for key, part in _factors_by_key(updates).items()
    }
    tensors |= _copies_by_key(copies)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise LoRAError(f"Adapter {name!r} has NaN or infinity in it.", "Train it with a lower learning rate.")
    # copies, because safetensors refuses two tensors that share their memory
    stored = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    weights = _with_metadata(save(stored), base_fingerprint or fingerprint_model(model))
    contents = {CONFIG: (json.dumps(document, indent=1) + "\n").encode(), WEIGHTS: weights}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as fresh:
            for file_name, content in contents.items():  # all are written before the first is replaced
                with open(Path(fresh, file_name), "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            (folder / WEIGHTS).unlink(missing_ok=True)  # or old weights might be read beside a new config
            for file_name in contents:
                Path(fresh, file_name).replace(folder / file_name)
    except OSError as error:
        cause = f"Cannot write {folder}: {error.strerror or error}."
        raise DiskError(cause, "Free space or choose another folder; what was in this one is kept.") from error


def load_adapter(
    folder: Path | str,
    model: nn.Module,
    name: str,
    base_fingerprint: Fingerprint | None = None,
    allow_unverified: bool = False,
    base: Literal["same", "any"] = "same",
) -> dict[str, LoRAUpdate]:
    """Add the adapter in `folder` to `model` as `name`, at strength 1, and return its updates by layer.

    The weights file says which layers it adapts, and of what rank; the config says alpha. The base may be in another
    dtype than it was trained in. If only its buffers differ, as running statistics do after training, a UserWarning
    says so. What the adapter trained whole need not be the same. If it raises, the model is as it was.

    Args:
        base_fingerprint: of `model`'s base; None makes it now.
        allow_unverified: take an adapter that does not say what base it was trained on, as PEFT's own do not.
        base: `any` takes the adapter whatever base it was trained on, with a UserWarning.

    Raises:
        AdapterError: a file is missing or damaged, does not fit, uses an option that is not implemented, or was made on
            another base; the first tensor that differs is named.
        LoRAError: as `inject` does for the name, and for what is trained whole.
    """
    model, folder = _unwrapped(model), Path(folder)
    (stored, tensors), document = _read_weights(folder / WEIGHTS), read_document(folder / CONFIG)
    modules = own_modules(model)
    whole = modules_to_train(model, [module for module in modules if is_saved_whole(document, module)])
    if base == "any":
        warnings.warn(f"Whether {folder} was trained on this base is not checked.", UserWarning, stacklevel=2)
    elif stored is not None:
        _require_base(folder, stored, base_fingerprint or compute_fingerprint(base_tensors(model)), whole)
    elif not allow_unverified:
        cause = f"{folder / WEIGHTS} does not say which base it was trained on."
        raise AdapterError(cause, "Pass allow_unverified=True if you know that it was this one.")
    layers = {path: layer for path, layer in linear_layers(model).items() if not is_in(path, whole)}
    ranks = {}
    for path in layers:
        a, b = _key(path, "lora_A"), _key(path, "lora_B")
        if (a in tensors) != (b in tensors):
            raise AdapterError(f"{folder / WEIGHTS} lacks {b if a in tensors else a}.", "Restore the adapter.")
        if a in tensors and tensors[a].dim() == 2:  # (rank, in)
            ranks[path] = len(tensors[a])
    wide = any(tensor.dtype == torch.float64 for key, tensor in tensors.items() if key.endswith(FACTORS))
    dtype = torch.float64 if wide else None  # None: LoRAConfig's default
    configs = layer_configs(folder / CONFIG, document, ranks, whole, layers, dtype)
    if stored is None:  # from PEFT, which adapts a layer that occurs twice at its first place only
        places = [id(layer) for layer in linear_layers(model, every_name=True).values()]
        if twice := [path for path in configs if places.count(id(layers[path])) > 1]:
            cause = f"{folder}: {twice[0]} occurs twice in the model, and PEFT adapts only its first place."
            raise AdapterError(cause, "Give the model two layers there.")
    _take_out_the_base(folder / WEIGHTS, tensors, model, whole, any_base=base == "any")

    # Before memory is taken or anything in the model changes: every tensor has a place, and fits there
    wanted: dict[str, torch.Tensor] = {}
    for path, config in configs.items():
        layer, dtype = layers[path], config.dtype_beside(layers[path].weight.dtype)
        wanted[_key(path, "lora_A")] = torch.empty(config.rank, layer.in_features, dtype=dtype, device="meta")
        wanted[_key(path, "lora_B")] = torch.empty(layer.out_features, config.rank, dtype=dtype, device="meta")
    wanted |= _copies_by_key({path: without_copies(modules[path]) for path in whole})
    _require_fit(folder / WEIGHTS, tensors, wanted)

    # a generator of its own: what it draws is overwritten
    updates = attach(model, name, configs, torch.Generator(), whole)
    with torch.no_grad():
        for key, place in (_factors_by_key(updates) | _copies_by_key(copies_of(model, name))).items():
            place.copy_(tensors[key])
    return updates


def load_fingerprint(folder: Path | str) -> Fingerprint | None:
    """The fingerprint of the base that the adapter was trained on, if it carries one.

    Raises AdapterError if the weights file is missing or damaged.
    """
    return _read_weights(Path(folder) / WEIGHTS)[0]


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a handle of DataParallel, DDP or torch.compile, whose prefix is not part of its names."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, parallel) or [name for name, _ in model.named_children()] == ["_orig_mod"]:
        model = next(model.children())
    return model


# The weights file -----------------------------------------------------------------------------------------------------


def _with_metadata(content: bytes, base_fingerprint: Fingerprint) -> bytes:
    """A safetensors file with `format`, which accelerate asks for, and the fingerprint of the base in its metadata.

    safetensors itself writes several entries in random order, and equal adapters are to be equal files.
    """
    length = int.from_bytes(content[:8], "little")  # of the header, which is JSON
    metadata = {"base_fingerprint": base_fingerprint.to_text(), "format": "pt"}
    header = json.dumps({"__metadata__": metadata, **json.loads(content[8 : 8 + length])}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _read_weights(path: Path) -> tuple[Fingerprint | None, dict[str, torch.Tensor]]:
    """The fingerprint of the base, if there is one, and the tensors of a safetensors file. Raises AdapterError."""
    content = read_bytes(path)
    try:
        tensors = dict(sorted(load(content).items()))  # it gives them in random order
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not know
        raise AdapterError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get("__metadata__", {}).get("base_fingerprint")
    return None if text is None else Fingerprint.from_text(text), tensors


def _key(path: str, part: str) -> str:
    """PEFT's key of `lora_A` or `lora_B` of a layer."""
    return f"{PREFIX}{path}.{part}.weight"


def _factors_by_key(updates: Mapping[str, LoRAUpdate]) -> dict[str, torch.Tensor]:
    """A (rank, in) and B (out, rank) of every layer. Not copies."""
    return {_key(path, part): getattr(one, part) for path, one in updates.items() for part in ("lora_A", "lora_B")}


def _copies_by_key(copies: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The tensors of modules that are trained whole. Not copies of them."""
    return {f"{PREFIX}{path}.{key}": part for path, copy in copies.items() for key, part in copy.state_dict().items()}


# What must hold before an adapter is loaded ---------------------------------------------------------------------------


def _require_base(folder: Path, stored: Fingerprint, found: Fingerprint, whole: Iterable[str]) -> None:
    """The model's tensors are those it was trained on, but for those that it brings along, in `whole`."""
    different = {name: kind for name, kind in differences(stored, found).items() if not is_in(name, whole)}
    for name, kind in different.items():
        if kind == "other":
            cause = f"The adapter in {folder} was trained on another base: tensor {name} differs."
            raise AdapterError(cause, "Use it with the base it came from, or train it again on this one.")
    if buffers := [name for name, kind in different.items() if kind == "buffer"]:
        text = f"The adapter in {folder} was trained on these weights, but other buffers: {buffers[0]} differs."
        warnings.warn(text, UserWarning, stacklevel=3)


def _take_out_the_base(
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


def _require_fit(path: Path, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Every tensor that is wanted is there, in its shape and finite in its dtype, and no other is."""
    if lost := wanted.keys() - tensors.keys():
        raise AdapterError(f"{path} lacks {', '.join(sorted(lost))}.", "Restore the adapter.")
    if extra := tensors.keys() - wanted.keys():
        raise AdapterError(f"{path} should not have {', '.join(sorted(extra))}.", "Restore the adapter.")
    for key, place in wanted.items():
        stored = tensors[key]
        known = stored.dtype in DTYPES if place.is_floating_point() else stored.dtype == place.dtype
        if stored.shape != place.shape or not known:
            found = f"{tuple(stored.shape)} of {stored.dtype}"
            raise AdapterError(f"{path}: {key} is {found}, not {tuple(place.shape)} floats.", "Restore the adapter.")
        if not stored.to(place.dtype).isfinite().all():
            raise AdapterError(f"{path}: {key} is not finite in {place.dtype}.", "Restore the adapter.")
