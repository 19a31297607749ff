"""What made the difference, by switching it off: denormals, the DataLoader, the factored update.

    python benchmarks/switches.py [--steps 1500] [--data DIR] [--out build/bench]

Pretraining is the classic recipe's (batch 10, Adam at a constant rate), its first steps only; denormal numbers appear
in Adam's moments after a few hundred of them, so the more steps, the more they cost.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from plain import unpacked
from steps import ours, parametrized, stepper
from timing import DATA, finish, machine
from torch.nn import functional as F

from lora_mnist import data
from lora_mnist.config import load_config, resolve
from lora_mnist.device import prepare
from lora_mnist.fetch import import_torchvision
from lora_mnist.model import MLP
from lora_mnist.optimizer import FusedAdam
from lora_mnist.sampling import epoch_batches
from lora_mnist.train import train


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    device, about = prepare("cpu", arguments.threads), machine()
    settings = resolve([load_config("default"), load_config("classic")], "mnist").pretrain
    dataset = data.load("mnist", arguments.data, 0.0, 0, device)
    batches = epoch_batches(60_000, 10, 1, torch.Generator().manual_seed(0))[: arguments.steps]

    def fresh() -> MLP:
        torch.manual_seed(0)
        return MLP()

    def as_it_is() -> None:
        train(fresh(), dataset.train.images, dataset.train.labels, batches, settings)

    def with_denormals() -> None:
        torch.set_flush_denormal(False)
        as_it_is()
        torch.set_flush_denormal(True)

    def with_data_loader() -> None:
        vision = import_torchvision()
        steps = [vision.transforms.ToTensor(), vision.transforms.Normalize((0.1307,), (0.3081,))]
        with unpacked(arguments.data) as root:
            images = vision.datasets.MNIST(root, transform=vision.transforms.Compose(steps))
        model = fresh().train()
        optimizer = FusedAdam(model.parameters())
        loader = torch.utils.data.DataLoader(images, batch_size=10, sampler=batches.flatten().tolist())
        for x, y in loader:
            F.cross_entropy(model(x), y).backward()
            optimizer.step(settings.learning_rate)

    as_it_is()  # the first is slower
    base = fresh()
    x, y = torch.randn(10, 28, 28), torch.randint(10, (10,))

    def tuning(make: Callable) -> Callable[[], None]:
        step = stepper(make(base, 1), x, y, own=True)

        def steps() -> None:
            for _ in range(arguments.steps // 5):
                step()

        return steps

    rows = []
    works = {
        "pretraining": (as_it_is, arguments.steps),
        "pretraining, denormals kept": (with_denormals, arguments.steps),
        "pretraining, fed by a DataLoader": (with_data_loader, arguments.steps),
        "fine-tuning, rank 1": (tuning(ours), arguments.steps // 5),
        "fine-tuning, W + B A formed": (tuning(parametrized), arguments.steps // 5),
    }
    first = {}
    for name, (work, count) in works.items():
        per_step = 1e3 * seconds(work) / count
        usual = first.setdefault(name.partition(",")[0], per_step)
        rows.append({"": name, "steps": count, "ms a step": per_step, "times as long": per_step / usual})
    finish("switches", rows, arguments.out, about)


if __name__ == "__main__":
    main()
