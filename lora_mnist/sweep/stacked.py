"""The engine that trains many adapters at once.

On a GPU in this process. On CPUs in processes with one thread each, a stack at a time in each: threads that share a
product wait for each other in every step, and the more so on a busy machine.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.work import FEW, GPU_ROWS, ROWS, STACK_BYTES, Outcome, Worker, numbers_of, stacks_of
from lora_mnist.sweep.world import SweepContext


def run(
    world: SweepContext, jobs: Sequence[Job], told: Callable[[float], None], processes: int = 1
) -> Iterator[list[Outcome]]:
    """The outcomes of every stack, as soon as they are known. What cannot be stacked is trained alone.

    Args:
        told: of how many jobs the work is done by now.
        processes: so many at most, if the world is on the CPU.
    """
    on_cpu = world.dataset.train.images.device.type == "cpu"
    room = (STACK_BYTES // processes, ROWS, processes) if on_cpu else (STACK_BYTES, GPU_ROWS)
    stacks = stacks_of(jobs, numbers_of(world), *room)
    if on_cpu and processes > 1 and len(stacks) > 1 and len(jobs) > FEW:
        from lora_mnist.sweep import pool

        yield from pool.run(world, stacks, processes)
        return
    worker, done = Worker(world), 0
    for stack in stacks:
        yield worker.do(stack, partial(_told_more, told, done))
        done += len(stack)


def _told_more(told: Callable[[float], None], done: int, more: float) -> None:
    told(done + more)
