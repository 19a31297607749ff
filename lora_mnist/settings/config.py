"""TOML files and command-line options → one validated, frozen `Settings`.

Layers, lowest first: `default.toml`, the run's stored settings, a `--config`, the command line.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from lora_mnist.errors import UsageError, did_you_mean, shown
from lora_mnist.settings.layers import ConfigTables, config_path, overlay, read_config, setting_name

T = TypeVar("T")

# made from tuples; read from lists, since neither TOML nor JSON knows tuples
Many = Annotated[tuple[T, ...], Strict(False)]
Some = Annotated[tuple[T, ...], Strict(False), Field(min_length=1)]
Maybe = Annotated[T | None, Field(exclude_if=lambda value: value is None)]  # not written at all where there is none
Digit = Annotated[int, Field(ge=0, le=9)]
Count = Annotated[int, Field(ge=0)]


class Document(BaseModel):
    """Base of all settings and of everything stored, returned or printed as JSON."""

    # strict and finite: by default pydantic takes True or "1" for a rank and infinity for a learning rate
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


RULES = {  # what pydantic says in Python's words, in TOML's and JSON's
    "tuple_type": "must be a list",
    "too_short": "must have no fewer entries than {min_length}",
    "too_long": "must have no more entries than {max_length}",
    "model_type": "must be a table",
    "missing": "is missing",
    "extra_forbidden": "is not known",
}


def first_fault(error: ValidationError) -> tuple[str, str, Any, str]:
    """The first thing that is wrong: its dotted key, pydantic's name for the fault, the value, the rule in words."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("<"))  # the tag of a union is no key
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must")
    ours = RULES.get(first["type"])
    return key, first["type"], first["input"], ours.format(**first.get("ctx", {})) if ours else rule


KnownDataset = Literal["mnist", "mnist-5k"]  # what a data set can be; `auto` is settled before it is opened
GuardRule = Literal["every-digit", "errors", "digit", "none"]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]  # far beyond use; more would only end in a lack of memory
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0)]


def _require_digit_or(word: str, digit: Any) -> Any:
    if digit != word and not (type(digit) is int and 0 <= digit <= 9):
        raise ValueError(f"must be a digit from 0 to 9, or {word}")
    return digit


def _require_folder_name(name: str) -> str:
    if not (name.replace("-", "").replace("_", "").isalnum() and name.isascii()):
        raise ValueError("must be letters, digits, - and _ only, because it names a folder")
    if not name[0].isalnum():
        raise ValueError("must begin with a letter or a digit, because it names a folder")
    if len(name) > 64:
        raise ValueError("must be 64 characters at most, because it names a folder")
    if name == "base":
        raise ValueError("must not be base, which is the network itself")
    return name


Name = Annotated[str, AfterValidator(_require_folder_name)]  # of an adapter or a checkpoint


def require_name(name: str) -> str:
    """`name`, if an adapter can be called so. Raises UsageError if not."""
    try:
        return _require_folder_name(name)
    except ValueError as error:
        raise UsageError(f"`name` (={shown(name)}) {error}.", "Choose another one.") from error


class DataSettings(Document):
    """Which images, and how many of them take the decisions."""

    dataset: Literal["auto", "mnist", "mnist-5k"]
    val_from: Literal["train", "test"]
    val_share: float = Field(ge=0, le=0.5)
    split_seed: Seed


def _require_divisor(std: float) -> float:
    if not std:
        raise ValueError("must not be 0, because pixels are divided by it")
    return std


class ModelSettings(Document):
    """The network's shape, and how it wants its pixels."""

    hidden: Many[Positive]
    bias: bool | Many[bool]
    mean: float
    std: Annotated[float, AfterValidator(_require_divisor)]

    @model_validator(mode="after")
    def _has_a_bias_or_none_in_each_layer(self) -> Self:
        if len(self.biases) != len(self.hidden) + 1:
            raise ValueError(f"must have one bias or {len(self.hidden) + 1}, as many as there are layers")
        return self

    @property
    def biases(self) -> tuple[bool, ...]:
        """Of each layer, whether it has one."""
        return (self.bias,) * (len(self.hidden) + 1) if isinstance(self.bias, bool) else self.bias


class TrainingSettings(Document):
    """What both stages hand to the training loop."""

    batch_size: Positive
    learning_rate: Rate
    optimizer: Literal["adam", "adamw"]
    schedule: Literal["constant", "cosine"]
    weight_decay: float = Field(ge=0)


class PretrainSettings(TrainingSettings):
    """The base's training."""

    epochs: int = Field(ge=1, le=1000)
    # a digit of which the base sees only a share of the training images, so that it has a real weakness
    rare_digit: Annotated[int | Literal["none"], BeforeValidator(partial(_require_digit_or, "none"))]
    rare_share: float = Field(gt=0, le=1)


class AdapterSettings(TrainingSettings):
    """An adapter, and what its training is like whatever it is trained on."""

    rank: Positive
    alpha: Rate
    rank_pattern: dict[str, Positive] | None = None  # by layer, in place of `rank`
    alpha_pattern: dict[str, Rate] | None = None
    rslora: bool
    init: Literal["kaiming", "gaussian"]
    dropout: float = Field(ge=0, lt=1)
    targets: Some[str]
    steps: Positive
    hard_examples: float = Field(ge=0, le=4)
    logit_adjustment: float = Field(ge=0, le=2)
    label_smoothing: float = Field(ge=0, lt=1)
    shift: float = Field(ge=0, le=14)  # pixels
    rotate: float = Field(ge=0, le=180)  # degrees
    zoom: float = Field(ge=0, lt=1)
    guard: GuardRule
    name: Name | None = None  # None: one is made, such as digit9-r1

    @property
    def moves(self) -> tuple[float, float, float] | None:
        """How far images are shifted, turned and zoomed; None: not at all."""
        moves = (self.shift, self.rotate, self.zoom)
        return moves if any(moves) else None


class FinetuneSettings(AdapterSettings):
    """The adapter for one digit, and its training."""

    digit: Annotated[int | Literal["weakest"], BeforeValidator(partial(_require_digit_or, "weakest"))]
    focus: float = Field(gt=0, le=1)
    full_learning_rate: Rate  # in place of `learning_rate` when all weights are trained


class TeachSettings(AdapterSettings):
    """The adapter for drawings of one's own, and its training."""

    share: float = Field(gt=0, le=1)  # of every batch that is drawings
    folds: int = Field(ge=2, le=20)  # parts of the drawings, each judged by an adapter that was trained on the others


# of `AdapterSettings`: what `lora.LoRAConfig` calls so too
LORA_SETTINGS = ("rank", "alpha", "rank_pattern", "alpha_pattern", "rslora", "targets", "dropout", "init")


class Settings(Document):
    """All settings of a run."""

    seed: Seed
    data: DataSettings
    model: ModelSettings
    pretrain: PretrainSettings
    finetune: FinetuneSettings
    teach: TeachSettings


def load_config(name_or_path: str) -> ConfigTables:
    """Read a shipped config by its name or any TOML file by its path.

    Raises UsageError if there is no such config, it is not TOML, or a key or value in it is not valid.
    """
    layer = read_config(name_or_path)
    if name_or_path != "default":
        for dataset in ("mnist", "mnist-5k"):  # both, so that a mistake is found on either data set
            resolve([load_config("default"), layer], dataset, origin=str(config_path(name_or_path)))
    return layer


def resolve(layers: Sequence[ConfigTables], dataset: str, origin: str = "the command line") -> Settings:
    """Lay `layers` over each other, lowest first, for `dataset`, and check the result.

    Raises UsageError if a key is unknown or a value out of its range; it names that and, as its place, `origin`.
    """
    try:
        return Settings.model_validate(overlay(layers, dataset))
    except ValidationError as error:
        key, fault, value, rule = first_fault(error)
        if fault == "extra_forbidden":
            cause = f"There is no setting `{key}` (in {origin})."
            known = _setting_keys()
            # another table's, as of a key above all tables; else one of the same table that is spelled like it
            meant = [one for one in known if one.endswith(f".{setting_name(key.rpartition('.')[2])}")][:1]
            guess = f"Did you mean {meant[0]}?" if meant else did_you_mean(key, known)
            way_out = f"{guess} Settings and their meaning stand in {config_path('default')}."
            raise UsageError(cause, way_out.lstrip()) from error
        words = re.findall("'(.+?)'", rule) if fault == "literal_error" else []
        way_out = f"{did_you_mean(str(value), words)} Correct that value.".lstrip()
        raise UsageError(f"`{key}` (={shown(value)}) {rule} (in {origin}).", way_out) from error


def _setting_keys() -> list[str]:
    """Every setting by its dotted name."""
    tables = Settings.model_validate(overlay([load_config("default")], "mnist")).model_dump()
    return ["seed", *(f"{name}.{key}" for name, table in tables.items() if isinstance(table, dict) for key in table)]
