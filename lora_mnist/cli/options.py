"""The command line's options, each spelled and explained once, and how they become settings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lora_mnist.errors import UsageError


def _option(kind: Any, name: str, text: str, **more: Any) -> Any:
    return Annotated[kind, typer.Option(name, help=text, **more)]


RunDir = _option(Path, "--run", "Directory of the run.")
Config = _option(str | None, "--config", "default, classic, smoke, or a TOML file.", metavar="NAME|FILE")
Dataset = _option(
    str | None, "--dataset", "auto: MNIST if it can be had, else the embedded digits.", metavar="auto|mnist|digits"
)
Data = _option(Path, "--data", "Where data sets lie; MNIST in its MNIST/raw/.", envvar="LORA_MNIST_DATA")
Device = _option(str, "--device", "auto, cpu, cuda or cuda:N.")
Threads = _option(int | None, "--threads", "CPU threads.  [default: torch's choice]")
Seed = _option(int | None, "--seed", "Of weights and of the order of images.")
Json = _option(bool, "--json", "Print one JSON object.")
Quiet = _option(bool, "--quiet", "No progress and no notes.")
Force = _option(bool, "--force", "Replace what is finished.")
Debug = _option(bool, "--debug", "Show the traceback of an error.")
Adapters = _option(list[str] | None, "--adapter", "Adapter by name; may be repeated.")
AdapterFolders = _option(
    list[str] | None, "--adapter", "Adapter by name, or a folder of PEFT's; may be repeated.", metavar="NAME|DIR"
)

Epochs = _option(int | None, "--epochs", "Passes over the training images.")
BatchSize = _option(int | None, "--batch-size", "Images per step.")
LearningRate = _option(float | None, "--learning-rate", "Of the first step.")
Optimizer = _option(str | None, "--optimizer", "Adam, or AdamW.", metavar="adam|adamw")
Schedule = _option(str | None, "--schedule", "Of the learning rate; the cosine falls to 0.", metavar="constant|cosine")
WeightDecay = _option(float | None, "--weight-decay", "Adam: L2 penalty; AdamW: decoupled.")
Hidden = _option(str | None, "--hidden", "Sizes of the hidden layers, as 1000,2000.")
ValShare = _option(float | None, "--val-share", "Share of the training images that takes the decisions.")
Digit = _option(str | None, "--digit", "Digit to repair, or weakest (found on val).", metavar="0-9|weakest")
Rank = _option(int | None, "--rank", "Of the adapter.")
Alpha = _option(float | None, "--alpha", "scaling = alpha / rank, or with --rslora alpha / sqrt(rank).")
RsLoRA = _option(bool | None, "--rslora/--no-rslora", "Whether the scaling has the square root of the rank.")
Targets = _option(list[str] | None, "--targets", "Layer by name or regular expression; may be repeated.")
Dropout = _option(float | None, "--dropout", "On the input of lora_A, while training.")
Init = _option(str | None, "--init", "Start of lora_A: uniform as in loralib, or N(0, 1).", metavar="kaiming|gaussian")
Steps = _option(int | None, "--steps", "Fine-tuning steps.")
Focus = _option(float | None, "--focus", "Share of every batch that is the target digit; 1 is only that digit.")
Shift = _option(float | None, "--shift", "Move training images by up to so many pixels.")
Rotate = _option(float | None, "--rotate", "Turn training images by up to so many degrees.")
Zoom = _option(float | None, "--zoom", "Make training images smaller or larger by up to this share.")
Guard = _option(
    str | None,
    "--guard",
    "Keep the adapter at the best strength with no more of these on val.",
    metavar="errors|digit|none",
)
Twin = _option(bool, "--twin", "Train one with the digit at its natural share too, and compare.")
OnTopOf = _option(list[str] | None, "--on-top-of", "Adapter that is on while this one trains; may be repeated.")
Rounds = _option(int, "--rounds", "Repair the weakest digit, then the next on top, so many times.")
Name = _option(str | None, "--name", "Of what is made.  [default: digit9-r1 and the like]")
Strengths = _option(
    list[float] | None, "--strength", "Factor on the adapters, one for all or one each: 1 as kept, 0 off."
)
Checkpoint = _option(str | None, "--checkpoint", "Network made from the base, by name or file.", metavar="NAME|FILE")
Unsealed = _option(bool, "--allow-unsealed", "Take adapters that do not say what base they are for.")
Full = _option(bool, "--full", "Train all weights of a copy instead, to compare.")
RankPattern = _option(list[str] | None, "--rank-pattern", "Another rank for some layers.", metavar="TARGET=RANK")
AlphaPattern = _option(list[str] | None, "--alpha-pattern", "Another alpha for some layers.", metavar="TARGET=ALPHA")
Normalise = _option(bool, "--normalise", "Confusion in per cent of each true digit instead of counts.")
Open = _option(bool, "--open", "Show the page in the browser.")
Ranks = _option(str, "--rank", "Ranks to count for.", metavar="1,2,4")
Shapes = _option(list[str] | None, "--shape", "A layer of that shape instead of the run's.", metavar="OUTxIN")


def request_of(options: dict[str, Any], **settings: Any) -> Any:
    """The `Request` of a command, from its parameters and the settings it was given by them."""
    from lora_mnist.settings.request import Request

    return Request(
        run=options["run"],
        folder=options["data"],
        config=options.get("config"),
        options=_given(settings),
        device=options["device"],
        threads=options["threads"],
        force=options.get("force", False),
        quiet=options["quiet"],
    )


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the options that were left out."""
    nested = {key: _given(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in nested.items() if value is not None}


def training(batch_size, learning_rate, optimizer, schedule, weight_decay) -> dict[str, Any]:
    """The settings that both trainings have."""
    return {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "schedule": schedule,
        "weight_decay": weight_decay,
    }


def digit_of(digit: str | None) -> dict[str, Any]:
    """The setting, a number if it looks like one."""
    return {"digit": int(digit) if digit and digit.isascii() and digit.isdecimal() else digit}


def sizes_of(hidden: str | None) -> list[int] | None:
    """`1000,2000` as numbers. Raises UsageError if it is anything else."""
    try:
        return hidden and [int(size) for size in hidden.split(",")]
    except ValueError as error:
        raise UsageError(f"`hidden` (={hidden!r}) is not a list of sizes.", "Write it as 1000,2000.") from error


def pattern_of(entries: list[str] | None, kind: type) -> dict[str, Any] | None:
    """`["linear3=2"]` as `{"linear3": 2}`. Raises UsageError if an entry is anything else."""
    try:
        return {t: kind(value) for t, value in (entry.rsplit("=", 1) for entry in entries or [])} or None
    except ValueError as error:
        raise UsageError(f"{entries!r} is not a layer and a number each.", "Write it as linear3=2.") from error


def applied(adapters: list[str] | None, strengths: list[float] | None) -> list[Any]:
    """The adapters, each with its strength.

    Raises:
        UsageError: there are strengths, but neither one nor as many as adapters.
    """
    from lora_mnist.settings.request import Applied

    names = list(dict.fromkeys(adapters or []))
    if strengths and not names:
        raise UsageError(f"`strength` (={strengths[0]}) needs an adapter to act on.", "Name one with --adapter.")
    factors = (strengths or [1.0]) * (len(names) if len(strengths or [1.0]) == 1 else 1)
    if len(factors) != len(names):
        raise UsageError(
            f"There are {len(names)} adapters and {len(factors)} strengths.",
            "Give one for all, or one each.",
        )
    return [Applied(name, factor) for name, factor in zip(names, factors, strict=True)]


def refuse_with_full(options: dict[str, Any]) -> None:
    """Raises UsageError if `--full` comes with an option that only an adapter has."""
    from lora_mnist.settings.config import OF_ADAPTERS

    if given := [name for name in (*OF_ADAPTERS, "twin", "on_top_of") if options[name] not in (None, [], False)]:
        flag = "--" + given[0].replace("_", "-")
        raise UsageError(f"{flag} means nothing with --full, which trains no adapter.", "Leave one of them out.")
