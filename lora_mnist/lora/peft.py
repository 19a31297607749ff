"""An adapter ↔ `adapter_config.json` + `adapter_model.safetensors`, as PEFT writes and reads them.

PEFT ignores the metadata of a safetensors file, so the fingerprint of the base rides there.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import nn

from lora_mnist.errors import AdapterError, DiskError, LoRAError
from lora_mnist.files import to_json, write_files
from lora_mnist.lora.adapters import base_tensors, copies_of, updates_of
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.fingerprint import Fingerprint, compute_fingerprint, differences, fingerprint_model
from lora_mnist.lora.injection import attach, modules_to_train, remove
from lora_mnist.lora.peft_config import config_of, document_of, read_document
from lora_mnist.lora.peft_tensors import (
    copy_in,
    dtype_of,
    factors_of,
    read_metadata,
    read_tensors,
    require_ranks,
    take_out_the_base,
    tensors_of_copies,
)
from lora_mnist.lora.rules import is_saved_whole
from lora_mnist.lora.targets import is_in, linear_layers, own_modules
from lora_mnist.lora.update import LoRAUpdate

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
    folder, updates, copies = Path(folder), updates_of(model, name), copies_of(model, name)
    document = stored_config(model, name)
    tensors = {
        key: part.detach().to(torch.promote_types(part.dtype, torch.float32)).cpu().contiguous()
        for key, part in factors_of(updates).items()
    } | {key: part.detach().cpu().contiguous().clone() for key, part in tensors_of_copies(copies).items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise LoRAError(f"Adapter {name!r} has NaN or infinity in it.", "Train it with a lower learning rate.")
    base_fingerprint = base_fingerprint or fingerprint_model(model)
    contents = {CONFIG: to_json(document), WEIGHTS: save(tensors, {"base_fingerprint": base_fingerprint.to_text()})}
    try:
        write_files(folder, contents)
    except DiskError as error:
        raise DiskError(error.cause, "Free space or choose another folder; what was in this one is kept.") from error


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
    folder = Path(folder)
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
    require_ranks(folder / WEIGHTS, tensors, config)
    take_out_the_base(folder / WEIGHTS, tensors, model, whole, check=base != "any")
    return _attach_filled(folder / WEIGHTS, tensors, model, name, config.of_layers(layers), whole)


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
