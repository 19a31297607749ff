"""A module that adapters train whole, beside their low-rank updates of others: PEFT's `modules_to_save`."""

from collections.abc import MutableMapping
from typing import Any

from torch import nn

from lora_mnist.lora.wrapper import Wrapper


class TrainedWhole(Wrapper):
    """A module (`base`), frozen, and a copy of it for every adapter that trains it whole.

    A copy has no strength: it is used while its adapter's strength is not 0, and `base` while none is.

    Attributes:
        active: the adapter whose copy is used; None is the base.

    Args:
        base: any module; frozen from now on.
    """

    updates: MutableMapping[str, nn.Module]

    def __init__(self, base: nn.Module):
        super().__init__(base)
        self.active: str | None = None

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
