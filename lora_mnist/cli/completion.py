"""What the shell offers after TAB: runs, their adapters and checkpoints, configs, and the words an option takes."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from lora_mnist.runs.atomic import finished_folders, is_finished

DEFAULT_RUN = Path("runs/default")


def join_options() -> None:
    """Let `--run=DIR` be two words, as Typer takes them; bash breaks a line before and after = and counts that too."""
    if os.environ.get("_LORA_MNIST_COMPLETE") != "complete_bash":
        return
    line, place = os.environ.get("COMP_WORDS", ""), int(os.environ.get("COMP_CWORD", 0))
    words = line.split("\n" if "\n" in line else " ")
    signs = [i for i, word in enumerate(words) if word == "=" and words[i - 1].startswith("--")]
    os.environ["COMP_WORDS"] = "\n".join(word for i, word in enumerate(words) if i not in signs)
    os.environ["COMP_CWORD"] = str(place - sum(i < place for i in signs))


def runs(incomplete: str) -> list[str]:
    """Runs beside the default one, and those whose path begins with what is typed."""
    typed = Path(os.path.dirname(incomplete))  # of "there/" that is there, where Path(…).parent is not
    folders = dict.fromkeys([DEFAULT_RUN.parent, typed])
    places = [place for folder in folders for place in sorted(_found(Path.iterdir, folder))]
    return [str(place) for place in places if is_finished(place / "base")]


def finished_in(folder: str) -> Callable[[typer.Context], list[str]]:
    """What is finished in that folder of the runs on the line: their adapters, or their checkpoints."""
    return lambda ctx: [place.name for run in _runs_of(ctx) for place in _found(finished_folders, run / folder)]


def words_of(metavar: str) -> Callable[[], list[str]]:
    """The words in `auto|cpu|cuda:N`: what is written small stands for itself."""
    return lambda: [word for word in metavar.split("|") if word.islower()]


def _runs_of(ctx: typer.Context) -> list[Path]:
    """Those of `compare`, or the one that every other command has."""
    named = ctx.params.get("run")
    if named is not None and not isinstance(named, (list, tuple)):
        return [Path(named)]
    # an option that still lacks its value keeps Typer from telling arguments apart
    return [Path(run) for run in (*(ctx.params.get("runs") or ctx.args), *(named or ()))] or [DEFAULT_RUN]


def _found(search: Callable[[Path], Iterable[Path]], folder: Path) -> list[Path]:
    try:
        return list(search(folder))
    except OSError:  # not there, or not to be read: nothing to offer
        return []
