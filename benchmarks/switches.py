"""What made the difference, by switching it off: the factored update, no DataLoader, and how the process is prepared.

    python benchmarks/switches.py [--rounds 5] [--data DIR] [--out DIR]

Pretraining is the classic recipe's (batch 10, Adam at a constant rate), its first steps only; denormal numbers appear
in Adam's moments after a few hundred of them, so the more steps, the more they cost.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plain import unpacked
from steps import ours, parametrized, stepper
from timing import finish, in_process, machine, median_ms, options, ratio
from torch.nn import functional as F

from lora_mnist.datasets import dataset as data
from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.training import device
from lora_mnist.training.batches import epoch_batches
from lora_mnist.training.device import prepare_device
from lora_mnist.training.loop import Adam, TrainingData, train
from lora_mnist.training.model import MLP

STEPS = 2000
GIVEN_BACK = "freed memory given back"
UNSETTLED = "MKL's schedule left open"
FORMED = "W + B A formed"


def pretraining(folder: Path, threads: int | None, steps: int, kind: str) -> float:
    """Seconds a step, of a process of its own: its threads take over how denormals are treated when they start."""
    _before(kind)
    prepare_device("cpu", threads)
    torch.set_flush_denormal(kind != "denormals kept")
    settings = resolve([load_config("default"), load_config("classic")], "mnist").pretrain
    dataset = data.load("mnist", folder, 0.0, 0, torch.device("cpu"))
    batches = epoch_batches(60_000, 10, 1, torch.Generator().manual_seed(0))[:steps]
    torch.manual_seed(0)
    model = MLP()
    if kind != "fed by a DataLoader":
        started = time.perf_counter()
        train(model, TrainingData(dataset.train.images, dataset.train.labels, batches), settings)
        return (time.perf_counter() - started) / steps
    vision = import_torchvision()
    transforms = [vision.transforms.ToTensor(), vision.transforms.Normalize((0.1307,), (0.3081,))]
    with unpacked(folder) as root:
        images = vision.datasets.MNIST(root, transform=vision.transforms.Compose(transforms))
    optimizer = Adam(model.train().parameters())
    loader = torch.utils.data.DataLoader(images, batch_size=10, sampler=batches.flatten().tolist())
    started = time.perf_counter()
    for x, y in loader:
        F.cross_entropy(model(x), y).backward()
        optimizer.step(settings.learning_rate)
    return (time.perf_counter() - started) / steps


def tuning(threads: int | None, steps: int, kind: str) -> float:
    """Seconds a step at rank 1, likewise."""
    _before(kind)
    prepare_device("cpu", threads)
    torch.manual_seed(0)
    make = parametrized if kind == FORMED else ours
    step = stepper(make(MLP(), 1), torch.randn(10, 28, 28), torch.randint(10, (10,)), own=True)
    for _ in range(20):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


def _before(kind: str) -> None:
    if kind == GIVEN_BACK:
        device.keep_freed_memory = lambda: None
    if kind == UNSETTLED:
        torch.ones(8, 8) @ torch.ones(8, 8)  # MKL takes its settings now, too early for `prepare_device`


def main() -> None:
    """Measure and print the table."""
    arguments = options(__doc__, rounds=5, data=True)
    about = machine(arguments.threads)
    works: dict[str, tuple[Callable[..., float], tuple[Any, ...], tuple[str, ...]]] = {
        "pretraining": (
            pretraining,
            (arguments.data,),
            ("as it is", "denormals kept", "fed by a DataLoader", GIVEN_BACK, UNSETTLED),
        ),
        "fine-tuning": (tuning, (), ("as it is", FORMED, UNSETTLED)),
    }
    rows = []
    for stage, (work, given, kinds) in works.items():
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind in kinds:
                times[kind].append(in_process(work, *given, arguments.threads, STEPS, kind))
        for kind in kinds:
            measured = {"ms a step": median_ms(times, kind), "times": ratio(times, kind, "as it is")}
            rows.append({"": stage, "switched off": kind, **measured})
    finish("switches", rows, arguments.out, about)


if __name__ == "__main__":
    main()
