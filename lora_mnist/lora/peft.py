"""An adapter ↔ `adapter_config.json` + `adapter_model.safetensors`, as PEFT writes and reads them.

The only file that knows PEFT's names: `r`, `lora_alpha`, and the keys of the tensors. PEFT ignores the metadata of a
safetensors file, so the seal of the base rides there.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from lora_mnist.errors import AdapterError, AlteredError, DamagedError, DiskError, LoRAError, RunError, shown
from lora_mnist.files import LARGEST_WEIGHTS, open_regular, read_json, read_regular, to_json, write_files
from lora_mnist.lora.adapters import attach, base_tensors, copies_of, modules_to_train, remove, updates_of
from lora_mnist.lora.config import DTYPES, LoRAConfig
from lora_mnist.lora.rules import exactly, first, is_saved_whole, is_target, targets_for
from lora_mnist.lora.seal import Seal, differences, seal, seal_model
from lora_mnist.lora.targets import is_in, linear_layers, own_modules
from lora_mnist.lora.update import LoRAUpdate

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = (".lora_A.weight", ".lora_B.weight")
INITS = {"kaiming": True, "gaussian": "gaussian"}  # ours → PEFT's init_lora_weights; only for the record once trained
# Those of PEFT's that leave the base as it is; others (pissa, olora, …) keep a part of W in the adapter.
HARMLESS_INITS = ("gaussian",)  # and True and False, the usual one and a random B
# Written out although they are PEFT's defaults: without `r` or `lora_alpha` PEFT silently takes 8.
FIXED = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False}
OURS = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "lora_dropout", "init_lora_weights", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
}
# each, or each of a list
KINDS = {"modules_to_save": str, "exclude_modules": str, "layers_to_transform": int, "layers_pattern": str}
# Change nothing in what an adapter computes once it is trained. A task that brings layers of its own along does so in
# `modules_to_save`.
IGNORED = {
    *("auto_mapping", "base_model_name_or_path", "peft_version", "revision", "inference_mode", "task_type"),
    *("megatron_core", "qalora_group_size"),
}


def save_adapter(folder: Path | str, model: nn.Module, name: str, base_seal: Seal | None = None) -> None:
    """Write adapter `name` of `model` so that PEFT, and `load_adapter`, read it onto the same base.

    A and B are stored in fp32, or in fp64 if they are; modules that it trains whole as they are. A strength is not
    stored: it belongs to the use of an adapter. Where PEFT goes past its own adapters, it goes past this one: at the
    second place of a layer that occurs twice, and where torch reads a layer's weight instead of calling it (see
    `LoRALinear`).

    Args:
        base_seal: of the base; None makes it now, by `seal_model`.

    Raises:
        LoRAError: there is no such adapter, it is not finite, or a name of what it trains whole means more to PEFT.
        DiskError: the disk refused; what was in the folder before is still there.
    """
    folder, updates, copies = Path(folder), updates_of(model, name), copies_of(model, name)
    document = config_of(model, name)
    tensors = {
        key: part.detach().to(torch.promote_types(part.dtype, torch.float32)).cpu().contiguous()
        for key, part in _factors(updates).items()
    } | {key: part.detach().cpu().contiguous().clone() for key, part in _tensors_of(copies).items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise LoRAError(f"Adapter {name!r} has NaN or infinity in it.", "Train it with a lower learning rate.")
    base_seal = base_seal or seal_model(model)
    contents = {CONFIG: to_json(document), WEIGHTS: save(tensors, {"base_seal": base_seal.to_text()})}
    try:
        write_files(folder, contents)
    except DiskError as error:
        raise DiskError(error.cause, "Free space or choose another folder; what was in this one is kept.") from error


def config_of(model: nn.Module, name: str) -> dict[str, Any]:
    """What `save_adapter` writes to adapter_config.json. Raises LoRAError as it does."""
    modules = list(own_modules(model, every_name=True))
    return _document_of(updates_of(model, name), list(copies_of(model, name)), modules)


def load_adapter(
    folder: Path | str,
    model: nn.Module,
    name: str,
    base_seal: Seal | None = None,
    allow_unsealed: bool = False,
    base: Literal["sealed", "any"] = "sealed",
) -> dict[str, LoRAUpdate]:
    """Add the adapter in `folder` to `model` as `name`, at strength 1. If it raises, the model is as it was.

    The base may be in another dtype than it was trained in. If only its buffers differ, as running statistics do after
    training, a UserWarning says so. What the adapter trained whole need not be the same.

    Args:
        base_seal: of `model`'s base; None makes it now.
        allow_unsealed: take an adapter that does not say what base it was trained on, as PEFT's own do not.
        base: `any` takes the adapter whatever base it was trained on, with a UserWarning.

    Returns:
        The updates by layer.

    Raises:
        AdapterError: a file is missing or damaged, does not fit, uses an option that is not implemented, or was made on
            another base; the first tensor that differs is named.
        LoRAError: as `inject` does for the name, and for what is trained whole.
    """
    folder = Path(folder)
    stored, document = load_seal(folder), _read_config(folder / CONFIG)
    whole = modules_to_train(model, [path for path in own_modules(model) if is_saved_whole(document, path)])
    if base == "any":
        warnings.warn(f"Whether {folder} was trained on this base is not checked.", UserWarning, stacklevel=2)
    elif stored is not None:
        _require_base(folder, stored, base_seal or seal(base_tensors(model)), whole)
    elif not allow_unsealed:
        raise AdapterError(
            f"{folder / WEIGHTS} does not say which base it was trained on.",
            "Pass allow_unsealed=True if you know that it was this one.",
        )
    layers = [path for path in linear_layers(model) if not is_in(path, whole)]
    config, tensors = _config_of(folder / CONFIG, document, layers), _read_tensors(folder / WEIGHTS)
    if stored is None:
        _refuse_what_peft_adapts_once(folder, model, config)
    if any(tensor.dtype == torch.float64 for key, tensor in tensors.items() if key.endswith(PARTS)):
        config = replace(config, dtype=torch.float64)
    _require_ranks(folder / WEIGHTS, tensors, config)
    _take_out_the_base(folder / WEIGHTS, tensors, model, whole, check=base != "any")
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # its own generator: what it draws is overwritten
    updates = attach(model, name, config.of_layers(layers), torch.Generator(), whole)
    try:
        _copy_in(folder / WEIGHTS, tensors, _factors(updates) | _tensors_of(copies_of(model, name)))
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
    return _config_of(folder / CONFIG, _read_config(folder / CONFIG), layers)


def load_seal(folder: Path) -> Seal | None:
    """The seal of the base that the adapter was trained on, if it carries one.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    text = _read_metadata(folder / WEIGHTS).get("base_seal")
    return None if text is None else Seal.from_text(text)


def _read_metadata(path: Path) -> dict[str, str]:
    """Of a safetensors file. Raises AdapterError."""
    try:
        open_regular(path).close()  # safetensors would wait for a pipe
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error


def _require_ranks(path: Path, tensors: Mapping[str, torch.Tensor], config: LoRAConfig) -> None:
    """Before memory is taken for them: the tensors are there and have the ranks that the config says. AdapterError."""
    for layer in config.targets:
        rank = config.rank_pattern.get(layer, config.rank)
        for part in PARTS:
            if (key := f"{PREFIX}{layer}{part}") not in tensors:
                raise AdapterError(f"{path} lacks {key}.", "Restore the adapter.")
        key = f"{PREFIX}{layer}{PARTS[0]}"
        if tensors[key].shape[:1] != (rank,):  # (rank, in)
            raise AdapterError(f"{path}: {key} is {tuple(tensors[key].shape)}, not of rank {rank}.", "Restore it.")


def _document_of(updates: Mapping[str, LoRAUpdate], whole: list[str], modules: list[str]) -> dict[str, Any]:
    """The config that makes PEFT adapt exactly the layers of `updates` and train exactly `whole`, of all `modules`."""
    own = {path: update.config for path, update in updates.items()}
    typical = max(own.values(), key=lambda config: config.rank)
    document = {
        **FIXED,
        "task_type": None,
        "inference_mode": True,
        "r": typical.rank,
        "lora_alpha": typical.alpha,
        "rank_pattern": {exactly(path): c.rank for path, c in own.items() if c.rank != typical.rank},
        "alpha_pattern": {exactly(path): c.alpha for path, c in own.items() if c.alpha != typical.alpha},
        "use_rslora": typical.rslora,
        "lora_dropout": typical.dropout,
        "init_lora_weights": INITS[typical.init],
        "target_modules": targets_for(list(updates), modules),
    }
    if whole:
        document["modules_to_save"] = whole
        more = [path for path in modules if is_saved_whole(document, path) and path not in whole]
        lost = [path for path in updates if not is_target(document, path)]
        if more or lost:
            raise LoRAError(
                f"PEFT would take {(more + lost)[0]} for a part of {', '.join(whole)}, by its name.",
                "Rename one of them.",
            )
    return document


def _config_of(path: Path, document: Mapping[str, Any], layers: Iterable[str]) -> LoRAConfig:
    start = document.get("init_lora_weights", True)
    ranks, alphas = document.get("rank_pattern") or {}, document.get("alpha_pattern") or {}
    try:
        targets = [layer for layer in layers if is_target(document, layer)]
        if not targets:
            raise AdapterError(f"{path}: target_modules finds no linear layer of this model.", "Use its own base.")
        return LoRAConfig(
            targets=tuple(targets),
            rank=document["r"],
            alpha=document["lora_alpha"],
            rank_pattern={layer: rank for layer in targets if (rank := first(ranks, layer)) is not None},
            alpha_pattern={layer: alpha for layer in targets if (alpha := first(alphas, layer)) is not None},
            rslora=bool(document.get("use_rslora", False)),
            dropout=document.get("lora_dropout", 0.0),
            init="gaussian" if start == "gaussian" else "kaiming",
        )
    except AdapterError:
        raise
    except LoRAError as error:
        raise AdapterError(f"{path}: {error.cause}", "Restore it.") from error
    except (TypeError, AttributeError, re.error) as error:
        raise AdapterError(f"{path} is not an adapter's config: {error}.", "Restore it.") from error


def _read_config(path: Path) -> dict[str, Any]:
    """Its document, with every option known and nothing missing for which PEFT would take a default in silence."""
    way_out = "Restore it, or save the adapter again."
    try:
        document = read_json(path)
    except AlteredError as error:
        raise DamagedError(error.cause, way_out) from error
    except RunError as error:
        raise AdapterError(error.cause, way_out) from error
    if not isinstance(document, dict):
        raise AdapterError(f"{path} is not an adapter's config.", way_out)
    _refuse_what_is_not_implemented(path, document)
    for name, kind in KINDS.items():
        value = document.get(name)
        if not all(isinstance(one, kind) for one in (value if isinstance(value, list) else [value or kind()])):
            raise AdapterError(f"{path} is not an adapter's config: {name!r} is {value!r}.", way_out)
    if missing := [key for key in ("r", "lora_alpha", "target_modules") if document.get(key) is None]:
        raise AdapterError(f"{path} has no {missing[0]!r}.", way_out)
    return document


def _require_base(folder: Path, stored: Seal, found: Seal, whole: Iterable[str]) -> None:
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


def _refuse_what_is_not_implemented(path: Path, document: Mapping[str, Any]) -> None:
    for name, value in document.items():
        if name in FIXED:
            known = value == FIXED[name]
        elif name == "init_lora_weights":
            known = value is None or value is True or value is False or value in HARMLESS_INITS
        elif name == "use_rslora":
            known = value is None or isinstance(value, bool)
        else:
            known = name in OURS | IGNORED or value is None or value is False or value in ({}, [])
        if not known:
            raise AdapterError(
                f"{path}: option {name!r} (={shown(value)}) is not implemented.", "Save the adapter without it."
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


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(sorted(load(read_regular(path, LARGEST_WEIGHTS)).items()))  # it gives them in random order
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not know
        raise AdapterError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error


def _take_out_the_base(
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


def _copy_in(path: Path, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
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


def _factors(updates: Mapping[str, LoRAUpdate]) -> dict[str, torch.Tensor]:
    return {
        f"{PREFIX}{path}.{part}.weight": getattr(update, part)
        for path, update in updates.items()
        for part in ("lora_A", "lora_B")
    }


def _tensors_of(copies: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{PREFIX}{path}.{key}": part for path, copy in copies.items() for key, part in copy.state_dict().items()}
