"""The options that are no settings of a recipe, each spelled and explained once, and the request they become."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_mnist.cli import completion
from lora_mnist.cli.panels import in_data, in_lora, in_output, in_repair, in_run
from lora_mnist.errors import UsageError
from lora_mnist.settings.layers import config_names

if TYPE_CHECKING:  # both would bring pydantic, for which --help does not wait
    from lora_mnist.settings.layers import Layer
    from lora_mnist.settings.request import Applied, Request


def _folder(name: str) -> Path:
    """A path that was typed; an empty one would be the working directory."""
    if not name:
        raise typer.BadParameter("'' names no folder. The one you are in is '.'.")
    return Path(name)


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
        parser=_folder,
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
        "Adapter that is on, frozen, while this one is trained.",
        "NAME",
        autocompletion=completion.adapters,
    ),
]
_named = partial(in_lora, "--adapter", metavar="NAME", autocompletion=completion.adapters)
Verified = Annotated[list[str] | None, _named("Adapter to check.", show_default="all, and all checkpoints")]
Digest = Annotated[
    str | None,
    in_output("--digest", "Run digest that was noted elsewhere, or its first 16 characters: compare with it.", "HEX"),
]
Compared = Annotated[list[str] | None, _named("Adapter or checkpoint to compare.", show_default="all, and the bases")]
Ranks = Annotated[str, in_lora("--rank", "Ranks to count for, with commas between them.", "N,N,N")]
Shapes = Annotated[
    list[str] | None, in_lora("--shape", "Count for a layer of this shape instead of the run's network.", "OUTxIN")
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
        parser=_folder,
    ),
]
DATA = Path("data")
Normalise = Annotated[bool, in_output("--normalise", "Confusion in per cent of each true digit instead of counts.")]
Verbose = Annotated[bool, in_output("--verbose", "Print everything, not only what it comes to.")]
Open = Annotated[bool, in_output("--open", "Show the page in the browser.")]


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
            parser=_folder,
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
            "Adapter to put on the base: its name in the run, or a folder in PEFT's format.",
            "NAME|DIR",
            autocompletion=completion.adapters,
        ),
    ] = None
    strength: Annotated[
        list[float] | None,
        in_lora(
            "--strength",
            "Factor on the adapters, one for all or one each: 1 as kept, 0 off.",
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
