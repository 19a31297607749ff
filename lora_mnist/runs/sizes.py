"""How many numbers an adapter holds, from shapes alone."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lora_mnist.errors import UsageError


def lora_size(shape: tuple[int, int], rank: int) -> int:
    """Numbers in A (rank, in) and B (out, rank) for W of `shape` (out, in): rank · (in + out)."""
    return rank * sum(shape)


def size_table(layers: Mapping[str, tuple[int, int]], biases: bool, ranks: Sequence[int]) -> dict[str, Any]:
    """What full fine-tuning and LoRA train, for each rank.

    Args:
        layers: (out, in) of every layer that is adapted, by name.
        biases: whether full fine-tuning has a bias (out) in each of them too.

    Returns:
        `layers`, `biases`, `full` (numbers in W and, if there are any, biases), and `ranks`, a row for each: `rank`,
        `lora`, `share` = lora / full.
    """
    full = sum(rows * columns + rows * biases for rows, columns in layers.values())
    rows = []
    for rank in ranks:
        size = sum(lora_size(shape, rank) for shape in layers.values())
        rows.append({"rank": rank, "lora": size, "share": size / full})
    shapes = {name: list(shape) for name, shape in layers.items()}
    return {"layers": shapes, "biases": biases, "full": full, "ranks": rows}


def mlp_layers(hidden: Sequence[int]) -> dict[str, tuple[int, int]]:
    """(out, in) of every layer of our network, 784 → hidden… → 10."""
    sizes = (28 * 28, *hidden, 10)
    return {f"linear{i}": (fan_out, fan_in) for i, (fan_in, fan_out) in enumerate(pairwise(sizes), 1)}


def parse_ranks(text: str) -> list[int]:
    """`1,2,4` as numbers. Raises UsageError if it is anything else."""
    if not re.fullmatch(r"0*[1-9]\d{0,6}(,0*[1-9]\d{0,6})*", text):
        raise UsageError(f"`rank` (={text!r}) is not a list of whole numbers from 1.", "Write it as 1,2,4,8.")
    return [int(rank) for rank in text.split(",")]


def parse_shape(text: str) -> tuple[int, int]:
    """`4096x1024` as (4096, 1024). Raises UsageError if it is anything else."""
    match = re.fullmatch(r"0*([1-9]\d{0,8})[x×]0*([1-9]\d{0,8})", text)
    if not match:
        raise UsageError(f"`shape` (={text!r}) is not the shape of a matrix.", "Write it as 4096x4096.")
    return int(match[1]), int(match[2])
