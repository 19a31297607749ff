"""What of a model can be adapted, which layers a config means, and what is left out without having been asked for."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora.config import ALL_LINEAR, LoRAConfig, find, matching
from lora_mnist.lora.layer import LoRALinear, is_linear
from lora_mnist.lora.modules_to_save import TrainedWhole

HEADS = ("score", "classifier")  # as transformers calls a classifier's output layer, and PEFT knows them


def linear_layers(model: nn.Module, every_name: bool = False) -> dict[str, nn.Linear]:
    """The `nn.Linear` layers of a model, adapted or not, by name.

    A layer that occurs twice goes by its first name, or under both if `every_name`; adapted, it is so at both places.
    The output projection of nn.MultiheadAttention is left out: torch reads its weight instead of calling it.
    """
    modules = own_modules(model, every_name)
    read = {id(module.out_proj) for module in modules.values() if isinstance(module, nn.MultiheadAttention)}
    return {path: module for path, module in modules.items() if is_linear(module) and id(module) not in read}


def own_modules(model: nn.Module, every_name: bool = False) -> dict[str, nn.Module]:
    """The modules that the model has without adapters, by name; a wrapped one is its wrapper."""
    inside = {id(part) for wrapper in wrappers(model).values() for part in wrapper.modules() if part is not wrapper}
    modules = model.named_modules(remove_duplicate=not every_name)
    return {path: module for path, module in modules if id(module) not in inside}


def wrappers(model: nn.Module, every_name: bool = False) -> dict[str, LoRALinear | TrainedWhole]:
    """Everything that carries a part of an adapter, by name; what occurs twice under both if `every_name`."""
    modules = model.named_modules(remove_duplicate=not every_name)
    return {path: module for path, module in modules if isinstance(module, LoRALinear | TrainedWhole)}


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers that carry low-rank updates, by name."""
    return {path: module for path, module in wrappers(model).items() if isinstance(module, LoRALinear)}


def whole_modules(model: nn.Module) -> dict[str, TrainedWhole]:
    """The modules that adapters train whole, by name."""
    return {path: module for path, module in wrappers(model).items() if isinstance(module, TrainedWhole)}


def configs_of(model: nn.Module, config: LoRAConfig, whole: Iterable[str] = ()) -> dict[str, LoRAConfig]:
    """What `config` comes to for each layer of `model` that it targets.

    `all-linear` are the linear layers without the output layer of a model of transformers: what
    `get_output_embeddings()` returns, or else what is called `score` or `classifier`. Other models have no such method,
    and all of their layers are meant.

    Args:
        whole: names of modules; what lies in them is no target.

    Raises:
        LoRAError: nothing is found, or a pattern finds nothing.
    """
    layers = [path for path in linear_layers(model) if not is_in(path, whole)]
    outputs, others = output_layers(model), matrices(model)
    targets = {path for path in layers if not is_in(path, outputs)} if ALL_LINEAR in config.targets else set()
    for pattern in config.targets:
        unfit = {path: kind for path, kind in others.items() if matching(pattern, [path.rpartition(".")[0]])}
        if pattern != ALL_LINEAR and unfit and not matching(pattern, layers):
            raise LoRAError(
                f"Target {pattern!r} finds no nn.Linear, but {_listed(unfit)}.", "Only nn.Linear is adapted."
            )
    targets |= find([pattern for pattern in config.targets if pattern != ALL_LINEAR], layers)
    if not targets:
        left_out = f"; left out are {_listed(others)}" if others else ""
        raise LoRAError(f"There is none to adapt: no linear layer but the output's{left_out}.", "Name a target.")
    found = [path for path in layers if path in targets]
    return replace(config, targets=found).of_layers(found)


def output_layers(model: nn.Module) -> list[str]:
    """The names of what a model of transformers ends in; none for other models."""
    if not callable(ask := getattr(model, "get_output_embeddings", None)):
        return []
    output = ask()
    if output is None:
        return [name for name in HEADS if isinstance(getattr(model, name, None), nn.Module)]
    return [path for path, module in own_modules(model).items() if module is output]


def warn_of_what_is_left_out(
    model: nn.Module, config: LoRAConfig, targets: Iterable[str], whole: Iterable[str]
) -> None:
    """Name what the targets of a new adapter seem to mean and do not have, and what shares its weight with a target."""
    meant = {
        path: kind
        for path, kind in matrices(model).items()
        if any(pattern == ALL_LINEAR or matching(pattern, [path.rpartition(".")[0]]) for pattern in config.targets)
    }
    if meant:
        _warn(f"Only nn.Linear is adapted, so these matrices are left out: {_listed(meant)}.")
    heads = [path for path in output_layers(model) if path in HEADS and not is_in(path, whole)]
    if ALL_LINEAR in config.targets and heads:
        _warn(f"The output layer {heads[0]} stays as it is. To train it whole, pass also_train=({heads[0]!r},).")
    for path, other in tied(model, [*targets, *whole]).items():
        _warn(f"{path} shares its weight with {other}, which stays as it is.")


def matrices(model: nn.Module) -> dict[str, str]:
    """Parameters that are matrices, or stacks of them, in other modules than linear ones, by name: the module's class.

    Not those of embeddings and convolutions, which nobody takes for linear layers.
    """
    others = (nn.Embedding, nn.EmbeddingBag, nn.Conv1d, nn.Conv2d, nn.Conv3d, TrainedWhole)
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    linear = linear_layers(model)
    return {
        f"{path}.{name}".lstrip("."): type(module).__name__
        for path, module in own_modules(model).items()
        if not (isinstance(module, others + transposed) or is_in(path, linear))
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2 and 1 not in parameter.shape
    }


def tied(model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """The modules among `paths` a parameter of which also belongs to another module, and that module's name."""
    modules = {path: base_of(module) for path, module in own_modules(model).items()}
    places: dict[int, list[str]] = {}
    for path, module in modules.items():
        for parameter in module.parameters(recurse=False):
            places.setdefault(id(parameter), []).append(path)
    others = {
        path: [other for p in modules[path].parameters() for other in places.get(id(p), []) if not is_in(other, [path])]
        for path in paths
    }
    return {path: found[0] for path, found in others.items() if found}


def base_of(module: nn.Module) -> nn.Module:
    """An entry of `own_modules` without its adapters."""
    return module.base if isinstance(module, TrainedWhole) else module


def is_in(path: str, modules: Iterable[str]) -> bool:
    """Whether `path` is one of `modules`, or lies in one; everything lies in "", the model itself."""
    return any(module in ("", path) or path.startswith(f"{module}.") for module in modules)


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)


def _listed(found: Mapping[str, str]) -> str:
    """The first of every class, and how many more there are."""
    classes: dict[str, list[str]] = {}
    for path, kind in found.items():
        classes.setdefault(kind, []).append(path)
    return ", ".join(
        f"{paths[0]}{f' and {len(paths) - 1} more' if paths[1:] else ''} ({kind})" for kind, paths in classes.items()
    )
