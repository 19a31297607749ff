"""An adapter ↔ `adapter_config.json` + `adapter_model.safetensors`, as PEFT writes and reads them.

PEFT ignores the metadata of a safetensors file, so the fingerprint of the base rides there.
"""

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from lora_mnist.errors import AdapterError, DamagedError, DiskError, LoRAError, shown
from lora_mnist.lora.config import ALL_LINEAR, DTYPES, LoRAConfig
from lora_mnist.lora.fingerprint import Fingerprint, compute_fingerprint, differences, fingerprint_model
from lora_mnist.lora.layer import LoRAUpdate, gather_shards, require_numbers, require_unsharded
from lora_mnist.lora.model import (
    attach,
    base_tensors,
    is_inside,
    linear_layers,
    modules_to_train,
    own_modules,
    parts_of,
    unsaved_buffers,
)

CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, FACTORS = "base_model.model.", (".lora_A.weight", ".lora_B.weight")  # of the keys in the weights file
# Ours → PEFT's `init_lora_weights`; only for the record once trained. Others (pissa, olora, …) keep a part of W in the
# adapter, so they are refused; True, False and None all leave W as it is.
INITS = {"kaiming": True, "gaussian": "gaussian"}
# Written out although they are PEFT's defaults: without `r` or `lora_alpha` PEFT silently takes 8.
FIXED = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False}
NUMBERS = {"r", "lora_alpha", "lora_dropout"}  # LoRAConfig checks them
ABOUT = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")  # what AutoPeftModel goes by
# These change nothing in what a trained adapter computes. The weights file says which layers were chosen, and a task
# that brings layers of its own along names them in `modules_to_save`.
IGNORED = {*ABOUT, "peft_version", "inference_mode", "megatron_core", "qalora_group_size"}
IGNORED |= {"exclude_modules", "layers_to_transform", "layers_pattern"}


def save_adapter(folder: Path | str, model: nn.Module, name: str, base_fingerprint: Fingerprint | None = None) -> None:
    """Write adapter `name` of `model` so that PEFT, and `load_adapter`, read it onto the same base.

    A and B are stored in fp32, or in fp64 if they are; modules that it trains whole as they are. A strength is not
    stored: it belongs to the use of an adapter. PEFT adapts a layer that occurs twice at its first place only, and none
    where torch reads a layer's weight instead of calling it. `base_fingerprint` is that of the base; None makes it now,
    by `fingerprint_model`.

    Raises:
        LoRAError: there is no such adapter, it is not finite, or a name of what it trains whole means more to PEFT.
        DiskError: the disk refused; what was in the folder before is still there.
    """
    require_unsharded(model, "save an adapter", ["FullyShardedDataParallel"])  # which flattens A and B
    folder, parts = Path(folder), parts_of(model, name)
    document = _document_of(parts, list(own_modules(model, every_name=True)))
    if "base_model_name_or_path" not in document and getattr(model, "name_or_path", None):  # of transformers
        document["base_model_name_or_path"] = model.name_or_path
    tensors = {key: gather_shards(tensor) for key, tensor in _by_key(parts).items()}
    for key, tensor in tensors.items():
        require_numbers(key, tensor)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise LoRAError(f"Adapter {name!r} has NaN or infinity in it.", "Train it with a lower learning rate.")
    for key, tensor in tensors.items():
        dtype = torch.promote_types(tensor.dtype, torch.float32) if key.endswith(FACTORS) else tensor.dtype
        # a copy, because safetensors refuses two tensors that share their memory
        tensors[key] = tensor.to("cpu", dtype, copy=True).contiguous()
    weights = _with_metadata(save(tensors), base_fingerprint or fingerprint_model(model))
    contents = {CONFIG: (json.dumps(document, indent=1) + "\n").encode(), ADAPTER_WEIGHTS: weights}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as fresh:
            for file_name, content in contents.items():  # all are written before the first is replaced
                with open(Path(fresh, file_name), "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            (folder / ADAPTER_WEIGHTS).unlink(missing_ok=True)  # or old weights might be read beside a new config
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

    Adapters that are on stay on, and this one adds to them: `switch` says which are on.
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
    if base not in ("same", "any"):
        raise LoRAError(f"`base` (={shown(base)}) must be 'same' or 'any'.", "Correct that value.")
    require_unsharded(model, "add an adapter")
    folder = Path(folder)
    (stored, tensors), document = _read_weights(folder / ADAPTER_WEIGHTS), _read_document(folder / CONFIG)
    own = base_tensors(model)
    whole = modules_to_train(model, [module for module in own_modules(model) if _is_saved_whole(document, module)])
    if base == "any":
        warnings.warn(f"Whether {folder} was trained on this base is not checked.", UserWarning, stacklevel=2)
    elif stored is not None:
        different = differences(stored, base_fingerprint or compute_fingerprint(own))
        first = {kind: name for name, kind in reversed(different.items()) if not is_inside(name, whole)}
        if changed := first.get("other"):
            cause = f"The adapter in {folder} was trained on another base: tensor {changed} differs."
            raise AdapterError(cause, "Use it with the base it came from, or train it again on this one.")
        unsaved = compute_fingerprint(unsaved_buffers(model)).tensors if stored.unsaved else {}
        others = (name for name, digest in stored.unsaved.items() if unsaved.get(name) != digest)
        if moved := first.get("buffer") or next((name for name in others if not is_inside(name, whole)), None):
            text = f"The adapter in {folder} was trained on these weights, but other buffers: {moved} differs."
            warnings.warn(text, UserWarning, stacklevel=2)
    elif not allow_unverified:
        cause = f"{folder / ADAPTER_WEIGHTS} does not say which base it was trained on."
        raise AdapterError(cause, "Pass allow_unverified=True if you know that it was this one.")
    layers = {path: layer for path, layer in linear_layers(model).items() if not is_inside(path, whole)}
    configs = _layer_configs(folder, document, tensors, layers, whole)
    if stored is None:  # from PEFT, which adapts a layer that occurs twice at its first place only
        places = [id(layer) for layer in linear_layers(model, every_name=True).values()]
        if twice := [path for path in configs if places.count(id(layers[path])) > 1]:
            cause = f"{folder}: {twice[0]} occurs twice in the model, and PEFT adapts only its first place."
            raise AdapterError(cause, "Give the model two layers there.")
    _take_out_the_base(folder / ADAPTER_WEIGHTS, tensors, own, whole, any_base=base == "any")

    # Before memory is taken or anything in the model changes: every tensor has a place, and fits there
    wanted = {f"{PREFIX}{name}": tensor for name, tensor in own.items() if is_inside(name, whole)}
    for path, config in configs.items():
        layer, dtype = layers[path], config.dtype_beside(layers[path].weight.dtype)
        a, b = _factor_keys(path)
        wanted[a] = torch.empty(config.rank, layer.in_features, dtype=dtype, device="meta")
        wanted[b] = torch.empty(layer.out_features, config.rank, dtype=dtype, device="meta")
    _require_fit(folder / ADAPTER_WEIGHTS, tensors, wanted)

    # a generator of its own: what it draws is overwritten
    updates = attach(model, name, configs, torch.Generator(), whole)
    for key, place in _by_key(parts_of(model, name)).items():
        place.copy_(tensors[key])
    return updates


def load_fingerprint(folder: Path | str) -> Fingerprint | None:
    """The fingerprint of the base that the adapter was trained on, if it carries one.

    Raises AdapterError if the weights file is missing or damaged.
    """
    return _read_weights(Path(folder) / ADAPTER_WEIGHTS)[0]


# The config -----------------------------------------------------------------------------------------------------------


def _document_of(parts: Mapping[str, nn.Module], modules: list[str]) -> dict[str, Any]:
    """The config that makes PEFT adapt and train whole exactly what `parts` has of all `modules`."""
    own = {path: part.config for path, part in parts.items() if isinstance(part, LoRAUpdate)}
    typical = max(own.values(), key=lambda config: config.rank)
    exactly = {path: f"^{re.escape(path)}$" for path in own}  # without ^ also every layer whose name ends so
    document = {
        **FIXED,
        "task_type": None,
        **typical.about,
        "inference_mode": True,
        "r": typical.rank,
        "lora_alpha": typical.alpha,
        "rank_pattern": {exactly[path]: c.rank for path, c in own.items() if c.rank != typical.rank},
        "alpha_pattern": {exactly[path]: c.alpha for path, c in own.items() if c.alpha != typical.alpha},
        "use_rslora": typical.rslora,
        "lora_dropout": typical.dropout,
        "init_lora_weights": INITS[typical.init],
        "target_modules": list(own),
    }
    if any(_finds(list(own), module) for module in modules if module not in own):
        # PEFT would also take other modules that end so; an expression is for the whole name
        document["target_modules"] = "|".join(map(re.escape, own))
    if whole := [path for path in parts if path not in own]:
        document["modules_to_save"] = whole
        more = [path for path in modules if _is_saved_whole(document, path) and path not in whole]
        # for PEFT these are expressions, and what lies in such a module is no target
        lost = [path for path in own if any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in whole)]
        if more or lost:
            cause = f"PEFT would take {(more + lost)[0]} for a part of {', '.join(whole)}, by its name."
            raise LoRAError(cause, "Rename one of them.")
    return document


def _read_document(path: Path) -> dict[str, Any]:
    """The config in `path`: every option is known, and none is missing for which PEFT silently takes a default."""
    way_out = "Restore it, or save the adapter again."
    content = _read_bytes(path)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not JSON: {error}.", way_out) from error
    if not isinstance(document, dict):
        raise AdapterError(f"{path} is not an adapter's config.", way_out)
    for name, value in document.items():
        if name in FIXED:
            known = value == FIXED[name]
        elif value is None or name in NUMBERS | IGNORED:
            known = True
        elif name in ("target_modules", "modules_to_save"):
            known = all(isinstance(one, str) for one in (value if isinstance(value, list) else [value]))
        elif name in ("rank_pattern", "alpha_pattern"):
            known = isinstance(value, dict)
        elif name in ("use_rslora", "init_lora_weights"):
            known = isinstance(value, bool) or (name == "init_lora_weights" and value == INITS["gaussian"])
        else:  # another option of PEFT's does no harm while it is off
            known = value is False or value in ({}, [])
        if not known:
            cause = f"{path}: option {name!r} (={shown(value)}) is not implemented."
            raise AdapterError(cause, "Save the adapter without it.")
    if missing := [key for key in ("r", "lora_alpha", "target_modules") if document.get(key) is None]:
        raise AdapterError(f"{path} has no {missing[0]!r}.", way_out)
    return document


def _layer_configs(
    folder: Path, document: dict[str, Any], tensors: dict[str, torch.Tensor], layers: Iterable[str], whole: list[str]
) -> dict[str, LoRAConfig]:
    """What `document` means for each of `layers` of which the weights file has A and B. The two must agree."""
    path, ranks = folder / CONFIG, {}
    if tensors and not any(key.startswith(PREFIX) for key in tensors):
        cause = f"{folder / ADAPTER_WEIGHTS} is not of PEFT's format: it has {shown(next(iter(tensors)))}."
        raise AdapterError(cause, f"Convert it: there, names begin with {PREFIX!r}.")
    for layer in layers:
        a, b = _factor_keys(layer)
        if (a in tensors) != (b in tensors):
            raise AdapterError(f"{folder / ADAPTER_WEIGHTS} lacks {b if a in tensors else a}.", "Restore the adapter.")
        if a in tensors and tensors[a].dim() == 2:  # (rank, in)
            ranks[layer] = len(tensors[a])
    wide = any(tensor.dtype == torch.float64 for key, tensor in tensors.items() if key.endswith(FACTORS))
    try:
        # or a weights file that lost some of its layers would load as an adapter of fewer
        targets = document["target_modules"]
        if targets in (ALL_LINEAR, [ALL_LINEAR]):  # as somebody writes by hand; PEFT stores what it found
            targets = list(ranks)
        if isinstance(targets, list):  # of names or their ends: each finds something, be it trained whole
            lost = [name for name in targets if not any(_finds([name], module) for module in (*ranks, *whole))]
        else:  # an expression: all that it finds is there, unless PEFT went by `exclude_modules` too
            excluded = bool(document.get("exclude_modules"))
            lost = [layer for layer in layers if _finds(targets, layer) and layer not in ranks and not excluded]
        stray = [layer for layer in ranks if not _finds(targets, layer)]
        if lost or stray or not ranks:
            named = ", ".join(lost or stray) or "any linear layer of this model"
            cause = f"{path}: target_modules and adapter_model.safetensors do not both have {named}."
            raise AdapterError(cause, "Restore the adapter, or use its own base.")
        configs = {}
        for layer, rank in ranks.items():
            if (expected := _first(document.get("rank_pattern"), layer, document["r"])) != rank:
                cause = f"{path}: {layer} is not of rank {shown(expected)}, but {rank} in adapter_model.safetensors."
                raise AdapterError(cause, "Restore the adapter.")
            configs[layer] = LoRAConfig(
                targets=(layer,),
                rank=rank,
                about={key: document[key] for key in ABOUT if document.get(key) is not None},
                alpha=_first(document.get("alpha_pattern"), layer, document["lora_alpha"]),
                rslora=bool(document.get("use_rslora", False)),
                dropout=document.get("lora_dropout", 0.0),
                init="gaussian" if document.get("init_lora_weights") == "gaussian" else "kaiming",
                dtype=torch.float64 if wide else None,  # None: LoRAConfig's default
            )
    except AdapterError:
        raise
    except (LoRAError, re.error) as error:
        raise AdapterError(f"{path} is not an adapter's config: {error}.", "Restore it.") from error
    return configs


# PEFT's rules of which modules a name or an expression in its config means --------------------------------------------


def _is_saved_whole(document: Mapping[str, Any], module: str) -> bool:
    """Whether a config trains `module` whole: `_set_trainable` in peft/utils/other.py. Ends need no dot before them."""
    names = document.get("modules_to_save") or []
    return module.endswith(names if isinstance(names, str) else tuple(names))


def _first(patterns: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """The value of the first key whose expression fits the end of the name, from a dot on; else `default`."""
    found = (value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", layer))
    return next(found, default)


def _finds(names: str | Iterable[str], module: str) -> bool:
    """Whether `target_modules` finds `module`: a string is an expression for its name, a list has names or ends."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


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


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe might never end
            raise AdapterError(f"{path} is not a regular file.", "Restore the adapter.")
        if not path.parent.is_dir():
            cause = f"There is no folder {path.parent}."
            raise AdapterError(cause, "Give the folder that has the adapter's two files.")
        if not path.exists() and (pickled := path.with_suffix(".bin")).exists():
            cause = f"{pickled} is pickled, and nothing is unpickled here: there is no {path.name}."
            raise AdapterError(cause, "Save it by PEFT with safe_serialization=True.")
        content = path.read_bytes()
        if content.startswith(b"version https://git-lfs"):
            raise AdapterError(f"{path} is a pointer of Git LFS, not the file itself.", "Run `git lfs pull` there.")
        return content
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.", "Restore the adapter.") from error


def _read_weights(path: Path) -> tuple[Fingerprint | None, dict[str, torch.Tensor]]:
    """The fingerprint of the base, if there is one, and the tensors of a safetensors file. Raises AdapterError."""
    content = _read_bytes(path)
    try:
        tensors = dict(sorted(load(content).items()))  # it gives them in random order
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not know
        raise AdapterError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get("__metadata__", {}).get("base_fingerprint")
    return None if text is None else Fingerprint.from_text(text), tensors


def _factor_keys(path: str) -> list[str]:
    """PEFT's keys of A (rank, in) and B (out, rank) of a layer."""
    return [f"{PREFIX}{path}{factor}" for factor in FACTORS]


def _by_key(parts: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The tensors of updates, and of modules that are trained whole, by PEFT's keys. Not copies."""
    return {
        f"{PREFIX}{path}.{name}.weight" if isinstance(part, LoRAUpdate) else f"{PREFIX}{path}.{name}": tensor
        for path, part in parts.items()
        for name, tensor in part.state_dict().items()
    }


# What must hold before an adapter is loaded ---------------------------------------------------------------------------


def _take_out_the_base(
    path: Path, tensors: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor], whole: Iterable[str], any_base: bool
) -> None:
    """PEFT stores an output layer that it adapts, and embeddings, with the adapter: they must be the base's."""
    keys = set(tensors)
    for key in sorted(keys):
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if key.startswith(PREFIX) and name in own and not is_inside(name, whole):
            stored, ours = tensors.pop(key), own[name]
            # PEFT's copy of a layer that it adapts, of another base; a bias alone was trained
            if any_base and ".base_layer." in key and f"{key.rpartition('.')[0]}.weight" in keys:
                continue
            if not (stored.shape == ours.shape and torch.equal(stored.to(ours.dtype), ours.cpu())):
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
