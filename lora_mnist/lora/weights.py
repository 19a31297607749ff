"""W' to look at: a tensor that is made when something computes with it, and that nothing can write to."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lora_mnist.errors import LoRAError
from lora_mnist.lora.update import LoRAUpdate


class AdaptedWeight(torch.Tensor):
    """A read-only tensor (out, in) whose numbers are made at their first use.

    Transformers and torch often look at a layer's `weight` only for its dtype, its device or whether it requires a
    gradient. These cost nothing here. Views of it are as read-only as it is: what one writes to W' would be lost, and
    with every adapter off it would be the base that is written.

    Args:
        like: has its shape, strides, dtype and device.
        make: its numbers, as a plain tensor.
    """

    _make: Callable[[], torch.Tensor]
    _made: torch.Tensor | None
    # torch's own attributes and functions hold; all that computes ends in `__torch_dispatch__`, below autograd
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, like: torch.Tensor, make: Callable[[], torch.Tensor]) -> "AdaptedWeight":
        """A tensor without storage."""
        new = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )
        assert isinstance(new, AdaptedWeight)
        new._make, new._made = make, None
        return new

    def plain(self) -> torch.Tensor:
        """Its numbers, without gradients."""
        if self._made is None:
            self._made = self._make()
        return self._made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for argument, value in [*zip(func._schema.arguments, args, strict=False), *_named(func, kwargs)]:
            if isinstance(value, AdaptedWeight) and argument.alias_info and argument.alias_info.is_write:
                raise LoRAError("An adapted layer's weight is read-only.", "Write to its base's, or to an update.")
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return AdaptedWeight(args[0], args[0].plain)
        found = func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})
        return _read_only(found) if func.is_view else found

    def numpy(self, *, force: bool = False) -> Any:
        """As torch.Tensor.numpy; read-only as well."""
        array = (self.detach() if force else self).clone().numpy(force=force)
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        """As torch.Tensor.tolist."""
        return self.plain().tolist()

    def __deepcopy__(self, memo: Any) -> torch.Tensor:
        return self.plain().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain().clone().__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return repr(self.plain())


class Kept:
    """W' of a layer, and what it was made from.

    A and B are compared by their numbers. W is too large for that and is frozen: it goes by its address, which stays
    taken as long as it is known here, and by torch's count of writes, which a write through `W.data` alone escapes.

    Args:
        source: W (out, in).
        updates: those that are on.
        weight: W', made from them.
    """

    def __init__(self, source: torch.Tensor, updates: Sequence[LoRAUpdate], weight: torch.Tensor):
        self.source, self.state, self.weight = source.detach(), _state_of(source), weight
        self.factors = [
            (update.scaling * update.strength, update.lora_A.detach().clone(), update.lora_B.detach().clone())
            for update in updates
        ]

    def holds(self, source: torch.Tensor, updates: Sequence[LoRAUpdate]) -> bool:
        """Whether W' would be the same now."""
        return (
            self.state == _state_of(source)
            and self.source.data_ptr() == source.data_ptr()
            and len(updates) == len(self.factors)
            and all(
                update.scaling * update.strength == factor and _same(update.lora_A, A) and _same(update.lora_B, B)
                for update, (factor, A, B) in zip(updates, self.factors, strict=True)
            )
        )


def _state_of(source: torch.Tensor) -> tuple[torch.dtype, int]:
    return source.dtype, -1 if source.is_inference() else source._version


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.device == other.device
    return same_kind and torch.equal(one, other)


def _named(func: Any, kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]


def _plain(value: Any) -> Any:
    if isinstance(value, AdaptedWeight):
        return value.plain()
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


def _read_only(view: Any) -> Any:
    if isinstance(view, torch.Tensor):
        return AdaptedWeight(view, lambda: view)
    return type(view)(map(_read_only, view))
