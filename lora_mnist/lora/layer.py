"""What an adapted model has in place of its modules: `LoRALinear`, and `TrainedWhole` (PEFT's `modules_to_save`)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from lora_mnist.errors import LoRAError
from lora_mnist.lora.config import LoRAConfig


class LoRAUpdate(nn.Module):
    """One adapter's update of one layer: strength · scaling · B A x.

    Attributes:
        lora_A: (rank, in), in the dtype that `config.dtype_beside` gives and on the device of the layer's weight.
        lora_B: (out, rank), likewise; 0 at first.
        config: of this layer; `scaling` is its scaling.
        strength: 1 as stored, 0 off; `set_strength` sets it for all layers of an adapter.
        on: whether it is computed at all: its strength is not 0.
    """

    on: bool

    def __init__(self, linear: nn.Linear, config: LoRAConfig, generator: torch.Generator | None = None):
        super().__init__()
        # drawn on the CPU in fp32, so that every device and every default dtype starts the same
        a = torch.empty(config.rank, linear.in_features, device="cpu", dtype=torch.float32)
        if config.init == "kaiming":
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        else:
            nn.init.normal_(a, generator=generator)
        self.lora_A = nn.Parameter(a.to(linear.weight.device, config.dtype_beside(linear.weight.dtype)))
        self.lora_B = nn.Parameter(self.lora_A.new_zeros(linear.out_features, config.rank))
        self.dropout = nn.Dropout(config.dropout)
        self.config, self.scaling = config, config.scaling
        self.strength = 1.0

    @property
    def strength(self) -> float:
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength, self.on = value, value != 0
        with torch.inference_mode(False):
            # a compiled graph takes a number for a constant, but reads a tensor; not a buffer, since `to` rounds those
            self._factor = torch.tensor(self.scaling * value, dtype=torch.float64, device="cpu")

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (…, in), y (…, out) → y + strength · scaling · B A x (…, out).

        The update is computed in the dtype of A and B; the sum is rounded to that of y once.
        """
        A, B = self.lora_A, self.lora_B
        if torch.compiler.is_compiling():
            low = F.linear(self.dropout(x).to(A.dtype), A) * self._factor.to(A.dtype)
            return (y.to(A.dtype) + F.linear(low, B)).to(y.dtype)
        alpha, dropout = self.scaling * self._strength, self.training and self.dropout.p > 0
        alike = x.dtype == y.dtype == A.dtype and not torch.is_autocast_enabled(x.device.type)
        if alike and not dropout and not x.is_nested and x.dim() >= 2:
            if x.dim() == 2:  # (N, in), (N, out): one product that adds and scales as well
                return torch.addmm(y, F.linear(x, A), B.t(), alpha=alpha)
            rows = torch.addmm(y.flatten(0, -2), F.linear(x.flatten(0, -2), A), B.t(), alpha=alpha)
            return rows.view(y.shape)  # (…, out) -> (N, out) -> (…, out)
        low = F.linear(self.dropout(x).to(A.dtype), A)  # (…, in) -> (…, rank)
        update = F.linear(low, B) * alpha  # (…, rank) -> (…, out)
        return (y.to(update.dtype) + update).to(y.dtype)

    def weight(self) -> torch.Tensor:
        """The update as one matrix (out, in)."""
        return (self.lora_B @ self.lora_A).mul_(self.scaling * self.strength)  # in place: it may be large

    def extra_repr(self) -> str:
        state = f"strength={self.strength:g}" if self.strength else "off"
        return f"rank={self.config.rank}, alpha={self.config.alpha:g}, {state}, dtype={self.lora_A.dtype}"


class LoRALinear(nn.Linear):
    """An `nn.Linear` that has the updates of any number of adapters, by adapter name; `adapt` makes one of a layer.

    It keeps the layer's own parameters and their names, `weight` and `bias`, so every file and every tool that knows
    the base still fits; `updates.NAME.lora_A` and `….lora_B` come beside them. It never makes a matrix, nor a gradient,
    of the size of W unless it is merged. With all adapters off, it computes what it did before, bit for bit.

    Attributes:
        updates: nn.ModuleDict of `LoRAUpdate`.
        merged: (out, in) while `merge` is in force, kept beside W, which thus cannot drift.
        off: while True the layer is its base, whatever is on or merged; `disabled` sets it.
    """

    updates: Any
    merged: torch.Tensor | None
    off: bool
    handles: tuple[RemovableHandle, ...]  # of its hooks
    plain_class: type[nn.Linear]  # what the layer was before
    plain_forward: Callable[..., torch.Tensor] | None  # that somebody had put on this one layer, as accelerate does

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out). `input` is what nn.Linear calls it."""
        if self.merged is not None and not self.off:
            if self.training and torch.is_grad_enabled():
                raise LoRAError("The model is merged, so its adapters cannot train.", "Call `unmerge`, or `eval`.")
            return F.linear(input, self.merged, self.bias)
        y = super().forward(input) if self.plain_forward is None else self.plain_forward(input)
        if not self.off:
            for update in self.updates.values():
                if update.on:
                    y = update(input, y)
        return y

    def __setattr__(self, name: str, value: Any) -> None:
        """As accelerate takes its hooks off: it sets the forward from before, which the classes have anyway."""
        function = getattr(value, "__func__", None)  # of a bound method
        if name == "forward" and function in (LoRALinear.forward, self.plain_class.forward):
            vars(self).pop("forward", None)
            if function is not LoRALinear.forward:  # the hook was there before the adapter
                self.plain_forward = None
        else:
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which would look for the class of an adapted subclass in this file."""
        return _blank, (self.plain_class,), self.__getstate__()  # type: ignore[no-untyped-call]

    def add(self, name: str, config: LoRAConfig, generator: torch.Generator | None = None) -> LoRAUpdate:
        """Add the update of adapter `name`. The patterns in `config` mean nothing here; `inject` resolves them.

        `generator` draws `lora_A` (rank, in); None takes torch's global one. Raises LoRAError if there is one of that
        name, torch cannot store one under it, or the layer is merged.
        """
        require_unmerged(self, "add an adapter")
        check_name(name, self.updates)
        self.updates[name] = LoRAUpdate(self, config, generator).train(self.training)
        return self.updates[name]  # type: ignore[no-any-return]

    def merged_weight(self) -> torch.Tensor:
        """W' = W + strength · scaling · B A over all adapters that are on, in the order they came; (out, in).

        Computed when asked for, with gradients; summed in the widest of their dtypes and rounded to that of W once.
        """
        weight: torch.Tensor = self.weight
        for update in self.updates.values():
            if update.on and not self.off:
                weight = weight + update.weight()
        return weight.to(self.weight.dtype)

    def extra_repr(self) -> str:
        state = ", off" if self.off else ", merged" if self.merged is not None else ""
        return super().extra_repr() + state


def adapt(linear: nn.Linear) -> LoRALinear:
    """Turn `linear` into a `LoRALinear` without adapters, in place, and return it. Its parameters are frozen.

    Raises LoRAError if it is not an `nn.Linear`, or a lazy one that has no shape yet.
    """
    if not isinstance(linear, nn.Linear):
        raise LoRAError(f"Only an nn.Linear can be adapted, not a {type(linear).__name__}.", "Adapt its layers.")
    if isinstance(linear, LoRALinear):
        return linear
    if isinstance(linear.weight, nn.UninitializedParameter):
        raise LoRAError("A lazy linear layer has no shape to adapt yet.", "Run the model once before.")
    plain = type(linear)
    linear.requires_grad_(False)
    linear.__class__ = _adapted_class(plain)
    assert isinstance(linear, LoRALinear)  # for the type checker
    linear.plain_class, linear.plain_forward = plain, vars(linear).pop("forward", None)
    linear.updates, linear.off = nn.ModuleDict().train(linear.training), False
    linear.register_buffer("merged", None, persistent=False)
    # Code that goes past `forward` to `weight`, as nn.TransformerEncoderLayer's fast path does, asks for hooks first
    linear.handles = (
        linear.register_forward_pre_hook(_is_called),
        linear.register_load_state_dict_pre_hook(_keep_adapters),  # type: ignore[no-untyped-call]
    )
    return linear


def _adapted_class(plain: type[nn.Linear]) -> type[LoRALinear]:
    # a subclass keeps what it does, such as the product of a quantised weight: ours comes first, and calls it
    return LoRALinear if plain is nn.Linear else type(f"LoRA{plain.__name__}", (LoRALinear, plain), {})


def _blank(plain: type[nn.Linear]) -> LoRALinear:
    cls = _adapted_class(plain)
    return cls.__new__(cls)


def require_restorable(path: str, layer: LoRALinear) -> None:
    """Raises LoRAError if somebody put a forward on the layer since, which would call what `restore` takes away."""
    if "forward" in vars(layer):
        raise LoRAError(f"{path} got another `forward` after its adapter.", "Take that off first.")


def require_matrix(path: str, layer: nn.Linear, action: str) -> None:
    """Raises LoRAError if the layer computes with more than its weight, or the weight is no plain matrix of floats."""
    if isinstance(layer, LoRALinear):
        plain, own = layer.plain_class, layer.plain_forward is not None
    else:
        plain, own = type(layer), "forward" in vars(layer)
    W = layer.weight
    if own or plain.forward is not nn.Linear.forward:
        cause = f"{path} ({plain.__name__}) has a forward of its own, so it cannot be {action}."
        raise LoRAError(cause, "Use it factored.")
    if hasattr(W, "__tensor_flatten__") or not (W.is_floating_point() or W.is_complex()):  # quantised
        cause = f"{path}.weight is a {type(W).__name__} of {W.dtype}, no plain matrix, so it cannot be {action}."
        raise LoRAError(cause, "Use it factored.")
    require_numbers(f"{path}.weight", W)


def require_numbers(name: str, tensor: torch.Tensor) -> None:
    """Raises LoRAError if `tensor`, called `name`, is on the meta device, as that of a model that is offloaded."""
    if tensor.is_meta:
        raise LoRAError(f"{name} is on the meta device, so it has no numbers.", "Load the model's weights first.")


def require_unsharded(
    model: nn.Module, action: str, kinds: Iterable[str] = ("FSDPModule", "FullyShardedDataParallel")
) -> None:
    """Raises LoRAError if a part of it is sharded by one of `kinds`, by what `fully_shard` makes or its forerunner."""
    # by name, since importing them takes a second
    if found := {kind.__name__ for module in model.modules() for kind in type(module).__mro__}.intersection(kinds):
        cause = f"The model is sharded over processes ({found.pop()}), so one cannot {action}."
        raise LoRAError(cause, "Do that before it is sharded, or in one process with a model that is not.")


def gather_shards(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that is sharded over processes (FSDP2), every one of which has to ask; others as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def restore(layer: LoRALinear) -> nn.Linear:
    """The layer that it was before `adapt`, in place; its adapters are gone. Its parameters stay frozen."""
    plain, forward = layer.plain_class, layer.plain_forward
    for handle in layer.handles:
        handle.remove()
    del layer.updates, layer.merged, layer.off, layer.plain_class, layer.plain_forward, layer.handles
    linear: nn.Linear = layer
    linear.__class__ = plain
    if forward is not None:
        linear.forward = forward  # type: ignore[method-assign]
    return linear


class TrainedWhole(nn.Module):
    """A module (`base`), frozen, and a copy of it for every adapter that trains it whole.

    A copy has no strength: it is used while its adapter's strength is not 0, and `base` while none is. The state dict
    of a model without the wrapper loads into one with it.

    Attributes:
        base: a module that is called, not a container; frozen from now on.
        updates: nn.ModuleDict of the copies, by adapter name.
        active: the adapter whose copy is used; None is the base.
        off: while True the module is its base, whatever is on; `disabled` sets it.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.updates: Any = nn.ModuleDict()
        self.active: str | None = None
        self.off = False
        self.train(base.training)
        self.register_load_state_dict_pre_hook(_keep_adapters)  # type: ignore[no-untyped-call]

    def module(self) -> nn.Module:
        """The one in use."""
        return self.base if self.off or self.active is None else self.updates[self.active]

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.module()(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        """Models also ask their layers for what torch's have: `weight`, `in_features`, a `config`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "updates", "off", "active"):  # not made yet, or being copied
                raise
            return getattr(self.module(), name)

    def __getitem__(self, index: Any) -> Any:
        """Some go through an nn.Sequential by hand."""
        return self.module()[index]  # type: ignore[index]

    def __len__(self) -> int:
        return len(self.module())  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True  # whether there is a module

    def extra_repr(self) -> str:
        return f"active={None if self.off else self.active!r}"


def require_unmerged(model: nn.Module, action: str) -> None:
    """Raises LoRAError if a layer of it is merged: what `action` changes would not show in the merged matrix."""
    if any(isinstance(layer, LoRALinear) and layer.merged is not None for layer in model.modules()):
        raise LoRAError(f"The model is merged, so one cannot {action}.", "Call `unmerge` first.")


def check_name(name: str, taken: Iterable[str]) -> None:
    """Raises LoRAError if a new adapter cannot be called `name`."""
    if not isinstance(name, str):
        raise LoRAError(f"An adapter's name is a string, not {name!r}.", "Give it one, before its config.")
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise LoRAError(f"{name!r} cannot be an adapter's name: torch has another use for it.", "Choose another one.")
    if name in taken:
        raise LoRAError(f"The model has an adapter {name!r} already.", "Give this one another name.")


def _is_called(module: nn.Module, inputs: Any) -> None:
    """Does nothing; that it is there says that the layer must be called."""


def _keep_adapters(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A plain base's state dict loads as it is, with `strict=True` too: what it has no adapters for stays."""
    assert isinstance(module, LoRALinear | TrainedWhole)
    require_unmerged(module, "load weights")
    if isinstance(module, TrainedWhole):  # `head.weight` → `head.base.weight`
        for name in sorted(module.base.state_dict(), key=len, reverse=True):  # a longer one might be in the way
            if prefix + name in state:
                state[f"{prefix}base.{name}"] = state.pop(prefix + name)
    own = module.updates.state_dict(prefix=f"{prefix}updates.", keep_vars=True)
    if not any(key in state for key in own):
        state.update(own)
