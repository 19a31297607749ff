"""Config files as nested tables, and how they are laid over each other. Imports no pydantic: --help reads them too.

A layer may carry a `mnist-5k` table, laid over the rest of that layer when that is the data set.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_mnist.errors import UsageError, shown
from lora_mnist.files import read_regular

LARGEST = 1 << 20  # bytes of a config
EMBEDDED = "mnist-5k"
# what other tools call a setting; as an option it has these names too
ALIASES = {"lr": "learning_rate", "batch": "batch_size", "use_rslora": "rslora", "target_modules": "targets"}
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
        cause = f"There is no config {name_or_path!r}: {error.strerror}."
        raise UsageError(cause, f"Give a TOML file or one of {', '.join(config_names())}.") from error
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
            if isinstance(value, Mapping):
                below = merged.get(key)
                merged[key] = {**(below if isinstance(below, Mapping) else {}), **_by_their_names(value)}
            else:
                merged[key] = value
    return merged


def setting_name(key: str) -> str:
    """The name of a setting, however it is spelled: as an option, or as other tools call it."""
    name = key.replace("-", "_")
    return ALIASES.get(name, name)


def _by_their_names(table: ConfigTables) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        named = _rare(value) if key == "rare" else {setting_name(key): value}
        if twice := found.keys() & named:
            raise UsageError(f"`{twice.pop()}` is given twice, once as `{key}`.", "Keep one of them.")
        found |= named
    return found


def _rare(value: Any) -> dict[str, Any]:
    """`9:0.02`, `9` or `none` as the two settings that it stands for."""
    digit, colon, share = str(value).partition(":")
    try:
        more = {"rare_share": float(share)} if colon else {}
    except ValueError as error:
        raise UsageError(f"`rare` (={shown(value)}) is not a digit and a share.", "Write it as 9:0.02.") from error
    return {"rare_digit": int(digit) if re.fullmatch("[0-9]{1,9}", digit) else digit, **more}
