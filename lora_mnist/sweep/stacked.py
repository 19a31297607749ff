"""The engine that trains many adapters at once, in this process and on one device."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.work import Outcome, Worker, numbers_of, stacks_of
from lora_mnist.sweep.world import World


def run(world: World, jobs: Sequence[Job], told: Callable[[float], None]) -> Iterator[list[Outcome]]:
    """The outcomes of every stack, as soon as they are known. What cannot be stacked is trained alone.

    Args:
        told: of how many jobs the work is done by now.
    """
    worker, done = Worker(world), 0
    for stack in stacks_of(jobs, numbers_of(world)):
        yield worker.do(stack, partial(_told_more, told, done))
        done += len(stack)


def _told_more(told: Callable[[float], None], done: int, more: float) -> None:
    told(done + more)
