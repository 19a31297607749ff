"""The options that are settings of a recipe, in groups, and how they become tables as in a config file."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

from lora_mnist.cli.options import RANK, Digit, Name
from lora_mnist.cli.panels import in_data, in_lora, in_repair, in_training
from lora_mnist.errors import UsageError

if TYPE_CHECKING:
    from lora_mnist.settings.layers import Layer

Number = TypeVar("Number", int, float)

Epochs = Annotated[
    int | None, in_training("--epochs", "How often pretraining goes through all the training images.", "N")
]
Steps = Annotated[int | None, in_training("--steps", "Batches that the repair trains on.", "N")]
Guard = Annotated[
    str | None,
    in_repair(
        "--guard",
        "What may not get worse on val: any digit, all errors together, or the digit's own. The adapter is weakened"
        " until that holds, or not kept.",
        "every-digit|errors|digit|none",
    ),
]


@dataclass(frozen=True)
class DataChoice:
    """Which images, and how they are split."""

    dataset: Annotated[
        str | None,
        in_data(
            "--dataset",
            "MNIST, or scikit-learn's small digits, which need no network; auto takes MNIST if it can be had.",
            "auto|mnist|digits",
        ),
    ] = None
    val_share: Annotated[
        float | None,
        in_data("--val-share", "Share of the training images set aside as val, by which all is decided.", "SHARE"),
    ] = None

    def settings(self) -> "Layer":
        """What was given, as the `data` table."""
        return given("data", **vars(self))


@dataclass(frozen=True)
class Network:
    """The network's shape."""

    hidden: Annotated[str | None, in_training("--hidden", "Sizes of the hidden layers.", "N,N")] = None

    def settings(self) -> "Layer":
        """What was given, as the `model` table. Raises UsageError if `hidden` is not a list of sizes."""
        return given("model", hidden=_sizes(self.hidden))


@dataclass(frozen=True)
class Loop:
    """What both trainings have."""

    batch_size: Annotated[int | None, in_training("--batch-size, --batch", "Images in each step.", "N")] = None
    learning_rate: Annotated[
        float | None, in_training("--learning-rate, --lr", "Step size of the optimizer, at the start.", "RATE")
    ] = None
    optimizer: Annotated[
        str | None,
        in_training("--optimizer", "Adam, or AdamW with its own way of weight decay.", "adam|adamw"),
    ] = None
    schedule: Annotated[
        str | None,
        in_training("--schedule", "Keep the learning rate, or let it fall to 0 by a cosine.", "constant|cosine"),
    ] = None
    weight_decay: Annotated[
        float | None,
        in_training("--weight-decay", "Pull of weights towards 0: Adam adds it to the loss, AdamW does not.", "X"),
    ] = None

    def settings(self, stage: str, rate: str = "learning_rate") -> "Layer":
        """What was given, as the table of `stage`, in which `rate` is the name of the learning rate."""
        others = {name: value for name, value in vars(self).items() if name != "learning_rate"}
        return given(stage, **{rate: self.learning_rate}, **others)


@dataclass(frozen=True)
class Repair:
    """An adapter and its training, as far as `run` has them too."""

    digit: Digit = None
    rank: Annotated[int | None, RANK] = None
    alpha: Annotated[
        float | None,
        in_lora("--alpha", "Size of the update: alpha over sqrt(rank) is its factor, over rank with --no-rslora.", "X"),
    ] = None
    steps: Steps = None
    focus: Annotated[
        float | None,
        in_training("--focus", "Share of every batch that shows the digit; 1 shows nothing else.", "SHARE"),
    ] = None
    guard: Guard = None
    name: Name = None

    def settings(self) -> "Layer":
        """What was given, as the `finetune` table."""
        return given("finetune", **(vars(self) | {"digit": _digit(self.digit)}))


@dataclass(frozen=True)
class AdapterShape:
    """What else an adapter is made of."""

    rslora: Annotated[
        bool | None,
        in_lora(
            "--rslora/--no-rslora, --use-rslora",
            "Divide alpha by sqrt(rank) instead of rank, so that one learning rate does for all ranks.",
        ),
    ] = None
    targets: Annotated[
        list[str] | None,
        in_lora("--targets, --target-modules", "Layer that gets an update, by name or regular expression.", "LAYER"),
    ] = None
    dropout: Annotated[
        float | None, in_lora("--dropout", "Share of the inputs of lora_A that each step leaves out.", "SHARE")
    ] = None
    init: Annotated[
        str | None,
        in_lora(
            "--init", "How lora_A begins: uniform as in loralib, or normal. lora_B begins at 0.", "kaiming|gaussian"
        ),
    ] = None
    rank_pattern: Annotated[
        list[str] | None,
        in_lora("--rank-pattern", "Another rank for one layer.", "LAYER=N", show_default="none"),
    ] = None
    alpha_pattern: Annotated[
        list[str] | None,
        in_lora("--alpha-pattern", "Another alpha for one layer.", "LAYER=X", show_default="none"),
    ] = None

    def settings(self) -> "Layer":
        """What was given, as the `finetune` table. Raises UsageError if a pattern has no number for a layer."""
        patterns = {
            "rank_pattern": _pattern(self.rank_pattern, int),
            "alpha_pattern": _pattern(self.alpha_pattern, float),
        }
        return given("finetune", **(vars(self) | patterns))


@dataclass(frozen=True)
class Augmentation:
    """By how much training images are changed at random."""

    shift: Annotated[float | None, in_data("--shift", "Move training images by up to so many pixels.", "PIXELS")] = None
    rotate: Annotated[
        float | None, in_data("--rotate", "Turn training images by up to so many degrees.", "DEGREES")
    ] = None
    zoom: Annotated[
        float | None, in_data("--zoom", "Make training images smaller or larger by up to this share.", "SHARE")
    ] = None

    def settings(self) -> "Layer":
        """What was given, as the `finetune` table."""
        return given("finetune", **vars(self))


@dataclass(frozen=True)
class Loss:
    """Which images fine-tuning sees more often, and what it minimises beside the cross-entropy."""

    hard_examples: Annotated[
        float | None,
        in_training(
            "--hard-examples", "Draw images more often the less sure the base is of them: 0 (all alike) to 4.", "X"
        ),
    ] = None
    logit_adjustment: Annotated[
        float | None,
        in_training(
            "--logit-adjustment",
            "Allow for the digit being more frequent in the batches than in the data: 0 (not), 1 (just so), up to 2.",
            "X",
        ),
    ] = None
    label_smoothing: Annotated[
        float | None,
        in_training("--label-smoothing", "Share of each label that is spread evenly over all digits.", "SHARE"),
    ] = None

    def settings(self) -> "Layer":
        """What was given, as the `finetune` table."""
        return given("finetune", **vars(self))


def refuse_with_full(repair: Repair, shape: AdapterShape, control: bool, on_top_of: list[str] | None) -> None:
    """Raises UsageError if `--full` comes with an option that only an adapter has."""
    from lora_mnist.settings.config import OF_ADAPTERS

    options = {**vars(repair), **vars(shape), "control": control, "on_top_of": on_top_of}
    if found := [name for name in (*OF_ADAPTERS, "control", "on_top_of") if options[name] not in (None, [], False)]:
        flag = "--" + found[0].replace("_", "-")
        raise UsageError(f"{flag} means nothing with --full, which trains no adapter.", "Leave one of them out.")


def given(table: str, **options: object) -> "Layer":
    """The `table` of a config file with the options that were not left out."""
    return {table: {name: value for name, value in options.items() if value is not None}}


def _digit(digit: str | None) -> int | str | None:
    """A number if it looks like one."""
    return int(digit) if digit and re.fullmatch("[0-9]{1,9}", digit) else digit


def _sizes(hidden: str | None) -> list[int] | str | None:
    if not hidden:
        return hidden
    try:
        return [int(size) for size in hidden.split(",")]
    except ValueError as error:
        raise UsageError(f"`hidden` (={hidden!r}) is not a list of sizes.", "Write it as 1000,2000.") from error


def _pattern(entries: list[str] | None, kind: type[Number]) -> dict[str, Number] | None:
    try:
        return {t: kind(value) for t, value in (entry.rsplit("=", 1) for entry in entries or [])} or None
    except ValueError as error:
        raise UsageError(f"{entries!r} is not a layer and a number each.", "Write it as linear3=2.") from error
