"""What each ingredient of the default recipe is worth: variants of `[finetune]`, on images that decide nothing else.

    python benchmarks/search.py out.jsonl < variants    # a JSON object a line, laid over default.toml's [finetune]

A sixth of the training images is held out: one half is `val` and picks the digit, the other is what is printed. `test`
is not looked at. Bases have seeds 10 to 15, other than those of the README's tables, and each its own split.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from repairs import worst

from lora_mnist.datasets import dataset as data
from lora_mnist.evaluation.findings import COUNTS
from lora_mnist.evaluation.metrics import counts_of, summarise, weakest_digit
from lora_mnist.evaluation.predict import held_out_logits, logits_of
from lora_mnist.evaluation.strength import Guard, choose
from lora_mnist.evaluation.threshold import shifted_threshold
from lora_mnist.settings.config import Settings, load_config, resolve
from lora_mnist.training.device import prepare
from lora_mnist.training.model import MLP
from lora_mnist.training.train import train_adapter, train_base


def open_base(seed: int, epochs: int, folder: Path, device: torch.device) -> tuple[MLP, data.Dataset]:
    """A base, and its images with the held-out ones split into `val` and, in place of the test images, the rest."""
    settings = settings_of({}, seed, epochs)
    dataset = data.load("mnist", folder, 1 / 6, 100 + seed, device)
    order = torch.randperm(len(dataset.val), generator=torch.Generator().manual_seed(seed))
    halves = [data.Split(dataset.val.images[half], dataset.val.labels[half]) for half in order.chunk(2)]
    dataset = data.Dataset(dataset.name, dataset.sha256, dataset.train, *halves)
    return train_base(settings, dataset, device)[0], dataset


def settings_of(variant: dict, seed: int, epochs: int) -> Settings:
    """default.toml with `variant` laid over its [finetune]."""
    layers = [load_config("default"), {"seed": seed, "pretrain": {"epochs": epochs}, "finetune": variant}]
    return resolve(layers, "mnist")


def measure(variant: dict, seed: int, epochs: int, base: MLP, dataset: data.Dataset) -> dict:
    """Counts on the half that decides nothing: of the base, with the adapter, and of the shifted threshold."""
    before = held_out_logits(base, dataset)
    digit = weakest_digit(before["val"], dataset.val.labels)
    settings = settings_of(variant, seed, epochs)
    adapted, _ = train_adapter(base, "a", digit, settings, dataset)
    guard = choose(adapted, "a", Guard(settings.finetune.guard), before["val"], dataset.val, digit)
    if guard.strength is None:
        adapted = base
    after = logits_of(adapted, dataset.test.images)
    labels = dataset.test.labels
    wrong = [summarise(logits, labels) for logits in (before["test"], after)]
    shifted = shifted_threshold({"test": before["test"]}, {"test": after}, {"test": labels}, digit)
    return {
        "strength": guard.strength,
        "worst": worst([b - a for a, b in zip(*(one.wrong for one in wrong), strict=True)], wrong[0].images, digit),
        "base": counts_of(before["test"], labels, digit).model_dump(),
        "adapter": counts_of(after, labels, digit).model_dump(),
        "threshold": shifted.splits["test"].model_dump(),
    }


def main() -> None:
    """Read variants, print a line of a table for each, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    device = prepare("cpu", arguments.threads)
    bases = {seed: open_base(seed, arguments.epochs, arguments.data, device) for seed in range(10, 16)}
    print("| variant | missed | claimed | all errors | missed | all errors | threshold, errors | worst other digit |")
    print("|---|---|---|---|---|---|---|---|")
    for line in sys.stdin:
        variant = json.loads(line)
        rows = [measure(variant, seed, arguments.epochs, *base) for seed, base in bases.items()]
        with arguments.out.open("a") as file:
            file.write(json.dumps({"variant": variant, "epochs": arguments.epochs, "rows": rows}) + "\n")
        mean = {
            who: {k: statistics.mean(row[who][k] for row in rows) for k in COUNTS}
            for who in ("base", "adapter", "threshold")
        }
        cells = [f"{mean['base'][key]:.1f} → {mean['adapter'][key]:.1f}" for key in COUNTS]
        cells += [f"{100 * (mean['adapter'][key] / mean['base'][key] - 1):+.0f} %" for key in ("missed", "errors")]
        cells += [f"{mean['threshold']['errors']:.1f}", f"{statistics.mean(row['worst'] for row in rows):+.2f}"]
        print(f"| {line.strip()} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
