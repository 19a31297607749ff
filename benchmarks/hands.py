"""Two hands that a base has never seen, taught from 30 drawings each, judged on all others.

    python benchmarks/hands.py measure out.jsonl --runs folder [--split val]   # a line per hand and seed; resumes
    python benchmarks/hands.py table out.jsonl > benchmarks/results/hands.md
    python benchmarks/hands.py time out.jsonl --runs folder --threads 2        # of one lesson, three times

A hand is every image of a split changed in one way, so that a base has about 25 or 11 % of them wrong: `turned` by 30
degrees, or `slanted`, each row moved sideways by half of how far it is from the middle. Three of each digit are written
as PNG into folders and taught; the others are judged, prepared as a drawing is. Five bases, each with its own drawings,
and five draws for one base. What was chosen by looking at hands was chosen on those of `val`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from lora_mnist.datasets.dataset import Split
from lora_mnist.datasets.drawings import read_drawings
from lora_mnist.datasets.preprocess import prepare
from lora_mnist.errors import DataError
from lora_mnist.pipeline import Request, Workspace, pretrain
from lora_mnist.pipeline.teach import TaughtAdapter, teach
from lora_mnist.training.model import MLP, logits_of

DEGREES, SHEAR, OF_EACH = 30.0, -0.5, 3
MIDDLE = np.array([13.5, 13.5])  # of 28 pixels, row and column
Matrix = np.ndarray  # (2, 2): where a pixel of the result comes from, by row and column from the middle


def turn(degrees: float) -> Matrix:
    """Counter-clockwise."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, sin], [-sin, cos]])


HANDS = {"turned": turn(DEGREES), "slanted": np.array([[1.0, 0.0], [SHEAR, 1.0]])}


def changed(image: np.ndarray, matrix: Matrix) -> np.ndarray:
    """uint8 (28, 28) → the same, bilinearly."""
    moved = ndimage.affine_transform(image.astype(np.float32), matrix, MIDDLE - matrix @ MIDDLE, order=1)
    return np.rint(moved).clip(0, 255).astype(np.uint8)


@cache
def drawn(split: Split, hand: str) -> tuple[np.ndarray, Split]:
    """All images as that hand draws them, uint8 (N, 28, 28), and those prepared that hold one digit."""
    pictures, prepared, kept = [changed(image, HANDS[hand]) for image in split.images.numpy()], [], []
    for number, picture in enumerate(pictures):
        try:
            prepared.append(prepare(picture))
            kept.append(number)
        except DataError:  # what `teach` and `predict` refuse
            continue
    return np.stack(pictures), Split(torch.from_numpy(np.stack(prepared)), torch.tensor(kept))


def chosen(labels: torch.Tensor, among: torch.Tensor, seed: int) -> torch.Tensor:
    """int64 (30,): so many of each digit."""
    generator = torch.Generator().manual_seed(seed)
    pools = [among[labels[among] == digit] for digit in range(10)]
    return torch.cat([pool[torch.randperm(len(pool), generator=generator)[:OF_EACH]] for pool in pools])


def lesson(work: Workspace, pictures: np.ndarray, labels: torch.Tensor, which: torch.Tensor) -> TaughtAdapter:
    """Teach from PNGs in folders, as `lora-mnist teach --dry-run` does."""
    with tempfile.TemporaryDirectory() as folder:
        for number in which.tolist():
            place = Path(folder) / str(int(labels[number]))
            place.mkdir(exist_ok=True)
            Image.fromarray(pictures[number]).save(place / f"{number}.png")
        return teach(work, read_drawings(Path(folder)))


def opened(base: int, arguments: argparse.Namespace) -> Workspace:
    """A run with the base of that seed, trained if it is not there."""
    options = {"seed": base, "data": {"dataset": arguments.dataset}}
    run = arguments.runs / f"{arguments.config}-{arguments.dataset}-{base}"
    request = Request(run, arguments.data, config=arguments.config, options=options, threads=arguments.threads)
    return pretrain(request, resume=True)[0]


def print_times(arguments: argparse.Namespace) -> None:
    """How long a lesson takes, as whoever waits for it sees it, and in time of the processors."""
    work = opened(0, arguments)
    pictures, prepared = drawn(work.dataset.val, "turned")
    labels = work.dataset.val.labels
    for _ in range(3):
        started, busy = time.perf_counter(), time.process_time()
        lesson(work, pictures, labels, chosen(labels, prepared.labels, 0))
        print(f"{time.perf_counter() - started:.1f} s, of processors {time.process_time() - busy:.1f} s", flush=True)


def measure(hand: str, base: int, draw: int, arguments: argparse.Namespace) -> dict:
    """One hand taught to one base: errors of the other images and of the data set, before and after."""
    work = opened(base, arguments)
    split = getattr(work.dataset, arguments.split)
    pictures, prepared = drawn(split, hand)
    which = chosen(split.labels, prepared.labels, draw)
    taught = lesson(work, pictures, split.labels, which)
    adapted = taught.on(work.base)
    others = ~torch.isin(prepared.labels, which)
    truth = split.labels[prepared.labels[others]]
    errors = [_errors(model, prepared.images[others], truth) for model in (work.base, adapted)]
    mnist = [_errors(model, work.dataset.test.images, work.dataset.test.labels) for model in (work.base, adapted)]
    return {
        "hand": hand, "base": base, "draw": draw, "split": arguments.split, "images": int(others.sum()),
        "refused": len(split) - len(prepared), "before": errors[0], "after": errors[1],
        "mnist": mnist if arguments.split == "test" else None,
        "seconds": taught.provenance.seconds, "lesson": taught.lesson.model_dump(mode="json"),
    }  # fmt: skip


def _errors(model: MLP, images: torch.Tensor, labels: torch.Tensor) -> int:
    return int((logits_of(model, images).argmax(1) != labels).sum())


def table(rows: list[dict]) -> str:
    """Markdown: a line for every hand and kind of seeds, and then every run."""
    lines = ["| hand | seeds | errors of the others | change | `test` errors | change |"]
    lines.append("|---|---|---|---|---|---|")
    kinds: dict[str, Callable[[dict], bool]] = {
        "each its own base": lambda row: row["base"] == row["draw"],
        "one base, several draws": lambda row: row["base"] == 0,
    }
    for hand in HANDS:
        for kind, belongs in kinds.items():
            some = [row for row in rows if row["hand"] == hand and belongs(row)]
            if some:
                lines.append(f"| {hand} | {kind} ({len(some)}) | {_sums(some)} |")
    lines += ["", "| hand | base, draw | of | errors | `test` | own drawings | scale |"]
    lines.append("|---|---|---|---|---|---|---|")
    return "\n".join([*lines, *map(_line, rows)])


def _sums(rows: list[dict]) -> str:
    def means(before: Callable[[dict], int], after: Callable[[dict], int]) -> tuple[str, str]:
        one, other = (statistics.mean(map(count, rows)) for count in (before, after))
        changes = [100 * (after(row) / before(row) - 1) for row in rows]
        return (
            f"{one:.0f} → {other:.0f}",
            f"{100 * (other / one - 1):+.1f} % ({min(changes):+.0f} to {max(changes):+.0f})",
        )

    cells = [*means(lambda row: row["before"], lambda row: row["after"])]
    cells += means(lambda row: row["mnist"][0], lambda row: row["mnist"][1]) if rows[0]["mnist"] else ("", "")
    return " | ".join(cells)


def _line(row: dict) -> str:
    lesson, mnist = row["lesson"], row["mnist"]
    cells = [row["hand"], f"{row['base']}, {row['draw']}", f"{row['images']:,}", f"{row['before']} → {row['after']}"]
    cells += [f"{mnist[0]} → {mnist[1]}" if mnist else "", f"{lesson['before']} → {lesson['after']}"]
    cells.append(str(lesson["scale"]))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "table", "time"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("build/hands"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--config", default="default", help="of the bases; rare: such as hardly saw a nine")
    parser.add_argument("--dataset", choices=("mnist", "mnist-5k"), default="mnist")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.is_file() else []
    if arguments.what == "table":
        print(table(rows))
        return
    if arguments.what == "time":
        print_times(arguments)
        return
    pairs = dict.fromkeys((*((n, n) for n in range(arguments.seeds)), *((0, n) for n in range(arguments.seeds))))
    done = {(row["hand"], row["base"], row["draw"], row["split"]) for row in rows}
    for base, draw in pairs:
        for hand in HANDS:
            if (hand, base, draw, arguments.split) not in done:
                row = measure(hand, base, draw, arguments)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
