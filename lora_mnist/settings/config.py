"""TOML files and command-line options → one validated, frozen `Settings`.

Layers, lowest first: `default.toml`, the run's stored settings, a `--config`, the command line. Each may carry a
`digits` table, laid over the rest of that layer when the data set is the embedded digits.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator

from lora_mnist.errors import UsageError

Layer = Mapping[str, Any]  # nested tables, as TOML gives them
Positive = Annotated[int, Field(ge=1, le=1_000_000)]  # far beyond use; more would only end in a lack of memory
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0)]


RULES = {  # what pydantic says in Python's words, in TOML's
    "tuple_type": "must be a list",
    "too_short": "must have at least one entry",
    "model_type": "must be a table",
}


class _Section(BaseModel):
    # strict and finite: by default pydantic takes True or "1" for a rank and infinity for a learning rate
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataSettings(_Section):
    """Which images, and how many of the training ones take the decisions."""

    dataset: Literal["auto", "mnist", "digits"]
    val_share: float = Field(ge=0, le=0.5)
    split_seed: Seed


class ModelSettings(_Section):
    """The network's shape."""

    hidden: Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)]  # TOML knows lists, not tuples


class TrainingSettings(_Section):
    """What both stages hand to the training loop."""

    batch_size: Positive
    learning_rate: Rate
    optimizer: Literal["adam", "adamw"]
    schedule: Literal["constant", "cosine"]
    weight_decay: float = Field(ge=0)


class PretrainSettings(TrainingSettings):
    """The base's training."""

    epochs: int = Field(ge=1, le=1000)


class FinetuneSettings(TrainingSettings):
    """The adapter and its training."""

    digit: int | Literal["weakest"]
    rank: Positive
    alpha: Rate
    rank_pattern: dict[str, Positive] | None = None  # by layer, in place of `rank`
    alpha_pattern: dict[str, Rate] | None = None
    rslora: bool
    init: Literal["kaiming", "gaussian"]
    dropout: float = Field(ge=0, lt=1)
    targets: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
    steps: Positive
    focus: float = Field(gt=0, le=1)
    shift: float = Field(ge=0, le=14)  # pixels
    rotate: float = Field(ge=0, le=180)  # degrees
    zoom: float = Field(ge=0, lt=1)
    guard: Literal["errors", "digit", "none"]
    full_learning_rate: Rate  # in place of `learning_rate` when all weights are trained
    name: str | None = None  # None: digit9-r1

    @field_validator("digit", mode="before")
    @classmethod
    def _is_a_digit(cls, digit: Any) -> Any:
        if digit != "weakest" and not (type(digit) is int and 0 <= digit <= 9):
            raise ValueError("must be a digit from 0 to 9, or weakest")
        return digit

    @field_validator("name")
    @classmethod
    def _is_a_folder(cls, name: str | None) -> str | None:
        if name is not None and not (name.replace("-", "").replace("_", "").isalnum() and name.isascii()):
            raise ValueError("must be letters, digits, - and _ only, because it names a folder")
        if name is not None and not name[0].isalnum():
            raise ValueError("must begin with a letter or a digit, because it names a folder")
        if name is not None and len(name) > 64:
            raise ValueError("must be 64 characters at most, because it names a folder")
        if name == "base":
            raise ValueError("must not be base, which is the network itself")
        return name


OF_ADAPTERS = ("rank", "alpha", "rank_pattern", "alpha_pattern", "rslora", "targets", "dropout", "init", "guard")


class Settings(_Section):
    """All settings of a run."""

    seed: Seed
    data: DataSettings
    model: ModelSettings
    pretrain: PretrainSettings
    finetune: FinetuneSettings


def config_names() -> list[str]:
    """The configs that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def load_config(name_or_path: str) -> Layer:
    """Read a shipped config by its name or any TOML file by its path.

    Raises:
        UsageError: there is no such config, it is not TOML, or a key or value in it is not valid.
    """
    path = _folder() / f"{name_or_path}.toml" if name_or_path in config_names() else Path(name_or_path)
    try:
        layer = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"There is no config {name_or_path!r}: {error.strerror}.",
            f"Give a TOML file or one of {', '.join(config_names())}.",
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}.", "Correct it there.") from error
    if name_or_path != "default":
        for dataset in ("mnist", "digits"):  # both, so that a mistake is found on either data set
            resolve([load_config("default"), layer], dataset, origin=str(path))
    return layer


def resolve(layers: Sequence[Layer], dataset: str, origin: str = "the command line") -> Settings:
    """Lay `layers` over each other, lowest first, for `dataset`, and check the result.

    Raises:
        UsageError: a key is unknown or a value is out of its range; the sentence names it and, as its place, `origin`.
    """
    try:
        return Settings.model_validate(merge(layers, dataset))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(
                f"There is no setting `{key}` (in {origin}).", "Settings and their meaning stand in default.toml."
            ) from error
        rule = RULES.get(first["type"]) or first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace(
            "should", "must"
        )
        raise UsageError(f"`{key}` (={first['input']!r}) {rule} (in {origin}).", "Correct that value.") from error


def merge(layers: Sequence[Layer], dataset: str) -> dict[str, Any]:
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
