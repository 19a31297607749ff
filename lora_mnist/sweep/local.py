"""The engine of processes on this machine: one job at a time in each, with one thread. Others are compared with it."""

from collections.abc import Iterator, Sequence

from lora_mnist.sweep import pool
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.work import Outcome
from lora_mnist.sweep.world import SweepContext


def run(world: SweepContext, jobs: Sequence[Job], processes: int) -> Iterator[list[Outcome]]:
    """The outcome of every job, as soon as it is known."""
    return pool.run(world, [[job] for job in jobs], processes)
