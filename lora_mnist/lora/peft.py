"""An adapter ↔ `adapter_config.json` + `adapter_model.safetensors`, as PEFT writes and reads them.

The only file that knows PEFT's names: `r`, `lora_alpha`, and the keys of the tensors. PEFT ignores the metadata of a
safetensors file, so the seal of the base rides there.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from lora_mnist.errors import AdapterError, AlteredError, DamagedError, DiskError, LoRAError, RunError, shown
from lora_mnist.files import LARGEST_WEIGHTS, open_regular, read_json, read_regular, to_json, write_files
from lora_mnist.lora.adapters import attach, base_tensors, linear_layers, remove, updates_of
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.layers import LoRAUpdate
from lora_mnist.lora.seal import Seal, first_difference, seal

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
INITS = {"kaiming": True, "gaussian": "gaussian"}  # ours → PEFT's init_lora_weights; only for the record once trained
# Those of PEFT's that leave the base as it is; others (pissa, olora, …) keep a part of W in the adapter.
HARMLESS_INITS = ("gaussian",)  # and True and False, the usual one and a random B
# Written out although they are PEFT's defaults: without `r` or `lora_alpha` PEFT silently takes 8.
FIXED = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False}
OURS = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "lora_dropout", "init_lora_weights", "target_modules"),
}
# Change nothing in what an adapter computes once it is trained. A task that brings layers of its own along does so in
# `modules_to_save`, which is refused.
IGNORED = {
    *("auto_mapping", "base_model_name_or_path", "peft_version", "revision", "inference_mode", "task_type"),
    *("megatron_core", "qalora_group_size"),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def save_adapter(folder: Path | str, model: nn.Module, name: str, base_seal: Seal | None = None) -> None:
    """Write adapter `name` of `model` so that PEFT, and `load_adapter`, read it onto the same base.

    A strength is not stored: it belongs to the use of an adapter. Where PEFT goes past its own adapters, it goes past
    this one: at the second place of a layer that occurs twice, and where torch reads a layer's weight instead of
    calling it (see `LoRALinear`).

    Args:
        base_seal: of the base; None makes it now.

    Raises:
        LoRAError: there is no such adapter, or it is not finite.
        DiskError: the disk refused; what was in the folder before is still there.
    """
    folder, updates = Path(folder), updates_of(model, name)
    own = {path: update.config for path, update in updates.items()}
    typical = max(own.values(), key=lambda config: config.rank)
    document = {
        **FIXED,
        "task_type": None,
        "inference_mode": True,
        "r": typical.rank,
        "lora_alpha": typical.alpha,
        "rank_pattern": {_exactly(path): c.rank for path, c in own.items() if c.rank != typical.rank},
        "alpha_pattern": {_exactly(path): c.alpha for path, c in own.items() if c.alpha != typical.alpha},
        "use_rslora": typical.rslora,
        "lora_dropout": typical.dropout,
        "init_lora_weights": INITS[typical.init],
        "target_modules": _target_modules(list(updates), [path for path, _ in model.named_modules()]),
    }
    tensors = {key: part.detach().float().cpu().contiguous() for key, part in _tensors(updates).items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise LoRAError(f"Adapter {name!r} has NaN or infinity in it.", "Train it with a lower learning rate.")
    base_seal = base_seal or seal(base_tensors(model))
    contents = {CONFIG: to_json(document), WEIGHTS: save(tensors, {"base_seal": base_seal.to_text()})}
    try:
        write_files(folder, contents)
    except DiskError as error:
        raise DiskError(error.cause, "Free space or choose another folder; what was in this one is kept.") from error


def load_adapter(
    folder: Path | str, model: nn.Module, name: str, base_seal: Seal | None = None, allow_unsealed: bool = False
) -> dict[str, LoRAUpdate]:
    """Add the adapter in `folder` to `model` as `name`, at strength 1. If it raises, the model is as it was.

    Args:
        base_seal: of `model`'s base; None makes it now.
        allow_unsealed: take an adapter that does not say what base it was trained on, as PEFT's own do not.

    Returns:
        The updates by layer.

    Raises:
        AdapterError: a file is missing or damaged, does not fit, uses an option that is not implemented, or was made on
            another base; the first tensor that differs is named.
        LoRAError: as `inject` does for the name.
    """
    folder = Path(folder)
    stored = load_seal(folder)
    if stored is not None:
        _require_base(folder, stored, base_seal or seal(base_tensors(model)))
    elif not allow_unsealed:
        raise AdapterError(
            f"{folder / WEIGHTS} does not say which base it was trained on.",
            "Pass allow_unsealed=True if you know that it was this one.",
        )
    config = load_config(folder, linear_layers(model))
    if stored is None:
        _refuse_what_peft_adapts_once(folder, model, config)
    _require_ranks(folder / WEIGHTS, config)
    required = [parameter.requires_grad for parameter in model.parameters()]
    parameters = list(model.parameters())
    updates = attach(model, name, config, torch.Generator())  # its own generator: what it draws is overwritten
    try:
        _load_weights(folder / WEIGHTS, updates)
    except BaseException:
        remove(model, name)
        for parameter, flag in zip(parameters, required, strict=True):
            parameter.requires_grad_(flag)
        raise
    return updates


def load_config(folder: Path, layers: Iterable[str]) -> LoRAConfig:
    """Read adapter_config.json, with PEFT's patterns resolved to the names in `layers`, those of the linear layers.

    Raises:
        AdapterError: it is missing, damaged, finds no layer, or uses an option of PEFT's that is not implemented here.
    """
    path = folder / CONFIG
    document = _read_config(path)
    start = document.get("init_lora_weights", True)
    ranks, alphas = document.get("rank_pattern") or {}, document.get("alpha_pattern") or {}
    try:
        targets = [layer for layer in layers if _is_target(document["target_modules"], layer)]
        if not targets:
            raise AdapterError(f"{path}: target_modules finds no linear layer of this model.", "Use its own base.")
        return LoRAConfig(
            targets=tuple(targets),
            rank=document["r"],
            alpha=document["lora_alpha"],
            rank_pattern={layer: rank for layer in targets if (rank := _first(ranks, layer)) is not None},
            alpha_pattern={layer: alpha for layer in targets if (alpha := _first(alphas, layer)) is not None},
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


def load_seal(folder: Path) -> Seal | None:
    """The seal of the base that the adapter was trained on, if it carries one.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    text = _read_header(folder / WEIGHTS)[0].get("base_seal")
    return None if text is None else Seal.from_text(text)


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    """The metadata of a safetensors file, and the shape of every tensor in it. Raises AdapterError."""
    try:
        open_regular(path).close()  # safetensors would wait for a pipe
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error


def _require_ranks(path: Path, config: LoRAConfig) -> None:
    """Before memory is taken for them: the tensors are there and have the ranks that the config says. AdapterError."""
    _, shapes = _read_header(path)
    ranks = {layer: config.rank_pattern.get(layer, config.rank) for layer in config.targets}
    parts = {(layer, part): f"{PREFIX}{layer}.{part}.weight" for layer in ranks for part in ("lora_A", "lora_B")}
    if missing := sorted(key for key in parts.values() if key not in shapes):
        raise AdapterError(f"{path} lacks {', '.join(missing)}.", "Restore the adapter.")
    for layer, rank in ranks.items():
        key = parts[layer, "lora_A"]
        if shapes[key][:1] != [rank]:  # (rank, in)
            raise AdapterError(f"{path}: {key} is {tuple(shapes[key])}, not of rank {rank}.", "Restore the adapter.")


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
    if missing := [key for key in ("r", "lora_alpha", "target_modules") if document.get(key) is None]:
        raise AdapterError(f"{path} has no {missing[0]!r}.", way_out)
    return document


def _require_base(folder: Path, stored: Seal, found: Seal) -> None:
    if different := first_difference(stored, found):
        raise AdapterError(
            f"The adapter in {folder} was trained on another base: tensor {different} differs.",
            "Use it with the base it came from, or train it again on this one.",
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


def _load_weights(path: Path, updates: Mapping[str, LoRAUpdate]) -> None:
    """Copy the stored tensors into `updates`, strictly: every one must be there, fit and be finite, and no other."""
    try:
        tensors = load(read_regular(path, LARGEST_WEIGHTS))
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not know
        raise AdapterError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error
    wanted = _tensors(updates)
    for trouble, keys in (
        ("lacks", wanted.keys() - tensors.keys()),
        ("should not have", tensors.keys() - wanted.keys()),
    ):
        if keys:
            raise AdapterError(f"{path} {trouble} {', '.join(sorted(keys))}.", "Restore the adapter.")
    for key, parameter in wanted.items():
        stored = tensors[key]
        if stored.shape != parameter.shape or stored.dtype not in DTYPES:
            found = f"{tuple(stored.shape)} of {stored.dtype}"
            raise AdapterError(
                f"{path}: {key} is {found}, not {tuple(parameter.shape)} floats.", "Restore the adapter."
            )
        if not stored.to(parameter.dtype).isfinite().all():
            raise AdapterError(f"{path}: {key} is not finite in {parameter.dtype}.", "Restore the adapter.")
        with torch.no_grad():
            parameter.copy_(stored)


def _tensors(updates: Mapping[str, LoRAUpdate]) -> dict[str, nn.Parameter]:
    return {
        f"{PREFIX}{path}.{part}.weight": getattr(update, part)
        for path, update in updates.items()
        for part in ("lora_A", "lora_B")
    }


def _exactly(layer: str) -> str:
    """As a key of PEFT's patterns, which otherwise also mean every layer whose name ends so."""
    return f"^{re.escape(layer)}$"


def _target_modules(targets: list[str], modules: Iterable[str]) -> list[str] | str:
    """The names, or, where PEFT would also take other modules that end so, an expression for exactly those."""
    if any(_is_target(targets, module) for module in modules if module not in targets):
        return "|".join(map(re.escape, targets))
    return targets


def _is_target(target_modules: Any, layer: str) -> bool:
    """PEFT's rule: a string is an expression for the whole name, a list holds whole names or their ends."""
    if isinstance(target_modules, str):
        return re.fullmatch(target_modules, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in target_modules)


def _first(patterns: Mapping[str, Any], layer: str) -> Any:
    """PEFT's rule: the first whose expression fits the end of the name, from a dot on."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), None)
