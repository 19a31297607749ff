"""How far a training is: a bar on a terminal, a line every tenth in a log."""

import logging
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

log = logging.getLogger("lora_mnist")

WINDOW = 50  # steps between two looks at the loss, so that a GPU is not waited for in every step
LOOKS, SECONDS_APART = 20, 0.25  # the time left is judged by the last five seconds
WAIT = 4  # a look that took so many times the usual is a wait (Ctrl-Z, a laptop asleep) and counts for nothing


class Pace:
    """Seconds that a step takes: the mean of the last looks, but for waits.

    tqdm's own is an exponential mean (`smoothing`), in which one wait stays for all of the window.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._steps, self._seconds = 0.0, clock()
        self._looks: deque[tuple[float, float]] = deque(maxlen=LOOKS)

    def look(self, steps: float) -> None:
        """So many are done."""
        now = self._clock()
        if steps > self._steps and now - self._seconds >= SECONDS_APART:
            self._looks.append((steps - self._steps, now - self._seconds))
            self._steps, self._seconds = steps, now

    @property
    def seconds(self) -> float | None:
        """None as long as nothing is known."""
        if not self._looks:
            return None
        usual = statistics.median(seconds / steps for steps, seconds in self._looks)
        kept = [(steps, seconds) for steps, seconds in self._looks if seconds / steps <= WAIT * usual]
        return sum(seconds for _, seconds in kept) / sum(steps for steps, _ in kept)


class Bar(tqdm):
    """tqdm's, as wide as the terminal, with the time left by `Pace`."""

    def __init__(self, description: str, total: int):
        self.pace = Pace()
        form = "{desc} {percentage:3.0f} % {bar} {remaining} left{postfix}"
        super().__init__(total=total, desc=description, bar_format=form, leave=False, dynamic_ncols=True)

    @property
    def format_dict(self) -> dict[str, Any]:
        """tqdm's, with another rate."""
        self.pace.look(self.n)
        seconds = self.pace.seconds
        return super().format_dict | {"rate": 1 / seconds if seconds else None}


@dataclass(frozen=True)
class Progress:
    """Whether and how work is shown, on standard error.

    Attributes:
        quiet: not at all.
        stage: what is put before it, such as "2/4 ".
    """

    quiet: bool = True
    stage: str = ""

    @contextmanager
    def of(self, description: str, losses: torch.Tensor) -> Iterator[Callable[[int], None]]:
        """Show a training of `len(losses)` steps: call what is given with the number of steps done, after each.

        Args:
            losses: (steps,), filled as the training goes on.
        """
        steps = len(losses)
        with self._show(description, steps, f": {steps:,} steps", lambda done: _mean_loss(losses, int(done))) as show:
            yield show

    @contextmanager
    def counting(self, description: str, total: int) -> Iterator[Callable[[float], None]]:
        """Show how much of `total` is done: call what is given with that, as often as it is known."""
        with self._show(description, total, "", None) as show:
            yield show

    @contextmanager
    def _show(
        self, description: str, total: int, heading: str, loss: Callable[[float], float] | None
    ) -> Iterator[Callable[[float], None]]:
        """A bar, or a heading and lines in the log, both with the loss where there is one."""
        description = self.stage + description
        if self.quiet or not total:
            yield lambda done: None
        elif sys.stderr.isatty():
            with Bar(description, total) as bar:

                def draw(done: float) -> None:
                    if loss and done % WINDOW == 0:
                        bar.set_postfix_str(f"loss {loss(done):.3f}", refresh=False)
                    bar.update(int(done) - bar.n)

                yield draw
        else:
            log.info("%s%s", description, heading)
            pace, tenths = Pace(), 0

            def write(done: float) -> None:
                nonlocal tenths
                pace.look(done)
                if int(10 * done / total) == tenths:
                    return
                tenths = int(10 * done / total)
                shown = f", loss {loss(done):.3f}" if loss else ""
                left = "" if pace.seconds is None or done >= total else f", {pace.seconds * (total - done):.0f} s left"
                log.info("%s: %.0f %%%s%s", description, 100 * done / total, shown, left)

            yield write

    @contextmanager
    def waiting(self, description: str) -> Iterator[None]:
        """Name work that takes seconds, as long as it lasts, on a terminal."""
        shown = not self.quiet and sys.stderr.isatty()
        line = f"{self.stage}{description} …"
        try:
            if shown:
                print(line, end="", file=sys.stderr, flush=True)
            yield
        finally:
            if shown:
                print(f"\r{' ' * len(line)}\r", end="", file=sys.stderr, flush=True)


SILENT = Progress()


@dataclass(frozen=True)
class Step:
    """How far a training is.

    Attributes:
        step, steps: so many are done, of so many.
        loss: the mean of the last `WINDOW` steps.
        seconds_left: None as long as nothing is known.
    """

    step: int
    steps: int
    loss: float
    seconds_left: float | None


@dataclass(frozen=True)
class CallbackProgress(Progress):
    """Progress that is not shown but passed on after every step; what `tell` raises ends the training.

    Attributes:
        tell: called with how far all trainings are that belong together, one after the other.
        steps: of all of them; `before`: of those before this one.
    """

    tell: Callable[[Step], None] = lambda step: None
    steps: int = 0
    before: int = 0
    pace: Pace = field(default_factory=Pace)

    @contextmanager
    def of(self, description: str, losses: torch.Tensor) -> Iterator[Callable[[int], None]]:
        """As `Progress.of`."""

        def show(done: int) -> None:
            all_done = self.before + done
            self.pace.look(all_done)
            left = None if self.pace.seconds is None else self.pace.seconds * (self.steps - all_done)
            self.tell(Step(all_done, self.steps, _mean_loss(losses, done), left))

        yield show


def _mean_loss(losses: torch.Tensor, done: int) -> float:
    """Of the last steps."""
    return float(losses[max(0, done - WINDOW) : done].mean())
