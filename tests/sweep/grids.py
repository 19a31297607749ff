"""What several tests of sweeps share: a small grid on the embedded digits, and its world."""

from pathlib import Path

from lora_mnist.settings.request import Request
from lora_mnist.sweep.grid import Job, parse_axes
from lora_mnist.sweep.opening import Asked, open_world
from lora_mnist.sweep.rows import Row
from lora_mnist.sweep.world import SweepContext

SMALL = {
    "data": {"dataset": "digits"},
    "model": {"hidden": [24, 16]},
    "pretrain": {"epochs": 3},
    "finetune": {"steps": 20, "batch_size": 10, "learning_rate": 0.01},
}


def asked(out: Path, digits="3,8", ranks="1,2", seeds="0-1", settings=(), **more) -> Asked:
    """A sweep of seconds."""
    return Asked(Request(options=SMALL, threads=1), parse_axes(digits, ranks, seeds, settings), out, **more)


def opened(out: Path, *grid, **more) -> tuple[SweepContext, list[Job]]:
    """Its world and jobs; the bases are made below `out`."""
    one = asked(out, *grid, **more)
    return open_world(one, one.jobs())


def same(one: Row, other: Row) -> bool:
    """Whether two rows say the same, however they came about."""
    return one.model_copy(update={"seconds": 0.0, "engine": "alone"}) == other.model_copy(
        update={"seconds": 0.0, "engine": "alone"}
    )
