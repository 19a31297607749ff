"""Options that several commands share, spelled and explained once, with what the shell offers for them after TAB; and
the request and settings that they become."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lora_mnist.errors import UsageError, did_you_mean, shown
from lora_mnist.runs.atomic import finished_folders, is_finished
from lora_mnist.settings.layers import config_names

if TYPE_CHECKING:  # both would bring pydantic, for which --help does not wait
    from lora_mnist.settings.layers import ConfigTables
    from lora_mnist.settings.request import Applied, Request

DEFAULT_RUN = Path("runs/default")
PANELS = ("Run", "Repair", "LoRA", "Training", "Data", "Output")  # of --help, in this order


def option(
    panel: str, text: str, metavar: str | None = None, default: object = None, names: str | None = None, **more: Any
) -> Any:
    """An option in `panel`: a field of a group below, or the default of a command's parameter.

    It is called --like-this for a parameter `like_this`. `names`, if given, has that and what other tools call it.
    Without a metavar it is a flag: off unless it is given, or, as --this/--no-this, None. After TAB the shell offers
    the words in a metavar such as `auto|cpu|cuda:N`: what is written small stands for itself.
    """
    if metavar is None and "/" not in (names or ""):
        default = False
    if words := [word for word in (metavar or "").split("|") if word.islower()]:
        more.setdefault("autocompletion", lambda: words)

    def named(parameter: str) -> Any:
        spelled = names or "--" + parameter.replace("_", "-")
        return typer.Option(*spelled.split(", "), help=text, metavar=metavar, rich_help_panel=panel, **more)

    return field(default=default, metadata={"typer": named})


def argument(panel: str, text: str, metavar: str, default: object = None, **more: Any) -> Any:
    """An argument, likewise; one whose default is ... has to be given."""
    made = typer.Argument(help=text, metavar=metavar, rich_help_panel=panel, **more)
    return field(default=default, metadata={"typer": lambda parameter: made})


in_run, in_repair, in_lora, in_training, in_data, in_output = (partial(option, panel) for panel in PANELS)


def folder(name: str | Path) -> Path:
    """A path that was typed; an empty one would be the working directory."""
    if not name:
        raise typer.BadParameter("'' names no folder. The one you are in is '.'.")
    return Path(expand_home(name))


def expand_home(path: str | Path) -> str:
    """A path or a name, with the home folder for `~`, which a shell leaves in --run=~/x and in a quoted variable."""
    found = os.path.expanduser(str(path))
    if found.startswith("~"):
        raise typer.BadParameter(f"{shown(path)} is in no home folder that is known. Write the whole path.")
    return found


def complete_runs(incomplete: str) -> list[str]:
    """Runs beside the default one, and those whose path begins with what is typed."""
    typed = Path(os.path.dirname(incomplete))  # of "there/" that is there, where Path(…).parent is not
    folders = dict.fromkeys([DEFAULT_RUN.parent, typed])
    places = [place for folder in folders for place in sorted(_found(Path.iterdir, folder))]
    return [str(place) for place in places if is_finished(place / "base")]


def complete_finished(folder: str) -> Callable[[typer.Context], list[str]]:
    """What is finished in that folder of the runs on the line: their adapters, or their checkpoints."""

    def names(ctx: typer.Context) -> list[str]:
        runs = ctx.params.get("run") or ()
        if isinstance(runs, (list, tuple)):  # as `compare` has them, among its arguments too
            # an option that still lacks its value keeps Typer from telling arguments apart
            runs = [*(ctx.params.get("runs") or ctx.args), *runs] or [DEFAULT_RUN]
        else:
            runs = [runs]
        return [place.name for run in runs for place in _found(finished_folders, Path(run) / folder)]

    return names


def _found(search: Callable[[Path], Iterable[Path]], folder: Path) -> list[Path]:
    try:
        return list(search(folder))
    except OSError:  # not there, or not to be read: nothing to offer
        return []


FORCE = in_run("Replace what is finished; replacing a base also removes its adapters.")
CONTROL = in_repair("Also train an adapter as long on all images alike, to see how much mere further training does.")
GUARD, TEACH_GUARD = (
    in_repair(
        "What may not get worse on val: any digit, all errors together, or the target digit; none keeps the adapter as"
        f" trained. Of the scales that pass, {which} is kept; if no scale passes, nothing is kept.",
        "every-digit|errors|digit|none",
    )
    for which in ("the one with the fewest errors", "the largest")
)
STEPS = in_training("Batches that the repair trains on.", "N")
RARE = in_data(
    "Digit of which the base sees only a share of the training images. That gives it a real weakness, as in networks"
    " that need a repair. Without :SHARE, the share is the config's.",
    "DIGIT[:SHARE]|none",
)
DATASET = in_data(
    "MNIST, or 5,000 of its images, which need no network; auto takes all of MNIST if it can be had.",
    "auto|mnist|mnist-5k",
)
VERBOSE = in_output("Print every table, not just the summary.")
OPEN = in_output("Show the page in the browser.")
RUNS = DEFAULT_RUN.parent
BELOW = argument("Run", "Folder below which the runs lie.", "FOLDER", RUNS, show_default=str(RUNS))
DATA = in_data("Folder of the data sets; MNIST is in its MNIST/raw/.", "DIR", Path("data"), envvar="LORA_MNIST_DATA")

# where commands differ in the text or the default
run_folder = partial(in_run, metavar="DIR", autocompletion=complete_runs)
config_file = partial(in_run, metavar="NAME|FILE", autocompletion=config_names, show_default="the run's, else default")
checkpoints = partial(in_run, metavar="NAME|FILE", autocompletion=complete_finished("checkpoints"))
adapters = partial(in_lora, metavar="NAME", autocompletion=complete_finished("adapters"))
a_rank = partial(in_lora, "How many directions each layer may change in: lora_B lora_A has this rank.", "N")
a_name = partial(in_output, "Name under which it is saved in the run.", "NAME")
THREADS = in_run("CPU threads to compute with.", "N", show_default="torch's choice")
ONE_RUN = run_folder("Look at this run alone.", show_default="all below the folder")
RUN = run_folder("Folder of the run: its base, adapters and report.", default=DEFAULT_RUN)
NAME = a_name(show_default="made of digit and rank")


@dataclass(frozen=True)
class Machine:
    """What there is on this machine."""

    data: Path = DATA
    device: str = in_run("Where to compute; auto takes a GPU where there is one.", "auto|cpu|cuda|cuda:N", "auto")
    threads: int | None = THREADS


@dataclass(frozen=True)
class Output:
    """What is printed."""

    json: bool = in_output("Print the result as one JSON object.")
    quiet: bool = in_output("Print nothing but the path of what was made; no progress, no notes.")
    debug: bool = in_output("Print the traceback of an error too.")


@dataclass(frozen=True)
class Session(Machine, Output):
    """What there is to compute with, on which images, whether they may be fetched, and what is printed."""

    offline: bool = in_data(
        "Never go online, not even to fetch MNIST; LORA_MNIST_OFFLINE=1 does the same.", envvar="LORA_MNIST_OFFLINE"
    )
    dataset: str | None = DATASET


@dataclass(frozen=True)
class PlaySession(Session):
    """For the playground a thread is enough for one picture, and leaves the others to the training."""

    threads: int = in_run("CPU threads of an answer, and of the training.", "N", 1)


@dataclass(frozen=True)
class ConfigOptions:
    """How a command that trains goes about it."""

    config: str | None = config_file(f"Settings to begin with: {', '.join(config_names())}, or a TOML file of yours.")
    seed: int | None = in_run("Seed of the initial weights and of the order of images.", "N")
    force: bool = FORCE


@dataclass(frozen=True)
class Adapters:
    """Adapters that are put on the base, and how strongly."""

    adapter: list[str] | None = adapters(
        "Adapter to put on the base: its name in the run, or a folder in PEFT's format. May be repeated.",
        metavar="NAME|DIR",
    )
    strength: list[float] | None = in_lora(
        "Factor on the adapters: 1 as stored, 0 off. One for all, or one each. May be repeated.", "X", show_default="1"
    )
    allow_unverified: bool = in_lora("Take adapters that do not say which base they are for.")

    def applied(self) -> list["Applied"]:
        """The adapters, each with its strength.

        Raises UsageError if there are strengths, but neither one nor as many as adapters.
        """
        from lora_mnist.settings.request import Applied

        names, factors = list(dict.fromkeys(self.adapter or [])), self.strength or [1.0]
        if self.strength and not names:
            raise UsageError(f"`strength` (={factors[0]}) needs an adapter to act on.", "Name one with --adapter.")
        if len(factors) not in (1, len(names)):
            cause = f"There are {len(names)} adapters and {len(factors)} strengths."
            raise UsageError(cause, "Give one for all, or one each.")
        return list(map(Applied, names, cycle(factors)))


@dataclass(frozen=True)
class Base:
    """What a base is made of, beside its images: how they are split, the network's shape, how long it is trained."""

    val_share: float | None = in_data(
        "Share of the training images set aside as val, by which all is decided.", "SHARE"
    )
    epochs: int | None = in_training("How often pretraining goes through all the training images.", "N")
    hidden: str | None = in_training("Sizes of the hidden layers.", "N,N")
    rare: str | None = RARE

    def settings(self, **loop: Any) -> "ConfigTables":
        """What was given, with the options of a `Loop`, in the tables of a config file."""
        return {
            **given("data", val_share=self.val_share),
            **given("model", hidden=self.hidden),
            **given("pretrain", epochs=self.epochs, rare=self.rare, **loop),
        }


@dataclass(frozen=True)
class Loop:
    """What both trainings have."""

    batch_size: int | None = in_training("Images in each step.", "N", names="--batch-size, --batch")
    learning_rate: float | None = in_training(
        "Step size of the optimizer, at the start.", "RATE", names="--learning-rate, --lr"
    )
    optimizer: str | None = in_training("Adam, or AdamW with its own way of weight decay.", "adam|adamw")
    schedule: str | None = in_training("Keep the learning rate, or let it fall to 0 by a cosine.", "constant|cosine")
    weight_decay: float | None = in_training(
        "Pull of weights towards 0: Adam adds it to the loss, AdamW does not.", "X"
    )


@dataclass(frozen=True)
class Repair:
    """An adapter and its training, as far as `run` has them too."""

    digit: str | None = in_repair(
        "Digit to repair, or weakest: the one with the highest error rate on val.", "0-9|weakest"
    )
    rank: int | None = a_rank()
    alpha: float | None = in_lora(
        "Size of the update: alpha over sqrt(rank) is its factor, over rank with --no-rslora.", "X"
    )
    steps: int | None = STEPS
    focus: float | None = in_training("Share of every batch that shows the digit; 1 shows nothing else.", "SHARE")
    guard: str | None = GUARD
    name: str | None = NAME


@dataclass(frozen=True)
class FinetuneOptions:
    """What else an adapter is made of, how its images are changed and chosen, and what its loss is."""

    rslora: bool | None = in_lora(
        "Divide alpha by sqrt(rank) instead of rank, so that one learning rate does for all ranks.",
        names="--rslora/--no-rslora, --use-rslora",
    )
    targets: list[str] | None = in_lora(
        "Layer that gets an update, by name or regular expression. May be repeated.",
        "LAYER",
        names="--targets, --target-modules",
    )
    dropout: float | None = in_lora("Share of the inputs of lora_A that each step leaves out.", "SHARE")
    init: str | None = in_lora(
        "How lora_A begins: uniform as in loralib, or normal. lora_B begins at 0.", "kaiming|gaussian"
    )
    rank_pattern: list[str] | None = in_lora(
        "Another rank for one layer. May be repeated.", "LAYER=N", show_default="none"
    )
    alpha_pattern: list[str] | None = in_lora(
        "Another alpha for one layer. May be repeated.", "LAYER=X", show_default="none"
    )
    shift: float | None = in_data("Move training images by up to so many pixels.", "PIXELS")
    rotate: float | None = in_data("Turn training images by up to so many degrees.", "DEGREES")
    zoom: float | None = in_data("Make training images smaller or larger by up to this share.", "SHARE")
    hard_examples: float | None = in_training(
        "Draw images more often the less sure the base is of them: 0 (all alike) to 4.", "X"
    )
    logit_adjustment: float | None = in_training(
        "Correct for the digit being more frequent in batches than in the data: 0 (off), 1 (exactly), up to 2.", "X"
    )
    label_smoothing: float | None = in_training("Share of each label that is spread evenly over all digits.", "SHARE")


def request_of(run: Path, session: Session, common: ConfigOptions = ConfigOptions(), **settings: Any) -> "Request":
    """The `Request` of a command; `settings` are tables as in a config file.

    Raises UsageError if there is no such data set.
    """
    from lora_mnist.settings.layers import DATASETS
    from lora_mnist.settings.request import Request

    if session.dataset is not None:
        known = ("auto", *DATASETS)
        if session.dataset not in known:
            cause = f"`dataset` (={shown(session.dataset)}) is none of {', '.join(known)}."
            raise UsageError(cause, f"{did_you_mean(session.dataset, known)} Choose one of these.".lstrip())
        settings["data"] = {**settings.get("data", {}), "dataset": session.dataset}
    return Request(
        run=run,
        data=session.data,
        offline=session.offline,
        config=common.config,
        options=settings if common.seed is None else {**settings, "seed": common.seed},
        device=session.device,
        threads=session.threads,
        force=common.force,
        quiet=session.quiet,
    )


def given(table: str, **options: Any) -> "ConfigTables":
    """The `table` of a config file with the options that were not left out. Raises UsageError for what is malformed."""
    there = {name: value for name, value in options.items() if value not in (None, [])}
    if re.fullmatch("[0-9]{1,9}", there.get("digit", "")):
        there["digit"] = int(there["digit"])
    if hidden := there.get("hidden"):
        try:
            there["hidden"] = [int(size) for size in hidden.split(",")]
        except ValueError as error:
            raise UsageError(f"`hidden` (={hidden!r}) is not a list of sizes.", "Write it as 1000,2000.") from error
    for name in there.keys() & {"rank_pattern", "alpha_pattern"}:
        pairs = [entry.rsplit("=", 1) for entry in there[name]]
        try:  # a rank has to be a whole number
            there[name] = {layer: int(number) if number.isdecimal() else float(number) for layer, number in pairs}
        except ValueError as error:
            raise UsageError(f"{there[name]!r} is not a layer and a number each.", "Write it as linear3=2.") from error
    return {table: there}
