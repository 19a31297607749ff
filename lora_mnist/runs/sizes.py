"""How many numbers an adapter holds, from shapes alone."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from lora_mnist.errors import UsageError
from lora_mnist.settings.strict import Count, Document, Many


class Size(Document):
    """What LoRA trains at one rank; `share` = lora / full."""

    rank: Count
    lora: Count
    share: float


class SizeTable(Document):
    """What full fine-tuning and LoRA train.

    Attributes:
        layers: (out, in) of every adapted layer, by name.
        biases: whether full fine-tuning has a bias (out) in each of them too.
        full: numbers in W and, if there are any, biases.
    """

    layers: dict[str, tuple[int, int]]
    biases: bool
    full: Count
    ranks: Many[Size]


def lora_size(shape: tuple[int, int], rank: int) -> int:
    """Numbers in A (rank, in) and B (out, rank) for W of `shape` (out, in): rank · (in + out)."""
    return rank * sum(shape)


def size_table(layers: Mapping[str, tuple[int, int]], biases: bool, ranks: Sequence[int]) -> SizeTable:
    """What full fine-tuning and LoRA train of `layers`, (out, in) by name, for each rank."""
    full = sum(rows * columns + rows * biases for rows, columns in layers.values())
    loras = [(rank, sum(lora_size(shape, rank) for shape in layers.values())) for rank in ranks]
    sizes = tuple(Size(rank=rank, lora=lora, share=lora / full) for rank, lora in loras)
    return SizeTable(layers=dict(layers), biases=biases, full=full, ranks=sizes)


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
