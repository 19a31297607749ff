"""The command line's options, each spelled and explained once, in groups, and how they become settings."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lora_mnist.errors import UsageError

if TYPE_CHECKING:  # both would bring pydantic, for which --help does not wait
    from lora_mnist.settings.config import Layer
    from lora_mnist.settings.request import Applied, Request

PANELS = ("Run", "Adapter", "Training", "Data", "Output")  # of --help, in this order

Number = TypeVar("Number", int, float)


def _option(panel: str, name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, **more)


_run, _adapter, _training, _data, _output = (partial(_option, panel) for panel in PANELS)

# Options of a single command, or of several that do not share a group -------------------------------------------------

Force = Annotated[bool, _run("--force", "Replace what is finished.")]
Checkpoint = Annotated[
    str | None, _run("--checkpoint", "Network made from the base, by name or file.", metavar="NAME|FILE")
]
Digit = Annotated[str | None, _adapter("--digit", "Digit to repair, or weakest (found on val).", metavar="0-9|weakest")]
OF_THE_ADAPTER = _adapter("--rank", "Of the adapter.")
Rank = Annotated[int, OF_THE_ADAPTER]
Rounds = Annotated[int, _adapter("--rounds", "Repair the weakest digit, then the next on top, so many times.")]
Twin = Annotated[bool, _adapter("--twin", "Train one with the digit at its natural share too, and compare.")]
OnTopOf = Annotated[
    list[str] | None, _adapter("--on-top-of", "Adapter that is on while this one trains; may be repeated.")
]
Verified = Annotated[list[str] | None, _adapter("--adapter", "Adapter by name; may be repeated.")]
Ranks = Annotated[str, _adapter("--rank", "Ranks to count for.", metavar="1,2,4")]
Shapes = Annotated[
    list[str] | None, _adapter("--shape", "A layer of that shape instead of the run's.", metavar="OUTxIN")
]
Full = Annotated[bool, _training("--full", "Train all weights of a copy instead, to compare.")]
Epochs = Annotated[int | None, _training("--epochs", "Passes over the training images.")]
Name = Annotated[str | None, _output("--name", "Of what is made.  [default: digit9-r1 and the like]")]
Normalise = Annotated[bool, _output("--normalise", "Confusion in per cent of each true digit instead of counts.")]
Verbose = Annotated[bool, _output("--verbose", "Print every table, not only what it comes to.")]
Open = Annotated[bool, _output("--open", "Show the page in the browser.")]


# Groups ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Which run."""

    run: Annotated[Path, _run("--run", "Directory of the run.")] = Path("runs/default")


@dataclass(frozen=True)
class Machine:
    """What there is to compute with."""

    data: Annotated[
        Path, _data("--data", "Where data sets lie; MNIST in its MNIST/raw/.", envvar="LORA_MNIST_DATA")
    ] = Path("data")
    device: Annotated[str, _run("--device", "auto, cpu, cuda or cuda:N.")] = "auto"
    threads: Annotated[int | None, _run("--threads", "CPU threads.  [default: torch's choice]")] = None


@dataclass(frozen=True)
class Output:
    """What is printed."""

    json: Annotated[bool, _output("--json", "Print one JSON object.")] = False
    quiet: Annotated[
        bool, _output("--quiet", "Print nothing but the path of what was made; no progress, no notes.")
    ] = False
    debug: Annotated[bool, _output("--debug", "Show the traceback of an error.")] = False


@dataclass(frozen=True)
class Making:
    """How a command that trains goes about it."""

    config: Annotated[
        str | None,
        _run("--config", "default, classic, smoke, or a TOML file.", metavar="NAME|FILE"),
    ] = None
    seed: Annotated[int | None, _run("--seed", "Of weights and of the order of images.")] = None
    force: Force = False

    def settings(self) -> "Layer":
        """The seed, if there is one."""
        return {} if self.seed is None else {"seed": self.seed}


@dataclass(frozen=True)
class DataChoice:
    """Which images, and how they are split."""

    dataset: Annotated[
        str | None,
        _data("--dataset", "auto: MNIST if it can be had, else the embedded digits.", metavar="auto|mnist|digits"),
    ] = None
    val_share: Annotated[
        float | None, _data("--val-share", "Share of the training images that takes the decisions.")
    ] = None

    def settings(self) -> "Layer":
        """What was given, as the `data` table."""
        return given("data", **vars(self))


@dataclass(frozen=True)
class Network:
    """The network's shape."""

    hidden: Annotated[str | None, _training("--hidden", "Sizes of the hidden layers, as 1000,2000.")] = None

    def settings(self) -> "Layer":
        """What was given, as the `model` table. Raises UsageError if `hidden` is not a list of sizes."""
        return given("model", hidden=_sizes(self.hidden))


@dataclass(frozen=True)
class Loop:
    """What both trainings have."""

    batch_size: Annotated[int | None, _training("--batch-size", "Images per step.")] = None
    learning_rate: Annotated[float | None, _training("--learning-rate", "Of the first step.")] = None
    optimizer: Annotated[str | None, _training("--optimizer", "Adam, or AdamW.", metavar="adam|adamw")] = None
    schedule: Annotated[
        str | None,
        _training("--schedule", "Of the learning rate; the cosine falls to 0.", metavar="constant|cosine"),
    ] = None
    weight_decay: Annotated[float | None, _training("--weight-decay", "Adam: L2 penalty; AdamW: decoupled.")] = None

    def settings(self, stage: str, rate: str = "learning_rate") -> "Layer":
        """What was given, as the table of `stage`, in which `rate` is the name of the learning rate."""
        others = {name: value for name, value in vars(self).items() if name != "learning_rate"}
        return given(stage, **{rate: self.learning_rate}, **others)


@dataclass(frozen=True)
class Repair:
    """An adapter and its training, as far as `run` has them too."""

    digit: Digit = None
    rank: Annotated[int | None, OF_THE_ADAPTER] = None
    alpha: Annotated[
        float | None, _adapter("--alpha", "scaling = alpha / rank, or with --rslora alpha / sqrt(rank).")
    ] = None
    steps: Annotated[int | None, _training("--steps", "Fine-tuning steps.")] = None
    focus: Annotated[
        float | None,
        _training("--focus", "Share of every batch that is the target digit; 1 is only that digit."),
    ] = None
    guard: Annotated[
        str | None,
        _adapter(
            "--guard",
            "Keep the adapter at the strength with the fewest errors at which, on val, no more of these are wrong.",
            metavar="every-digit|errors|digit|none",
        ),
    ] = None
    name: Name = None

    def settings(self) -> "Layer":
        """What was given, as the `finetune` table."""
        return given("finetune", **(vars(self) | {"digit": _digit(self.digit)}))


@dataclass(frozen=True)
class AdapterShape:
    """What else an adapter is made of."""

    rank_pattern: Annotated[
        list[str] | None, _adapter("--rank-pattern", "Another rank for some layers.", metavar="TARGET=RANK")
    ] = None
    alpha_pattern: Annotated[
        list[str] | None, _adapter("--alpha-pattern", "Another alpha for some layers.", metavar="TARGET=ALPHA")
    ] = None
    rslora: Annotated[
        bool | None, _adapter("--rslora/--no-rslora", "Whether the scaling has the square root of the rank.")
    ] = None
    targets: Annotated[
        list[str] | None, _adapter("--targets", "Layer by name or regular expression; may be repeated.")
    ] = None
    dropout: Annotated[float | None, _adapter("--dropout", "On the input of lora_A, while training.")] = None
    init: Annotated[
        str | None,
        _adapter("--init", "Start of lora_A: uniform as in loralib, or N(0, 1).", metavar="kaiming|gaussian"),
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

    shift: Annotated[float | None, _data("--shift", "Move training images by up to so many pixels.")] = None
    rotate: Annotated[float | None, _data("--rotate", "Turn training images by up to so many degrees.")] = None
    zoom: Annotated[float | None, _data("--zoom", "Make training images smaller or larger by up to this share.")] = None

    def settings(self) -> "Layer":
        """What was given, as the `finetune` table."""
        return given("finetune", **vars(self))


@dataclass(frozen=True)
class Loss:
    """Which images fine-tuning sees more often, and what it minimises beside the cross-entropy."""

    hardness: Annotated[
        float | None,
        _training("--hardness", "Draw images the more often the less sure the network is of them: 0 (all alike) to 4."),
    ] = None
    logit_adjustment: Annotated[
        float | None,
        _training(
            "--logit-adjustment", "Take back the belief that the digit is as frequent as --focus makes it: 0 to 2."
        ),
    ] = None
    label_smoothing: Annotated[
        float | None, _training("--label-smoothing", "Share of each label that is spread over all digits.")
    ] = None

    def settings(self) -> "Layer":
        """What was given, as the `finetune` table."""
        return given("finetune", **vars(self))


@dataclass(frozen=True)
class Adapters:
    """Adapters that are put on the base, and how strongly."""

    adapter: Annotated[
        list[str] | None,
        _adapter("--adapter", "Adapter by name, or a folder of PEFT's; may be repeated.", metavar="NAME|DIR"),
    ] = None
    strength: Annotated[
        list[float] | None,
        _adapter("--strength", "Factor on the adapters, one for all or one each: 1 as kept, 0 off."),
    ] = None
    allow_unsealed: Annotated[
        bool, _adapter("--allow-unsealed", "Take adapters that do not say what base they are for.")
    ] = False

    def applied(self) -> list["Applied"]:
        """The adapters, each with its strength.

        Raises:
            UsageError: there are strengths, but neither one nor as many as adapters.
        """
        from lora_mnist.settings.request import Applied

        names, factors = list(dict.fromkeys(self.adapter or [])), self.strength or [1.0]
        if self.strength and not names:
            raise UsageError(f"`strength` (={factors[0]}) needs an adapter to act on.", "Name one with --adapter.")
        if len(factors) == 1:
            factors = factors * len(names)
        if len(factors) != len(names):
            raise UsageError(
                f"There are {len(names)} adapters and {len(factors)} strengths.",
                "Give one for all, or one each.",
            )
        return [Applied(name, factor) for name, factor in zip(names, factors, strict=True)]


# Options → settings ---------------------------------------------------------------------------------------------------


def request_of(place: Place, machine: Machine, output: Output, making: Making, *settings: "Layer") -> "Request":
    """The `Request` of a command. Of `settings`, which are tables as in a config file, those of one name are joined."""
    from lora_mnist.settings.request import Request

    tables: dict[str, dict[str, Any]] = {}
    for layer in settings:
        for name, table in layer.items():
            tables.setdefault(name, {}).update(table)
    return Request(
        run=place.run,
        data=machine.data,
        config=making.config,
        options={**making.settings(), **tables},
        device=machine.device,
        threads=machine.threads,
        force=making.force,
        quiet=output.quiet,
    )


def given(table: str, **options: object) -> "Layer":
    """The `table` of a config file with the options that were not left out."""
    return {table: {name: value for name, value in options.items() if value is not None}}


def _digit(digit: str | None) -> int | str | None:
    """A number if it looks like one."""
    return int(digit) if digit and digit.isascii() and digit.isdecimal() else digit


def refuse_with_full(repair: Repair, shape: AdapterShape, twin: bool, on_top_of: list[str] | None) -> None:
    """Raises UsageError if `--full` comes with an option that only an adapter has."""
    from lora_mnist.settings.config import OF_ADAPTERS

    options = {**vars(repair), **vars(shape), "twin": twin, "on_top_of": on_top_of}
    if found := [name for name in (*OF_ADAPTERS, "twin", "on_top_of") if options[name] not in (None, [], False)]:
        flag = "--" + found[0].replace("_", "-")
        raise UsageError(f"{flag} means nothing with --full, which trains no adapter.", "Leave one of them out.")


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
