"""The adapters of a model: find its layers, put adapters in, take them out, switch them, and count what they cost.

Target layers become `LoRALinear` in place; modules that an adapter trains whole are replaced by `TrainedWhole`.
"""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora.config import ALL_LINEAR, LoRAConfig, matching, require_matching
from lora_mnist.lora.layer import (
    LoRALinear,
    LoRAUpdate,
    TrainedWhole,
    adapt,
    check_name,
    require_numbers,
    require_restorable,
    require_unmerged,
    require_unsharded,
    restore,
)

HEADS = ("score", "classifier")  # what transformers calls a classifier's output layer; PEFT knows the same two
# nobody takes their matrices for linear layers
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NOT_LINEAR = (nn.Embedding, nn.EmbeddingBag, TrainedWhole, *CONVOLUTIONS)
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
INSIDE = ("_orig_mod", "_checkpoint_wrapped_module")  # what handles of torch.compile and activation checkpoints hold

# What a model has -----------------------------------------------------------------------------------------------------


def wrappers(model: nn.Module, every_name: bool = False) -> dict[str, LoRALinear | TrainedWhole]:
    """Everything that carries a part of an adapter, by name; what occurs twice under both if `every_name`."""
    modules = model.named_modules(remove_duplicate=not every_name)
    found = {path: module for path, module in modules if isinstance(module, LoRALinear | TrainedWhole)}
    return {name_in_base(model, path): module for path, module in found.items()}


def name_in_base(model: nn.Module, name: str) -> str:
    """`name`, of a module or a tensor in `model`, without the parts that stand for a handle, as torch.compile's."""
    parts: list[str] = []
    module: Any = model
    for part in name.split("."):
        held = "module" if isinstance(module, PARALLEL) else "base" if isinstance(module, TrainedWhole) else None
        if part not in (*INSIDE, held):
            parts.append(part)
        module = getattr(module, part, None) if isinstance(module, nn.Module) else module
    return ".".join(parts)


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers that carry low-rank updates, by name."""
    return {path: module for path, module in wrappers(model).items() if isinstance(module, LoRALinear)}


def whole_modules(model: nn.Module) -> dict[str, TrainedWhole]:
    """The modules that adapters train whole, by name."""
    return {path: module for path, module in wrappers(model).items() if isinstance(module, TrainedWhole)}


def own_modules(model: nn.Module, every_name: bool = False) -> dict[str, nn.Module]:
    """The modules that the model has without adapters, by name; a wrapped one is its wrapper."""
    inside = {part for wrapper in wrappers(model).values() for part in wrapper.modules() if part is not wrapper}
    modules = model.named_modules(remove_duplicate=not every_name)
    # a handle and what it stands around have one name, and the latter comes later
    return {name_in_base(model, path): module for path, module in modules if module not in inside}


def linear_layers(model: nn.Module, every_name: bool = False) -> dict[str, nn.Linear]:
    """The `nn.Linear` layers of a model, adapted or not, by name.

    A layer that occurs twice goes by its first name, or by both if `every_name`; adapted, it is so at both places.
    The output projection of nn.MultiheadAttention is left out: torch reads its weight instead of calling it.
    """
    modules = own_modules(model, every_name)
    read = {module.out_proj for module in modules.values() if isinstance(module, nn.MultiheadAttention)}
    return {path: layer for path, layer in modules.items() if isinstance(layer, nn.Linear) and layer not in read}


def base_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors without its adapters, under the names they have in the base. Not copies."""
    state = base_state(model).items()
    return {name: tensor.detach() for name, tensor in state if isinstance(tensor, torch.Tensor)}  # no extra state


def base_state(model: nn.Module) -> dict[str, Any]:
    """The state of the base, parameters as such, and what is no tensor, as packed weights."""
    parts = tuple(f"{path}.updates.".lstrip(".") for path in wrappers(model, every_name=True))
    state = {name_in_base(model, name): value for name, value in model.state_dict(keep_vars=True).items()}
    return {name: value for name, value in state.items() if not name.startswith(parts)}


def unsaved_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers of the base that no state dict has. Not copies."""
    carriers, saved = wrappers(model, every_name=True), base_state(model)
    ours = tuple(f"{path}.{part}".lstrip(".") for path in carriers for part in ("updates.", "merged"))
    buffers = {name_in_base(model, name): buffer for name, buffer in model.named_buffers()}
    return {name: buffer for name, buffer in buffers.items() if name not in saved and not name.startswith(ours)}


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters in `model`, in the order they came."""
    return list(dict.fromkeys(name for layer in adapted_layers(model).values() for name in layer.updates))


def parts_of(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """What belongs to adapter `name`: what `updates_of` and `whole_modules_of` give, raising as this does."""
    if name not in (names := adapter_names(model)):
        raise LoRAError(f"The model has no adapter {name!r}.", f"It has {', '.join(names) or 'no adapters'}.")
    return {path: wrapper.updates[name] for path, wrapper in wrappers(model).items() if name in wrapper.updates}


def updates_of(model: nn.Module, name: str) -> dict[str, LoRAUpdate]:
    """The updates of adapter `name`, by the name of their layer. Raises LoRAError if there is no such adapter."""
    return {path: part for path, part in parts_of(model, name).items() if isinstance(part, LoRAUpdate)}


def whole_modules_of(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """The modules that adapter `name` trains whole, by their name. Raises LoRAError if there is no such adapter."""
    return {path: part for path, part in parts_of(model, name).items() if not isinstance(part, LoRAUpdate)}


def is_inside(path: str, modules: Iterable[str]) -> bool:
    """Whether `path` is one of `modules`, or lies in one; everything lies in "", the model itself."""
    return any(module in ("", path) or path.startswith(f"{module}.") for module in modules)


# Which of them an adapter means ---------------------------------------------------------------------------------------


def _resolve_targets(model: nn.Module, config: LoRAConfig, whole: list[str]) -> dict[str, LoRAConfig]:
    """The config of each layer that `config` targets, by name. What lies in the modules `whole` is no target."""
    outputs, linear = _output_layers(model), linear_layers(model)
    layers = [path for path in linear if not is_inside(path, whole)]
    others = {  # matrices, or stacks of them, that are no linear layer's, by name: their module's class
        f"{path}.{name}".lstrip("."): type(module).__name__
        for path, module in own_modules(model).items()
        if not (isinstance(module, NOT_LINEAR) or is_inside(path, linear))
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2 and 1 not in parameter.shape
    }
    targets: set[str] = set()
    left_out: dict[str, str] = {}
    for pattern in config.targets:
        if pattern == ALL_LINEAR:
            targets |= {path for path in layers if not is_inside(path, outputs)}
            left_out |= others
            continue
        unfit = {name: kind for name, kind in others.items() if matching(pattern, [name.rpartition(".")[0]])}
        if unfit and not matching(pattern, layers):
            cause = f"Target {pattern!r} finds no nn.Linear, but {_listed(unfit)}."
            raise LoRAError(cause, "Only nn.Linear is adapted.")
        targets |= require_matching(pattern, layers)
        left_out |= unfit
    if not targets:
        rest = f"; left out are {_listed(others)}" if others else ""
        raise LoRAError(f"There is none to adapt: no linear layer but the output's{rest}.", "Name a target.")
    if left_out:
        warnings.warn(f"Only nn.Linear is adapted, so these matrices are left out: {_listed(left_out)}.", stacklevel=3)
    heads = [path for path in outputs if path in HEADS and not is_inside(path, whole)]
    if ALL_LINEAR in config.targets and heads:
        advice = f"To train it whole, pass also_train=({heads[0]!r},)."
        warnings.warn(f"The output layer {heads[0]} stays as it is. {advice}", stacklevel=3)
    found = [path for path in layers if path in targets]
    return replace(config, targets=found).of_layers(found)


def _output_layers(model: nn.Module) -> list[str]:
    """The names of what a model of transformers ends in; none for other models, which have no such method."""
    inner = model.module if isinstance(model, PARALLEL) else model
    if not callable(ask := getattr(inner, "get_output_embeddings", None)):
        return []
    output = ask()
    if output is None:
        return [name for name in HEADS if isinstance(getattr(inner, name, None), nn.Module)]
    return [path for path, module in own_modules(model).items() if module is output]


def _listed(found: dict[str, str]) -> str:
    """The first name of every class, and how many more there are."""
    first = {kind: name for name, kind in reversed(found.items())}
    counts = Counter(found.values()).items()
    return ", ".join(f"{first[kind]}{f' and {n - 1} more' if n > 1 else ''} ({kind})" for kind, n in counts)


def modules_to_train(model: nn.Module, patterns: str | Iterable[str]) -> list[str]:
    """The names of the modules that `patterns`, or one, find, without those that lie in another of them."""
    modules = own_modules(model)
    names = [path for path, module in modules.items() if path and any(True for _ in module.parameters())]
    patterns = [patterns] if isinstance(patterns, str) else patterns or ()
    found = {path for pattern in patterns for path in require_matching(pattern, names, "module")}
    whole = [path for path in names if path in found and not is_inside(path, found - {path})]
    for path in whole:
        module = modules[path]
        if isinstance(module, CONTAINERS):  # a copy would stand where nobody calls it
            kind = type(module).__name__
            raise LoRAError(f"{path}, a {kind}, is not called, so no copy of it can be used.", "Name its parts.")
        if isinstance(module, TrainedWhole):
            if module.active is not None:
                raise LoRAError(f"{path} is trained whole by {module.active!r}, which is on.", "Switch that one off.")
        elif wrappers(module):
            raise LoRAError(f"{path} has adapters, so it cannot be trained whole.", "Remove them before.")
    return whole


# Put in and take out --------------------------------------------------------------------------------------------------


def inject(
    model: nn.Module,
    name: str,
    config: LoRAConfig,
    generator: torch.Generator | None = None,
    also_train: str | Iterable[str] = (),
) -> dict[str, LoRAUpdate]:
    """Freeze all of `model` and add adapter `name`, the only thing in it that trains.

    Adapters that are on stay on, frozen too, and this one adds to them: `switch` says which are on. If it raises, the
    model is as it was. A UserWarning names what a target seems to mean and cannot have (`Conv1D`, fused experts), and
    weights that a target shares with another module, which then keeps W. The running statistics of nn.BatchNorm, which
    are part of the base, still move in training mode: keep such layers in eval mode. Returns the new update of every
    adapted layer, by its name.

    Args:
        model: any module; its target layers become `LoRALinear` in place, wherever they occur in it.
        generator: draws `lora_A`; None takes torch's global one.
        also_train: patterns, as those of targets, of modules of any kind that the adapter trains whole, as a new
            classifier has to be. It trains a copy that belongs to the adapter; the base keeps its own.

    Raises:
        LoRAError: a pattern matches nothing, the rank is above the smaller side of every target, a module to train
            whole has adapters or is trained by one that is on, the model is merged, sharded (FSDP) or a target on the
            meta device, or the name is taken or unfit.
    """
    if not isinstance(config, LoRAConfig):
        raise LoRAError(f"`config` is a LoRAConfig, not a {type(config).__name__}.", "Write LoRAConfig(rank=8).")
    whole = modules_to_train(model, also_train)
    configs = _resolve_targets(model, config, whole)
    sides = {path: min(layer.in_features, layer.out_features) for path, layer in linear_layers(model).items()}
    if all(own.rank > sides[path] > 0 for path, own in configs.items()):  # 0: a lazy layer
        rank = max(own.rank for own in configs.values())
        cause = f"`rank` (={rank}) is above the smaller side of every target layer."
        raise LoRAError(cause, f"Choose a rank of at most {max(sides[path] for path in configs)}.")
    modules = own_modules(model)
    owners: dict[int, list[str]] = {}
    for path, module in modules.items():
        for parameter in module.parameters(recurse=isinstance(module, TrainedWhole)):  # has none of its own
            owners.setdefault(id(parameter), []).append(path)
    for path in (*configs, *whole):
        sharing = [owner for parameter in modules[path].parameters() for owner in owners.get(id(parameter), [])]
        if others := [owner for owner in sharing if not is_inside(owner, [path])]:  # that one keeps W
            warnings.warn(f"{path} shares its weight with {others[0]}, which stays as it is.", stacklevel=2)
    return attach(model, name, configs, generator, whole)


def attach(
    model: nn.Module, name: str, configs: Mapping[str, LoRAConfig], generator: torch.Generator | None, whole: list[str]
) -> dict[str, LoRAUpdate]:
    """`inject`, with a config for each layer by name, and the names that `modules_to_train` returned."""
    check_name(name, adapter_names(model))
    # new A and B would be no part of what is sharded: every process would train its own
    require_unsharded(model, "add an adapter")
    modules, layers = own_modules(model), linear_layers(model)
    for path in configs:
        W = layers[path].weight
        if isinstance(W, nn.UninitializedParameter):
            raise LoRAError(f"{path} is lazy and has no shape to adapt yet.", "Run the model once before.")
        require_numbers(f"{path}.weight", W)
    require_unmerged(model, "add an adapter")
    bases = {path: module.base if isinstance(module, TrainedWhole) else module for path, module in modules.items()}
    with torch.inference_mode(False):  # what is made in that mode can never train
        # all that takes memory comes first, so that running out of it leaves the model as it was
        updates = {path: LoRAUpdate(layers[path], own, generator) for path, own in configs.items()}
        copies = {path: copy.deepcopy(bases[path]) for path in whole}
    for path, update in updates.items():
        layer = adapt(layers[path])
        layer.updates[name] = update.train(layer.training)
    for path, part in copies.items():
        module = modules[path]
        wrapper = module if isinstance(module, TrainedWhole) else TrainedWhole(module)
        replace_module(model, module, wrapper)
        wrapper.updates[name], wrapper.active = part.train(wrapper.training), name
    train_only(model, name)
    return updates


def remove(model: nn.Module, name: str) -> None:
    """Take adapter `name` out; a layer without adapters is the `nn.Linear` it was. The base stays frozen.

    Raises LoRAError if there is no such adapter, or the model is merged.
    """
    parts, carriers = parts_of(model, name), wrappers(model)
    require_unmerged(model, "remove an adapter")
    for path in parts:
        if isinstance(layer := carriers[path], LoRALinear) and len(layer.updates) == 1:
            require_restorable(path, layer)
    for wrapper in (carriers[path] for path in parts):
        del wrapper.updates[name]
        if isinstance(wrapper, TrainedWhole):
            wrapper.active = None if wrapper.active == name else wrapper.active
            if not wrapper.updates:
                replace_module(model, wrapper, wrapper.base)
        elif not wrapper.updates:
            restore(wrapper)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is a child in `model`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old and parent is not new:
                setattr(parent, name, new)


# Switch ---------------------------------------------------------------------------------------------------------------


def train_only(model: nn.Module, names: str | Iterable[str]) -> None:
    """Let the adapters `names`, or one, require gradients with all that belongs to them, and nothing else in `model`.

    Raises LoRAError if there is no such adapter.
    """
    names = [names] if isinstance(names, str) else names
    chosen = nn.ModuleList(part for name in names for part in parts_of(model, name).values())
    model.requires_grad_(False)
    chosen.requires_grad_(True)


def strengths(model: nn.Module) -> dict[str, float]:
    """The strength of every adapter: 1 as stored, 0 off."""
    return {name: next(iter(updates_of(model, name).values())).strength for name in adapter_names(model)}


def set_strength(model: nn.Module, name: str, strength: float) -> None:
    """Apply adapter `name` with `strength` as a factor: 1 as stored, 0 off. Raises LoRAError as `switch` does."""
    switch(model, {**strengths(model), name: strength})


def switch(model: nn.Module, wanted: Mapping[str, float]) -> None:
    """Apply the adapters in `wanted`, each with its strength, and no other.

    Raises LoRAError, and nothing is switched, if a strength is not finite or too large, there is no such adapter, two
    of them train the same module whole, or the model is merged.
    """
    if not isinstance(wanted, Mapping):
        raise LoRAError(f"`switch` takes strengths by adapter name, not {wanted!r}.", "Write {'name': 1.0}.")
    for name, strength in wanted.items():
        updates = updates_of(model, name).values()
        if not isinstance(strength, Real) or not math.isfinite(strength):
            raise LoRAError(f"`strength` (={strength!r}) must be a finite number.", "1 is as stored, 0 is the base.")
        if any(abs(strength * one.scaling) > torch.finfo(one.lora_B.dtype).max for one in updates):
            raise LoRAError(f"`strength` (={strength!r}) is too large for the weights' dtype.", "Choose a smaller one.")
    for path, module in whole_modules(model).items():
        if len(on := [name for name in module.updates if wanted.get(name)]) > 1:
            cause = f"{path} is trained whole by {' and '.join(on)}: it can be but one."
            raise LoRAError(cause, "Switch on one of them.")
    require_unmerged(model, "switch adapters")
    for layer in adapted_layers(model).values():
        for name, update in layer.updates.items():
            update.strength = float(wanted.get(name, 0.0))
    for module in whole_modules(model).values():
        module.active = next((name for name in module.updates if wanted.get(name)), None)


def scale_alpha(model: nn.Module, name: str, factor: float) -> None:
    """Multiply the alpha of every layer of adapter `name` by `factor`, for good: `save_adapter` stores it.

    A and B stay as they are, and so does the strength. Raises LoRAError, and every alpha is as it was, if there is no
    such adapter, the model is merged, or an alpha would not be a finite number above 0.
    """
    require_unmerged(model, "change alpha")
    updates = updates_of(model, name).values()
    configs = [replace(update.config, alpha=update.config.alpha * factor) for update in updates]
    for update, config in zip(updates, configs, strict=True):
        update.config, update.scaling = config, config.scaling
        update.strength = update.strength  # what a compiled graph reads is made of both


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block every adapter is off and the model is the base, bit for bit; merged or not."""
    before = [(wrapper, wrapper.off) for wrapper in wrappers(model).values()]
    try:
        for wrapper, _ in before:
            wrapper.off = True
        yield model
    finally:
        for wrapper, off in before:
            wrapper.off = off


# Count ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerParameters:
    """The shapes of one linear layer; the last three are None where the adapter has no part in it."""

    layer: str  # its name
    weight: tuple[int, ...]  # (out, in)
    bias: tuple[int, ...] | None  # (out,), or None where there is none
    lora_A: tuple[int, ...] | None  # (rank, in)
    lora_B: tuple[int, ...] | None  # (out, rank)
    scaling: float | None


@dataclass(frozen=True)
class ParameterTable:
    """What an adapter costs, in numbers."""

    layers: tuple[LayerParameters, ...]  # all linear layers of the model, in its order
    base: int  # parameters of the model without any adapter
    added: int  # parameters of the adapter, and of the modules that it trains whole
    total: int  # base + added
    share: float  # added / base


def parameter_table(model: nn.Module, name: str) -> ParameterTable:
    """Shapes layer by layer, and how many numbers adapter `name` adds. Raises LoRAError if there is none."""
    updates, rows = updates_of(model, name), []
    for path, layer in linear_layers(model).items():
        W, bias, A, B, scaling = layer.weight, layer.bias, None, None, None
        if update := updates.get(path):
            A, B, scaling = tuple(update.lora_A.shape), tuple(update.lora_B.shape), update.scaling
        rows.append(LayerParameters(path, tuple(W.shape), None if bias is None else tuple(bias.shape), A, B, scaling))
    added = sum(parameter.numel() for part in parts_of(model, name).values() for parameter in part.parameters())
    of_adapters = {id(p) for wrapper in wrappers(model).values() for p in wrapper.updates.parameters()}
    base = sum(p.numel() for p in model.parameters() if id(p) not in of_adapters)
    return ParameterTable(tuple(rows), base, added, base + added, added / base)
