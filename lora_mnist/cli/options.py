"""Every option, spelled and explained once, in groups; and the request and the settings that they become."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_mnist.cli import completion
from lora_mnist.errors import UsageError
from lora_mnist.settings.layers import config_names

if TYPE_CHECKING:  # both would bring pydantic, for which --help does not wait
    from lora_mnist.settings.layers import Layer
    from lora_mnist.settings.request import Applied, Request

PANELS = ("Run", "Repair", "LoRA", "Training", "Data", "Output")  # of --help, in this order


def option(panel: str, names: str, text: str, metavar: str | None = None, **more: Any) -> Any:
    """An option in `panel`. Of `names`, the first is its parameter's, the others what other tools call it."""
    if metavar and "|" in metavar:
        more.setdefault("autocompletion", completion.words_of(metavar))
    return typer.Option(*names.split(", "), help=text, metavar=metavar, rich_help_panel=panel, **more)


in_run, in_repair, in_lora, in_training, in_data, in_output = (partial(option, panel) for panel in PANELS)


def folder(name: str) -> Path:
    """A path that was typed; an empty one would be the working directory."""
    if not name:
        raise typer.BadParameter("'' names no folder. The one you are in is '.'.")
    return Path(name).expanduser()  # a shell leaves the ~ of --run=~/x and of a quoted variable to us


# Options of a single command, or of several that do not share a group -------------------------------------------------

Runs = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Folders of the runs to compare, one or several.",
        metavar="RUN",
        rich_help_panel="Run",
        autocompletion=completion.runs,
        show_default=str(completion.DEFAULT_RUN),
    ),
]
RUNS = completion.DEFAULT_RUN.parent
Folder = Annotated[
    Path,
    typer.Argument(
        help="Folder below which the runs lie.",
        metavar="FOLDER",
        rich_help_panel="Run",
        parser=folder,
        show_default=str(RUNS),
    ),
]
Force = Annotated[bool, in_run("--force", "Make it again, in place of what is finished; with a base go its adapters.")]
_checkpoint = partial(in_run, "--checkpoint", metavar="NAME|FILE", autocompletion=completion.checkpoints)
Checkpoint = Annotated[
    str | None, _checkpoint("Look at a whole network that `merge` or `finetune --full` made, by its name or file.")
]
Source = Annotated[
    str | None,
    _checkpoint("The network that was fine-tuned whole, by its name or file.", show_default="the latest in the run"),
]
Digit = Annotated[
    str | None,
    in_repair("--digit", "Digit to repair, or weakest: the one with the highest error rate on val.", "0-9|weakest"),
]
OfDigit = Annotated[
    str | None,
    in_repair(
        "--digit", "Digit that the adapter is judged by.", "0-9|weakest", show_default="the one it was fine-tuned on"
    ),
]
Rounds = Annotated[
    int,
    in_repair("--rounds", "Repair the weakest digit, then the next one on top of that, so many times at most.", "N"),
]
Control = Annotated[
    bool,
    in_repair("--control", "Train a second adapter as long on every image alike, to see how much is further training."),
]
Full = Annotated[bool, in_repair("--full", "Train all weights of a copy instead of an adapter, to compare.")]
RANK = in_lora("--rank", "How many directions each layer may change in: lora_B lora_A has this rank.", "N")
Rank = Annotated[int, RANK]
OnTopOf = Annotated[
    list[str] | None,
    in_lora(
        "--on-top-of",
        "Adapter that is on, frozen, while this one is trained. May be repeated.",
        "NAME",
        autocompletion=completion.adapters,
    ),
]
_named = partial(in_lora, "--adapter", metavar="NAME", autocompletion=completion.adapters)
Verified = Annotated[
    list[str] | None, _named("Adapter to check. May be repeated.", show_default="all, and all checkpoints")
]
Digest = Annotated[
    str | None,
    in_output("--digest", "Run digest that was noted elsewhere, or its first 16 characters: compare with it.", "HEX"),
]
Compared = Annotated[
    list[str] | None, _named("Adapter or checkpoint to compare. May be repeated.", show_default="all, and the bases")
]
Ranks = Annotated[str, in_lora("--rank", "Ranks to count for, with commas between them.", "N,N,N")]
Shapes = Annotated[
    list[str] | None,
    in_lora("--shape", "Count for a layer of this shape instead of the run's network. May be repeated.", "OUTxIN"),
]
Name = Annotated[
    str | None,
    in_output("--name", "Name under which it is saved in the run.", "NAME", show_default="made of digit and rank"),
]
MergedName = Annotated[
    str | None,
    in_output("--name", "Name under which it is saved in the run.", "NAME", show_default="the adapters' and -merged"),
]
Data = Annotated[
    Path,
    in_data(
        "--data",
        "Folder of the data sets; MNIST is in its MNIST/raw/.",
        "DIR",
        envvar="LORA_MNIST_DATA",
        parser=folder,
    ),
]
DATA = Path("data")
Normalise = Annotated[bool, in_output("--normalise", "Confusion in per cent of each true digit instead of counts.")]
Verbose = Annotated[bool, in_output("--verbose", "Print everything, not only what it comes to.")]
Open = Annotated[bool, in_output("--open", "Show the page in the browser.")]
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
Images = Annotated[
    list[Path] | None,
    typer.Argument(
        help="PNG, JPEG, WebP or .npy of one digit, of any size, dark on light or light on dark.",
        metavar="IMAGE",
        rich_help_panel="Data",
    ),
]
Index = Annotated[
    list[int] | None, in_data("--index", "Test image to take instead of a file; the first is 0. May be repeated.", "N")
]
Show = Annotated[
    Path | None,
    in_output("--show", "Write the 28×28 picture that the networks see, of one picture, as PNG.", "FILE"),
]
Replace = Annotated[bool, in_output("--force", "Let --show replace a file that is there.")]
FileFormat = Annotated[
    str,
    in_output("--format", "ONNX, which needs the extra onnx, or what torch.export.load reads.", "onnx|torch"),
]
Out = Annotated[
    Path | None,
    in_output("--out", "File to write.", "FILE", show_default="in the run's exports/, named after the adapters"),
]
Drawings = Annotated[
    Path,
    typer.Argument(
        help="Folder with the drawings, each below its digit: 0/*.png to 9/*.png.",
        metavar="FOLDER",
        rich_help_panel="Data",
    ),
]
Share = Annotated[float | None, in_data("--share", "Share of every batch that is drawings.", "SHARE")]
TaughtName = Annotated[
    str | None, in_output("--name", "Name under which it is saved in the run.", "NAME", show_default="taught")
]
DryRun = Annotated[bool, in_output("--dry-run", "Test what it would learn, and keep nothing.")]
Port = Annotated[int, in_output("--port", "Port of the page on this machine; 0 takes a free one.", "N")]


# Groups ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Which run."""

    run: Annotated[
        Path,
        in_run(
            "--run",
            "Folder of the run: its base, adapters and report.",
            "DIR",
            parser=folder,
            autocompletion=completion.runs,
        ),
    ] = completion.DEFAULT_RUN


@dataclass(frozen=True)
class Here:
    """What there is on this machine."""

    data: Data = DATA
    device: Annotated[
        str, in_run("--device", "Where to compute; auto takes a GPU where there is one.", "auto|cpu|cuda|cuda:N")
    ] = "auto"
    threads: Annotated[
        int | None, in_run("--threads", "CPU threads to compute with.", "N", show_default="torch's choice")
    ] = None


@dataclass(frozen=True)
class Machine(Here):
    """What there is to compute with, and whether images may be fetched."""

    offline: Annotated[
        bool,
        in_data(
            "--offline",
            "Never use the network, not even to fetch MNIST; so does LORA_MNIST_OFFLINE=1.",
            envvar="LORA_MNIST_OFFLINE",
        ),
    ] = False


@dataclass(frozen=True)
class PlayMachine(Machine):
    """For the playground a thread is enough for one picture, and leaves the others to the training."""

    threads: Annotated[int, in_run("--threads", "CPU threads of an answer, and of the training.", "N")] = 1


@dataclass(frozen=True)
class Output:
    """What is printed."""

    json: Annotated[bool, in_output("--json", "Print the result as one JSON object.")] = False
    quiet: Annotated[
        bool, in_output("--quiet", "Print nothing but the path of what was made; no progress, no notes.")
    ] = False
    debug: Annotated[bool, in_output("--debug", "Print the traceback of an error too.")] = False


@dataclass(frozen=True)
class Recipe:
    """How a command that trains goes about it."""

    config: Annotated[
        str | None,
        in_run(
            "--config",
            f"Settings to begin with: {', '.join(config_names())}, or a TOML file of yours.",
            "NAME|FILE",
            autocompletion=completion.configs,
            show_default="the run's, else default",
        ),
    ] = None
    seed: Annotated[int | None, in_run("--seed", "Seed of the initial weights and of the order of images.", "N")] = None
    force: Force = False

    def settings(self) -> "Layer":
        """The seed, if there is one."""
        return {} if self.seed is None else {"seed": self.seed}


@dataclass(frozen=True)
class Adapters:
    """Adapters that are put on the base, and how strongly."""

    adapter: Annotated[
        list[str] | None,
        in_lora(
            "--adapter",
            "Adapter to put on the base: its name in the run, or a folder in PEFT's format. May be repeated.",
            "NAME|DIR",
            autocompletion=completion.adapters,
        ),
    ] = None
    strength: Annotated[
        list[float] | None,
        in_lora(
            "--strength",
            "Factor on the adapters: 1 as kept, 0 off. One for all, or one each. May be repeated.",
            "X",
            show_default="1",
        ),
    ] = None
    allow_unverified: Annotated[
        bool, in_lora("--allow-unverified", "Take adapters that do not say which base they are for.")
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


# Groups of settings -------------------------------------------------------------------------------------------------


class Settings:
    """A group of options that are settings, in one table of a config file."""

    def settings(self, table: str = "finetune") -> "Layer":
        """What was given, as that table."""
        return given(table, **vars(self))


@dataclass(frozen=True)
class DataChoice(Settings):
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


@dataclass(frozen=True)
class Network(Settings):
    """The network's shape."""

    hidden: Annotated[str | None, in_training("--hidden", "Sizes of the hidden layers.", "N,N")] = None


@dataclass(frozen=True)
class Loop(Settings):
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


@dataclass(frozen=True)
class Repair(Settings):
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


@dataclass(frozen=True)
class AdapterShape(Settings):
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
        in_lora(
            "--targets, --target-modules",
            "Layer that gets an update, by name or regular expression. May be repeated.",
            "LAYER",
        ),
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
        in_lora("--rank-pattern", "Another rank for one layer. May be repeated.", "LAYER=N", show_default="none"),
    ] = None
    alpha_pattern: Annotated[
        list[str] | None,
        in_lora("--alpha-pattern", "Another alpha for one layer. May be repeated.", "LAYER=X", show_default="none"),
    ] = None


@dataclass(frozen=True)
class Augmentation(Settings):
    """By how much training images are changed at random."""

    shift: Annotated[float | None, in_data("--shift", "Move training images by up to so many pixels.", "PIXELS")] = None
    rotate: Annotated[
        float | None, in_data("--rotate", "Turn training images by up to so many degrees.", "DEGREES")
    ] = None
    zoom: Annotated[
        float | None, in_data("--zoom", "Make training images smaller or larger by up to this share.", "SHARE")
    ] = None


@dataclass(frozen=True)
class Loss(Settings):
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


# Options → request ----------------------------------------------------------------------------------------------------


def request_of(place: Place, machine: Machine, output: Output, recipe: Recipe, *settings: "Layer") -> "Request":
    """The `Request` of a command. Of `settings`, which are tables as in a config file, those of one name are joined."""
    from lora_mnist.settings.request import Request

    tables: dict[str, dict[str, Any]] = {}
    for layer in settings:
        for name, table in layer.items():
            tables.setdefault(name, {}).update(table)
    return Request(
        run=place.run,
        data=machine.data,
        offline=machine.offline,
        config=recipe.config,
        options={**recipe.settings(), **tables},
        device=machine.device,
        threads=machine.threads,
        force=recipe.force,
        quiet=output.quiet,
    )


def refuse_with_full(repair: Repair, shape: AdapterShape, control: bool, on_top_of: list[str] | None) -> None:
    """Raises UsageError if `--full` comes with an option that only an adapter has."""
    from lora_mnist.settings.config import OF_ADAPTERS

    options = {**vars(repair), **vars(shape), "control": control, "on_top_of": on_top_of}
    if found := [name for name in (*OF_ADAPTERS, "control", "on_top_of") if options[name] not in (None, [], False)]:
        flag = "--" + found[0].replace("_", "-")
        raise UsageError(f"{flag} means nothing with --full, which trains no adapter.", "Leave one of them out.")


def given(table: str, **options: Any) -> "Layer":
    """The `table` of a config file with the options that were not left out. Raises UsageError for what is malformed."""
    parsers: dict[str, Callable[..., object]] = {
        "digit": _digit,
        "hidden": _sizes,
        "rank_pattern": _pattern,
        "alpha_pattern": _pattern,
    }
    there = {name: value for name, value in options.items() if value not in (None, [])}
    return {table: {name: parsers[name](value) if name in parsers else value for name, value in there.items()}}


def _digit(digit: str) -> int | str:
    """A number if it looks like one."""
    return int(digit) if re.fullmatch("[0-9]{1,9}", digit) else digit


def _sizes(hidden: str) -> list[int] | str:
    try:
        return [int(size) for size in hidden.split(",")] if hidden else hidden
    except ValueError as error:
        raise UsageError(f"`hidden` (={hidden!r}) is not a list of sizes.", "Write it as 1000,2000.") from error


def _pattern(entries: list[str]) -> dict[str, float]:
    """`layer=2` → a whole number, which a rank has to be; `layer=0.5` → another."""
    try:
        pairs = [entry.rsplit("=", 1) for entry in entries]
        return {layer: int(number) if number.isdecimal() else float(number) for layer, number in pairs}
    except ValueError as error:
        raise UsageError(f"{entries!r} is not a layer and a number each.", "Write it as linear3=2.") from error
