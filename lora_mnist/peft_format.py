"""An adapter ↔ `adapter_config.json` + `adapter_model.safetensors`, as PEFT writes and reads them.

The only file that knows PEFT's names: `r`, `lora_alpha`, and the keys of the tensors. PEFT ignores the metadata of a
safetensors file, so the seal of the base rides there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from lora_mnist.errors import RunError, UsageError
from lora_mnist.files import read_json, to_json, write_file
from lora_mnist.integrity import Seal
from lora_mnist.lora import LoRAConfig, LoRAUpdate

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
INITS = {"kaiming": True, "gaussian": "gaussian"}  # ours → PEFT's init_lora_weights; only for the record once trained
# Written out although they are PEFT's defaults: without `r` or `lora_alpha` PEFT silently takes 8.
FIXED = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "task_type": None}
OURS = {"r", "lora_alpha", "use_rslora", "lora_dropout", "init_lora_weights", "target_modules"}
# Change nothing in what an adapter computes once it is trained.
IGNORED = {"auto_mapping", "base_model_name_or_path", "peft_version", "revision", "megatron_core", "qalora_group_size"}


def save_adapter(folder: Path, config: LoRAConfig, updates: Mapping[str, LoRAUpdate], base_seal: Seal) -> None:
    """Write both files. `updates` are keyed by layer; their names become PEFT's `target_modules`."""
    document = {
        **FIXED,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rslora,
        "lora_dropout": config.dropout,
        "init_lora_weights": INITS[config.init],
        "target_modules": list(updates),
    }
    tensors = {}
    for path, update in updates.items():
        for part in ("lora_A", "lora_B"):
            tensors[_key(path, part)] = getattr(update, part).detach().float().cpu().contiguous()
    write_file(folder / CONFIG, to_json(document))
    write_file(folder / WEIGHTS, save(tensors, {"base_seal": base_seal.to_text()}))


def load_config(folder: Path) -> LoRAConfig:
    """Read adapter_config.json.

    Raises:
        RunError: it is missing, damaged, or uses an option of PEFT's that is not implemented here.
    """
    path = folder / CONFIG
    document = read_json(path)
    if not isinstance(document, dict):
        raise RunError(f"{path} is not an adapter's config.", "Restore it.")
    for name, value in document.items():
        neutral = FIXED.get(name, value if name in OURS | IGNORED else None)
        if name != "inference_mode" and value != neutral and (name in FIXED or value not in (None, False, {}, [])):
            raise RunError(f"{path}: option {name!r} (={value!r}) is not implemented.", "Save the adapter without it.")
    if missing := sorted(OURS - {"use_rslora", "lora_dropout", "init_lora_weights"} - document.keys()):
        raise RunError(f"{path} has no {missing[0]!r}.", "Restore it, or make the adapter again with --force.")
    start = document.get("init_lora_weights")
    targets = document["target_modules"]
    try:
        return LoRAConfig(
            targets=tuple(targets) if isinstance(targets, list) else (targets,),
            rank=document["r"],
            alpha=document["lora_alpha"],
            rslora=document.get("use_rslora", False),
            dropout=document.get("lora_dropout", 0.0),
            init=next((ours for ours, theirs in INITS.items() if theirs == start), "kaiming"),
        )
    except UsageError as error:
        raise RunError(f"{path}: {error.cause}", "Restore it.") from error


def load_seal(folder: Path) -> Seal:
    """The seal of the base that the adapter was trained on. Raises RunError if there is none, or it is damaged."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("base_seal")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error
    if text is None:
        raise RunError(f"{path} does not say which base it was trained on.", "Use an adapter made by `finetune`.")
    return Seal.from_text(text)


def load_weights(folder: Path, updates: Mapping[str, LoRAUpdate]) -> None:
    """Copy the stored tensors into `updates`, strictly: every tensor must be there, fit, and be finite, and no other.

    Raises:
        RunError: the file is missing, damaged, or does not fit.
    """
    tensors = _read(folder / WEIGHTS)
    wanted = {
        _key(path, part): getattr(update, part) for path, update in updates.items() for part in ("lora_A", "lora_B")
    }
    for trouble, keys in (
        ("lacks", wanted.keys() - tensors.keys()),
        ("should not have", tensors.keys() - wanted.keys()),
    ):
        if keys:
            raise RunError(f"{folder / WEIGHTS} {trouble} {', '.join(sorted(keys))}.", "Restore the adapter.")
    for key, parameter in wanted.items():
        stored = tensors[key]
        if stored.shape != parameter.shape or stored.dtype != torch.float32 or not stored.isfinite().all():
            raise RunError(
                f"{folder / WEIGHTS}: {key} is not {tuple(parameter.shape)} finite fp32 numbers.",
                "Restore the adapter.",
            )
        with torch.no_grad():
            parameter.copy_(stored)


def _key(path: str, part: str) -> str:
    return f"{PREFIX}{path}.{part}.weight"


def _read(path: Path) -> dict[str, Any]:
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}.", "Restore the adapter.") from error
