"""`adapter_config.json` ↔ LoRAConfig: PEFT's options, and which of them mean something here."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lora_mnist.errors import AdapterError, DamagedError, LoRAError, shown
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.layer import LoRAUpdate

# Ours → PEFT's `init_lora_weights`; only for the record once trained. Others (pissa, olora, …) keep a part of W in the
# adapter, so they are refused; True, False and None all leave W as it is.
INITS = {"kaiming": True, "gaussian": "gaussian"}
# Written out although they are PEFT's defaults: without `r` or `lora_alpha` PEFT silently takes 8.
FIXED = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False}
NUMBERS = {"r", "lora_alpha", "lora_dropout"}  # LoRAConfig checks them
# These change nothing in what a trained adapter computes. The weights file says which layers were chosen, and a task
# that brings layers of its own along names them in `modules_to_save`.
IGNORED = {
    *("auto_mapping", "base_model_name_or_path", "peft_version", "revision", "inference_mode", "task_type"),
    *("megatron_core", "qalora_group_size", "exclude_modules", "layers_to_transform", "layers_pattern"),
}


def read_bytes(path: Path) -> bytes:
    """The content of a file of an adapter. Raises AdapterError if it cannot be read, or is a pipe or a device."""
    try:
        if path.exists() and not path.is_file():  # a pipe might never end
            raise AdapterError(f"{path} is not a regular file.", "Restore the adapter.")
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.", "Restore the adapter.") from error


def document_of(updates: Mapping[str, LoRAUpdate], whole: list[str], modules: list[str]) -> dict[str, Any]:
    """The config that makes PEFT adapt exactly the layers of `updates` and train exactly `whole`, of all `modules`.

    Raises LoRAError if a name in `whole` means more than that to PEFT.
    """
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
        "target_modules": list(own),
    }
    if any(finds(list(own), module) for module in modules if module not in own):
        # PEFT would also take other modules that end so; an expression is for the whole name
        document["target_modules"] = "|".join(map(re.escape, own))
    if whole:
        document["modules_to_save"] = whole
        more = [path for path in modules if is_saved_whole(document, path) and path not in whole]
        # for PEFT these are expressions, and what lies in such a module is no target
        lost = [path for path in own if any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in whole)]
        if more or lost:
            cause = f"PEFT would take {(more + lost)[0]} for a part of {', '.join(whole)}, by its name."
            raise LoRAError(cause, "Rename one of them.")
    return document


def read_document(path: Path) -> dict[str, Any]:
    """The config in `path`: every option is known, and none is missing for which PEFT silently takes a default.

    Raises AdapterError if that is not so, or the file cannot be read; DamagedError if it is not JSON.
    """
    way_out = "Restore it, or save the adapter again."
    content = read_bytes(path)
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


def layer_configs(
    path: Path,
    document: Mapping[str, Any],
    ranks: Mapping[str, int],
    whole: Iterable[str],
    layers: Iterable[str],
    dtype: torch.dtype | None,
) -> dict[str, LoRAConfig]:
    """What `document`, read from `path`, means for the layers in `ranks`, which have these ranks in the weights file.

    PEFT lets a target also name modules that the adapter trains `whole`; `layers` are all linear layers of the model
    outside of these, `dtype` is that of A and B. Raises AdapterError if target_modules names other layers than the file
    has, or the config another rank, or a value that is out of its range.
    """
    configs = {}
    try:
        _require_targets(path, document, list(ranks), whole, layers)
        for layer, rank in ranks.items():
            if (expected := first(document.get("rank_pattern"), layer, document["r"])) != rank:
                cause = f"{path}: {layer} is not of rank {shown(expected)}, but {rank} in adapter_model.safetensors."
                raise AdapterError(cause, "Restore the adapter.")
            configs[layer] = LoRAConfig(
                targets=(layer,),
                rank=rank,
                alpha=first(document.get("alpha_pattern"), layer, document["lora_alpha"]),
                rslora=bool(document.get("use_rslora", False)),
                dropout=document.get("lora_dropout", 0.0),
                init="gaussian" if document.get("init_lora_weights") == "gaussian" else "kaiming",
                dtype=dtype,
            )
    except AdapterError:
        raise
    except (LoRAError, re.error) as error:
        raise AdapterError(f"{path} is not an adapter's config: {error}.", "Restore it.") from error
    return configs


def _require_targets(
    path: Path, document: Mapping[str, Any], stored: list[str], whole: Iterable[str], layers: Iterable[str]
) -> None:
    """Or a weights file that lost some of its layers would load as an adapter of fewer."""
    targets = document["target_modules"]
    if isinstance(targets, list):  # of names or their ends: each finds something
        lost = [name for name in targets if not any(finds([name], module) for module in (*stored, *whole))]
    else:  # an expression: all that it finds is there, unless PEFT went by `exclude_modules` too
        excluded = bool(document.get("exclude_modules"))
        lost = [layer for layer in layers if finds(targets, layer) and layer not in stored and not excluded]
    stray = [layer for layer in stored if not finds(targets, layer)]
    if lost or stray or not stored:
        named = ", ".join(lost or stray) or "any linear layer of this model"
        cause = f"{path}: target_modules and adapter_model.safetensors do not both have {named}."
        raise AdapterError(cause, "Restore the adapter, or use its own base.")


# PEFT's rules of which modules a name or an expression in its config means --------------------------------------------


def is_saved_whole(document: Mapping[str, Any], module: str) -> bool:
    """Whether a config trains `module` whole: `_set_trainable` in peft/utils/other.py. Ends need no dot before them."""
    names = document.get("modules_to_save") or []
    return module.endswith(names if isinstance(names, str) else tuple(names))


def first(patterns: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """The value of the first key whose expression fits the end of the name, from a dot on; else `default`."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", layer))
    return next(found, default)


def exactly(layer: str) -> str:
    """As a key of PEFT's patterns, which otherwise also mean every layer whose name ends so."""
    return f"^{re.escape(layer)}$"


def finds(names: str | Iterable[str], module: str) -> bool:
    """Whether `target_modules` finds `module`: a string is an expression for its name, a list has names or ends."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)
