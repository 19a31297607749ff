"""How far a training is: a bar on a terminal, a line every tenth in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

log = logging.getLogger("lora_mnist")

WINDOW = 50  # steps between two looks at the loss, so that a GPU is not waited for in every step
BAR = "{desc} {percentage:3.0f} % {bar} {remaining} left{postfix}"


@dataclass(frozen=True)
class Progress:
    """Whether and how work is shown, on standard error."""

    quiet: bool = True  # nothing is
    stage: str = ""  # what is put before it, such as "2/4 "

    @contextmanager
    def counting(
        self, description: str, total: int, losses: torch.Tensor | None = None
    ) -> Iterator[Callable[[float], None]]:
        """Show how much of `total` is done: call what is given with that, as often as it is known.

        Of a training, `total` is its steps, and `losses` (steps,) is filled as it goes on.
        """
        description = self.stage + description
        if self.quiet or not total:
            yield lambda done: None
        elif sys.stderr.isatty():
            with tqdm(total=total, desc=description, bar_format=BAR, leave=False, dynamic_ncols=True) as bar:

                def draw(done: float) -> None:
                    if losses is not None and done % WINDOW == 0:
                        bar.set_postfix_str(f"loss {_mean_loss(losses, int(done)):.3f}", refresh=False)
                    bar.update(int(done) - bar.n)

                yield draw
        else:
            log.info("%s%s", description, "" if losses is None else f": {total:,} steps")
            started, tenths = time.monotonic(), 0

            def write(done: float) -> None:
                nonlocal tenths
                if int(10 * done / total) == tenths:
                    return
                tenths = int(10 * done / total)
                shown = "" if losses is None else f", loss {_mean_loss(losses, int(done)):.3f}"
                left = f", {_seconds_left(started, done, total):.0f} s left" if done < total else ""
                log.info("%s: %.0f %%%s%s", description, 100 * done / total, shown, left)

            yield write

    @contextmanager
    def waiting(self, description: str) -> Iterator[None]:
        """Name work that takes seconds, as long as it lasts, on a terminal."""
        hidden = self.quiet or not sys.stderr.isatty()
        with tqdm(desc=f"{self.stage}{description} …", bar_format="{desc}", leave=False, disable=hidden):
            yield


SILENT = Progress()


@dataclass(frozen=True)
class Step:
    """How far a training is."""

    step: int  # so many are done
    steps: int
    loss: float  # the mean of the last `WINDOW` steps
    seconds_left: float


@dataclass(frozen=True)
class CallbackProgress(Progress):
    """Progress that is not shown but passed on after every step; what `tell` raises ends the training.

    It is that of all trainings that belong together, one after the other.
    """

    tell: Callable[[Step], None] = lambda step: None
    steps: int = 0  # of all of them
    before: int = 0  # of those before this one
    started: float = field(default_factory=time.monotonic)  # when the first began

    @contextmanager
    def counting(
        self, description: str, total: int, losses: torch.Tensor | None = None
    ) -> Iterator[Callable[[float], None]]:
        """As `Progress.counting`, of a training."""
        assert losses is not None

        def show(done: float) -> None:
            all_done = self.before + int(done)
            left = _seconds_left(self.started, all_done, self.steps)
            self.tell(Step(all_done, self.steps, _mean_loss(losses, int(done)), left))

        yield show


def _seconds_left(started: float, done: float, total: int) -> float:
    """If all that is to come takes as long as what is done."""
    return (time.monotonic() - started) / done * (total - done)


def _mean_loss(losses: torch.Tensor, done: int) -> float:
    return float(losses[max(0, done - WINDOW) : done].mean())
