"""Config files as nested tables, and how they are laid over each other. Imports no pydantic: --help reads them too.

A layer may carry a `mnist-5k` table, laid over the rest of that layer when that is the data set.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_mnist.errors import UsageError
from lora_mnist.files import read_regular

LARGEST = 1 << 20  # bytes of a config
EMBEDDED = "mnist-5k"
DATASETS = {"mnist": "MNIST", EMBEDDED: "mnist-5k"}  # as they are shown
PACKAGE = Path(__file__).parents[1]
# in the package when installed from a wheel, beside it in a checkout
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"

ConfigTables = Mapping[str, Any]  # nested tables, as TOML gives them


def config_names() -> list[str]:
    """The configs that come with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def config_path(name_or_path: str) -> Path:
    """Where a config lies: one that comes with the package by its name, any other by its path."""
    return CONFIGS / f"{name_or_path}.toml" if name_or_path in config_names() else Path(name_or_path)


def read_config(name_or_path: str) -> ConfigTables:
    """Its tables as they stand there, whatever keys they have.

    Raises UsageError if there is no such config, or it is not TOML.
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


def overlay(layers: Sequence[ConfigTables], dataset: str) -> dict[str, Any]:
    """The nested tables of `layers` laid over each other; later ones win, `mnist-5k` tables count on that data set."""
    merged: dict[str, Any] = {}
    for layer in layers:
        own = {key: value for key, value in layer.items() if key != EMBEDDED}
        special = layer.get(EMBEDDED, {}) if dataset == EMBEDDED else {}
        if not isinstance(special, Mapping):
            special = {EMBEDDED: special}  # kept as it is, for the validation to refuse by name
        for key, value in (*own.items(), *special.items()):
            are_tables = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = {**merged[key], **value} if are_tables else value
    return merged
