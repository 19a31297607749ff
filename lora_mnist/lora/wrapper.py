"""What stands in a model in place of one of its modules: that module, untouched, and a part for every adapter."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from lora_mnist.errors import LoRAError


def check_name(name: str, taken: Iterable[str]) -> None:
    """Raises LoRAError if a new adapter cannot be called `name`."""
    if not isinstance(name, str):
        raise LoRAError(f"An adapter's name is a string, not {name!r}.", "Give it one, before its config.")
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise LoRAError(f"{name!r} cannot be an adapter's name: torch has another use for it.", "Choose another one.")
    if name in taken:
        raise LoRAError(f"The model has an adapter {name!r} already.", "Give this one another name.")


class Wrapper(nn.Module):
    """The frozen `base`, and what adapters have beside it.

    In a state dict the tensors of `base` go by the names that they have without the wrapper, so that the file of a base
    loads into an adapted model, and what is saved of tied weights finds its partner.

    Attributes:
        updates: what each adapter has here, by adapter name.
        off: while True, the module is its base, whatever is on; `disabled` sets it.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.updates: Any = nn.ModuleDict()  # a subclass says of what
        self.off = False
        self.train(base.training)
        self.register_state_dict_post_hook(_name_as_in_the_base)  # type: ignore[no-untyped-call]

    def require_unmerged(self, action: str) -> None:
        """Raises LoRAError if the module is merged, which `LoRALinear` alone can be."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # torch loads module by module: those before this one have their new weights by now
        self.require_unmerged("load weights")
        own = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
        bases = self.base.state_dict()
        for key, value in own.items():  # those of `named_parameters`, which are under `base.`, are taken as well
            name = key.removeprefix(prefix)
            is_bases = name in bases or name.partition(".")[0] not in self._modules
            state_dict[f"{prefix}base.{name}" if is_bases else key] = value
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _name_as_in_the_base(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """`linear1.base.weight` → `linear1.weight`."""
    for key in [key for key in state if key.startswith(prefix)]:  # all of them, so that they keep their order
        state[prefix + key.removeprefix(prefix).removeprefix("base.")] = state.pop(key)


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is a child in `model`."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old and parent is not new:
                setattr(parent, name, new)
