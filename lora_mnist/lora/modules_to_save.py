"""A module that adapters train whole, beside their low-rank updates of others: PEFT's `modules_to_save`."""

from typing import Any

from torch import nn


class TrainedWhole(nn.Module):
    """A module (`base`), frozen, and a copy of it for every adapter that trains it whole.

    A copy has no strength: it is used while its adapter's strength is not 0, and `base` while none is. In a state dict
    the tensors of `base` have the names they had without the wrapper, so that the file of a base loads into it.

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
        self.register_state_dict_post_hook(_name_as_in_the_base)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_name_as_here)  # type: ignore[no-untyped-call]

    def module(self) -> nn.Module:
        """The one in use."""
        return self.base if self.off or self.active is None else self.updates[self.active]

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """As that of the module in use."""
        return self.module()(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        """Models also ask their layers for what torch's have: `weight`, `in_features`, a `config`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "updates", "off", "active"):  # not made yet, or being copied
                raise
            return getattr(self.module(), name)

    def extra_repr(self) -> str:
        """What `print(model)` says of it."""
        return f"active={None if self.off else self.active!r}"


def _name_as_in_the_base(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """`head.base.weight` → `head.weight`."""
    for key in [key for key in state if key.startswith(prefix)]:  # all of them, to keep their order
        state[prefix + key.removeprefix(prefix).removeprefix("base.")] = state.pop(key)


def _name_as_here(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """`head.weight` → `head.base.weight`; copies that a plain base's state dict lacks stay as they are."""
    assert isinstance(module, TrainedWhole)
    own = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    bases = module.base.state_dict()
    for key, value in own.items():
        name = key.removeprefix(prefix)
        state[f"{prefix}base.{name}" if name in bases else key] = value
    copies = module.updates.state_dict(prefix=f"{prefix}updates.", keep_vars=True)
    if not any(key in state for key in copies):
        state.update(copies)
