"""PEFT's rules of which modules a name or an expression in its config means."""

import re
from collections.abc import Iterable, Mapping
from typing import Any


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
