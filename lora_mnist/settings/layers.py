"""Config files as nested tables, and how they are laid over each other. Imports no pydantic: --help reads them too.

A layer may carry a `digits` table, laid over the rest of that layer when the data set is the embedded digits.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_mnist.errors import UsageError
from lora_mnist.files import read_regular

LARGEST = 1 << 20  # bytes of a config

ConfigTables = Mapping[str, Any]  # nested tables, as TOML gives them


def config_names() -> list[str]:
    """The configs that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def config_path(name_or_path: str) -> Path:
    """Where a config lies: one that comes with the package by its name, any other by its path."""
    return _folder() / f"{name_or_path}.toml" if name_or_path in config_names() else Path(name_or_path)


def read_config(name_or_path: str) -> ConfigTables:
    """Its tables as they stand there, whatever keys they have.

    Raises:
        UsageError: there is no such config, or it is not TOML.
    """
    path = config_path(name_or_path)
    try:
        return tomllib.loads(read_regular(path, LARGEST).decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"There is no config {name_or_path!r}: {error.strerror}.",
            f"Give a TOML file or one of {', '.join(config_names())}.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}.", "Correct it there.") from error


def merge(layers: Sequence[ConfigTables], dataset: str) -> dict[str, Any]:
    """The nested tables of `layers` laid over each other; later ones win, `digits` tables count on that data set."""
    merged: dict[str, Any] = {}
    for layer in layers:
        _lay_over(merged, {key: value for key, value in layer.items() if key != "digits"})
        if dataset == "digits":
            _lay_over(merged, layer.get("digits", {}))
    return merged


def _lay_over(below: dict[str, Any], above: Any) -> None:
    if not isinstance(above, Mapping):
        below["digits"] = above  # not a table: kept as it is, for the validation to refuse by name
        return
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            below[key] = {**below[key], **value}
        else:
            below[key] = dict(value) if isinstance(value, Mapping) else value


def _folder() -> Path:
    """`configs/` lies in the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
