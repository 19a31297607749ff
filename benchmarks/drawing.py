"""What preparation makes of a drawing: MNIST's test digits at a random place, size and polarity, and two at once.

    python benchmarks/drawing.py [--dataset mnist-5k] [--config rare] [--images 10000] [--bases 1] [--threads 1]

Every digit is drawn anew onto 320×320 pixels: enlarged to between 40 and 320 by bicubic interpolation, dark on light or
light on dark. *Smooth* is that; *pen* has hard edges, as a canvas without antialiasing; *photograph* has less contrast,
uneven light, noise and JPEG's artefacts. The bases are trained to a config, one epoch, a seed each. The choices in
`lora_mnist/datasets/preprocess.py` were made on `val`, with other drawings; here they are only measured.
"""

import argparse
import io
import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lora_mnist.datasets import dataset as data
from lora_mnist.datasets.preprocess import prepare
from lora_mnist.errors import DataError
from lora_mnist.settings.config import KnownDataset, load_config, resolve
from lora_mnist.training.device import prepare_device
from lora_mnist.training.model import MLP, logits_of
from lora_mnist.training.train import train_base

CANVAS = 320  # pixels
SIDES = (40, CANVAS)  # of MNIST's 28×28 on it, of which the digit itself takes 20
GAPS = (0.2, 0.3, 0.5, 1.0)  # between two digits, in parts of a digit's longer side

Random = np.random.Generator


def smooth(image: np.ndarray, random: Random) -> np.ndarray:
    """uint8 (28, 28) → float (320, 320), light on dark."""
    side = int(random.integers(SIDES[0], SIDES[1] + 1))
    top, left = random.integers(0, CANVAS - side + 1, 2)
    canvas = np.zeros((CANVAS, CANVAS))
    enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    canvas[top : top + side, left : left + side] = np.asarray(enlarged)
    return canvas


def pen(image: np.ndarray, random: Random) -> np.ndarray:
    """Likewise, every pixel either ink or paper."""
    return np.where(smooth(image, random) > 110, 255.0, 0.0)


def photograph(image: np.ndarray, random: Random) -> np.ndarray:
    """Likewise, as a camera would see it."""
    light = random.uniform(-20, 20, 2)
    slope = light[0] * np.linspace(-1, 1, CANVAS) + light[1] * np.linspace(-1, 1, CANVAS)[:, None]
    seen = 60 + smooth(image, random) * (140 / 255) + slope + random.normal(0, 5, (CANVAS, CANVAS))
    file = io.BytesIO()
    Image.fromarray(np.rint(seen.clip(0, 255)).astype(np.uint8)).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file)).astype(float)


def drawings(images: np.ndarray, kind: Callable[[np.ndarray, Random], np.ndarray]) -> Iterator[np.ndarray]:
    """Each as uint8 (320, 320), half of them dark on light; the same ones every time."""
    for i, image in enumerate(images):
        random = np.random.default_rng([7, i])
        canvas = np.rint(kind(image, random)).astype(np.uint8)
        yield 255 - canvas if random.random() < 0.5 else canvas


def two(first: np.ndarray, second: np.ndarray, gap: float, random: Random) -> np.ndarray:
    """Two digits beside each other, uint8, 100 to 200 pixels high, with `gap` of that between them."""
    side = int(random.integers(100, 201))
    tiles = [_enlarged(_cropped(image), side * random.uniform(0.8, 1.2)) for image in (first, second)]
    height, space = max(len(tile) for tile in tiles), np.zeros((1, round(gap * side)), np.uint8)
    level = [np.pad(tile, ((height - len(tile), 0), (0, 0))) for tile in tiles]
    canvas = np.pad(np.hstack([level[0], np.repeat(space, height, 0), level[1]]), 30)
    return 255 - canvas if random.random() < 0.5 else canvas


def pairs(images: np.ndarray, gap: float, count: int = 1000) -> Iterator[np.ndarray]:
    """Any two of `images`, and so on."""
    for i in range(count):
        random = np.random.default_rng([8, i])
        first, second = images[random.integers(0, len(images), 2)]
        yield two(first, second, gap, random)


def _cropped(image: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _enlarged(image: np.ndarray, side: float) -> np.ndarray:
    factor = side / max(image.shape)
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def resized(grey: np.ndarray) -> np.ndarray:
    """What is done without preparation: the whole picture at 28×28."""
    return np.asarray(Image.fromarray(grey).resize((28, 28), Image.Resampling.BOX))


def prepared(pictures: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """uint8 (N, 28, 28), and how many were refused, which are black there."""
    images, refused = [], 0
    for picture in pictures:
        try:
            images.append(prepare(picture))
        except DataError:
            refused += 1
            images.append(np.zeros((28, 28), np.uint8))
    return np.array(images), refused


def bases(name: KnownDataset, config: str, count: int, folder: Path) -> tuple[list[MLP], data.Dataset]:
    """Trained bases of seeds 0, 1, …, and the images."""
    device = torch.device("cpu")
    networks = []
    for seed in range(count):
        settings = resolve([load_config("default"), load_config(config), {"seed": seed}], name)
        dataset = data.load(name, folder, settings.data.val_share, settings.data.split_seed, device)
        networks.append(train_base(settings, dataset, device)[0])
    return networks, dataset


def main() -> None:
    """Print a line for every way of drawing, then one for every gap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LORA_MNIST_DATA", "data")))
    parser.add_argument("--dataset", choices=("mnist", "mnist-5k"), default="mnist")
    parser.add_argument("--config", default="default", help="of the bases; rare: such as hardly saw a nine")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--bases", type=int, default=1)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    prepare_device("cpu", arguments.threads)
    networks, dataset = bases(arguments.dataset, arguments.config, arguments.bases, arguments.data)
    images, labels = dataset.test.images.numpy()[: arguments.images], dataset.test.labels[: arguments.images]

    def accuracy(pictures: np.ndarray) -> float:
        """Mean over the bases, in per cent."""
        guesses = [logits_of(network, torch.tensor(pictures)).argmax(1) for network in networks]
        return 100 * statistics.mean(float((guess == labels).float().mean()) for guess in guesses)

    plain = accuracy(images)
    print(
        f"| {len(images):,} test digits; bases: {arguments.bases} | accuracy, % | against the base | wrongly refused |"
    )
    print(f"|---|---|---|---|\n| as MNIST has them | {plain:.2f} |  |  |")
    same, refused = prepared(list(images))
    print(f"| the same, prepared | {accuracy(same):.2f} | {accuracy(same) - plain:+.2f} | {refused} |", flush=True)
    naive = accuracy(np.array([resized(picture) for picture in drawings(images, smooth)]))
    print(f"| smooth, only resized to 28×28 | {naive:.2f} | {naive - plain:+.2f} |  |", flush=True)
    for kind in (smooth, pen, photograph):
        ours, refused = prepared(drawings(images, kind))
        result = accuracy(ours)
        print(f"| {kind.__name__}, prepared | {result:.2f} | {result - plain:+.2f} | {refused} |", flush=True)
    print("\n| two digits, apart by a share of their height | refused |\n|---|---|")
    for gap in GAPS:
        print(f"| {gap:g} | {prepared(pairs(images, gap))[1] / 10:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
