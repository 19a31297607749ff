"""The classic recipe as the plain script that everybody writes; `pipeline.py` times it against this program's.

    python benchmarks/plain.py [--data DIR] [--threads N]

A DataLoader with per-image transforms, the default Adam, LoRA as a parametrization of the weights, evaluation image by
image. It prints one JSON object: seconds of every part, accuracy and wrong nines.
"""

import gzip
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from steps import Parametrization
from timing import options
from torch import nn
from torch.nn.utils import parametrize

from lora_mnist.datasets.mnist import MNIST_FILES, import_torchvision


class Net(nn.Module):
    """784-1000-2000-10."""

    def __init__(self):
        super().__init__()
        self.linear1, self.linear2, self.linear3 = nn.Linear(784, 1000), nn.Linear(1000, 2000), nn.Linear(2000, 10)
        self.relu = nn.ReLU()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, 28, 28) → (B, 10)."""
        x = self.relu(self.linear1(image.view(-1, 784)))
        return self.linear3(self.relu(self.linear2(x)))


@contextmanager
def unpacked(data: str | Path) -> Iterator[str]:
    """A root for torchvision, which reads MNIST only where it lies decompressed."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        for name in MNIST_FILES:
            packed = Path(data, "MNIST", "raw", f"{name}.gz")
            raw.joinpath(name).write_bytes(
                gzip.decompress(packed.read_bytes()) if packed.is_file() else packed.with_suffix("").read_bytes()
            )
        yield folder


def train(loader, net: Net, limit: int | None = None) -> None:
    """One epoch, or `limit` batches of it."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    for i, (x, y) in enumerate(loader):
        if i == limit:
            break
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def evaluate(loader, net: Net) -> tuple[float, int]:
    """Accuracy, and wrong nines."""
    right = wrong_nines = total = 0
    with torch.no_grad():
        for x, y in loader:
            for scores, label in zip(net(x), y, strict=True):
                if torch.argmax(scores) == label:
                    right += 1
                elif label == 9:
                    wrong_nines += 1
                total += 1
    return right / total, wrong_nines


def main() -> None:
    """Run it and say how long each part took."""
    arguments = options(__doc__, data=True, out=False)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torchvision = import_torchvision()
    torch.manual_seed(0)
    convert, scale = torchvision.transforms.ToTensor(), torchvision.transforms.Normalize((0.1307,), (0.3081,))
    transform = torchvision.transforms.Compose([convert, scale])
    with unpacked(arguments.data) as root:
        trainset = torchvision.datasets.MNIST(root, train=True, transform=transform)
        testset = torchvision.datasets.MNIST(root, train=False, transform=transform)
    loader = torch.utils.data.DataLoader(trainset, batch_size=10, shuffle=True)
    tests = torch.utils.data.DataLoader(testset, batch_size=10)
    seconds, marks = {}, {"started": time.perf_counter()}

    def mark(part: str) -> None:
        seconds[part] = time.perf_counter() - marks["started"]
        marks["started"] = time.perf_counter()

    net = Net()
    train(loader, net)
    mark("pretraining")
    before = evaluate(tests, net)
    mark("evaluation")
    for layer in (net.linear1, net.linear2, net.linear3):
        update = Parametrization(layer.out_features, layer.in_features, 1, 1.0)
        parametrize.register_parametrization(layer, "weight", update)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lora_" in name)
    nines = torch.utils.data.Subset(trainset, (trainset.targets == 9).nonzero().flatten().tolist())
    train(torch.utils.data.DataLoader(nines, batch_size=10, shuffle=True), net, 100)
    mark("fine-tuning")
    after = evaluate(tests, net)
    mark("second evaluation")
    print(json.dumps({"seconds": seconds, "before": before, "after": after}))


if __name__ == "__main__":
    main()
