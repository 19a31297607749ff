"""`adapter_config.json` ↔ LoRAConfig: PEFT's options, and which of them mean something here."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_mnist.errors import AdapterError, DamagedError, LoRAError, shown
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.layer import LoRAUpdate

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


def read_bytes(path: Path) -> bytes:
    """The content of a file of an adapter. Raises AdapterError if it cannot be read, or is a pipe or a device."""
    try:
        if path.exists() and not path.is_file():  # a pipe might never end
            raise AdapterError(f"{path} is not a regular file.", "Restore the adapter.")
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.", "Restore the adapter.") from error


def document_of(updates: Mapping[str, LoRAUpdate], whole: list[str], modules: list[str]) -> dict[str, Any]:
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


def config_of(path: Path, document: Mapping[str, Any], layers: Iterable[str]) -> LoRAConfig:
    """What `document`, read from `path`, means for the linear layers called `layers`. Raises AdapterError."""
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
            rank_pattern={exactly(layer): rank for layer in targets if (rank := first(ranks, layer)) is not None},
            alpha_pattern={exactly(layer): alpha for layer in targets if (alpha := first(alphas, layer)) is not None},
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


def read_document(path: Path) -> dict[str, Any]:
    """Its document, with every option known and nothing missing for which PEFT would take a default in silence."""
    way_out = "Restore it, or save the adapter again."
    try:
        document = json.loads(read_bytes(path))
    except AdapterError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not JSON: {error}.", way_out) from error
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


# PEFT's rules of which modules a name or an expression in its config means --------------------------------------------


def is_target(document: Mapping[str, Any], layer: str) -> bool:
    """Whether a config adapts `layer`: `check_target_module_exists` in peft/tuners/tuners_utils.py.

    A string is an expression for the whole name, a list holds whole names or their ends. `layers_to_transform` chooses
    among those that were found by their ends.
    """
    targets, excluded = document["target_modules"], document.get("exclude_modules")
    if excluded and _finds(excluded, layer):
        return False
    if any(re.match(rf"(^|.*\.){name}($|\..*)", layer) for name in document.get("modules_to_save") or ()):
        return False
    by_its_end = not isinstance(targets, str) and layer not in targets
    return _finds(targets, layer) and (not by_its_end or _is_in_chosen_block(document, layer))


def is_saved_whole(document: Mapping[str, Any], module: str) -> bool:
    """Whether a config trains `module` whole: `_set_trainable` in peft/utils/other.py. Ends need no dot before them."""
    names = document.get("modules_to_save") or []
    return module.endswith(names if isinstance(names, str) else tuple(names))


def first(patterns: Mapping[str, Any], layer: str) -> Any:
    """The value of the first key whose expression fits the end of the name, from a dot on; None if none does."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), None)


def exactly(layer: str) -> str:
    """As a key of PEFT's patterns, which otherwise also mean every layer whose name ends so."""
    return f"^{re.escape(layer)}$"


def targets_for(targets: list[str], modules: Iterable[str]) -> list[str] | str:
    """The names, or, where PEFT would also take other modules that end so, an expression for exactly those."""
    if any(_finds(targets, module) for module in modules if module not in targets):
        return "|".join(map(re.escape, targets))
    return targets


def _finds(names: Any, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_in_chosen_block(document: Mapping[str, Any], layer: str) -> bool:
    """By the first number in the name after `layers_pattern`, or after anything."""
    chosen, patterns = document.get("layers_to_transform"), document.get("layers_pattern")
    if chosen is None or chosen == []:
        return True
    expressions = [
        rf"(?:^|.*?\.){name}\.(\d+)\." for name in ([patterns] if isinstance(patterns, str) else patterns or ())
    ]
    found = (re.match(expression, layer) for expression in expressions or [r".*?\.[^.]*\.(\d+)\."])
    block = next((int(match[1]) for match in found if match), None)
    return block in ([chosen] if isinstance(chosen, int) else chosen)
