"""What an adapter is apart from its weights, and which layers its patterns find."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

import torch

from lora_mnist.errors import LoRAError, shown

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ALL_LINEAR = "all-linear"
LARGEST = 1_000_000  # rank: far beyond use, and more would only end in a lack of memory


@dataclass(frozen=True)
class LoRAConfig:
    """What an adapter is, apart from its weights.

    A pattern is a layer's name or the end of it (`q_proj` for every `….q_proj`), as in PEFT, or else a regular
    expression for the whole name (`blocks[.][0-3][.].*`).

    Attributes:
        targets: patterns of the layers to adapt, or among them `all-linear`: every linear layer but the output layer of
            a model of transformers, which `get_output_embeddings()` returns or is called `score` or `classifier`.
        rank: columns of B and rows of A.
        alpha: numerator of the scaling.
        rank_pattern, alpha_pattern: another rank or alpha for the target layers that a pattern finds. Where several do,
            the first counts.
        rslora: see `scaling`.
        dropout: probability that an input of `lora_A` is zeroed, in training mode.
        init: how `lora_A` starts: `kaiming` (uniform, as in loralib) or `gaussian`, N(0, 1). `lora_B` starts at 0, so
            the model starts as the base (section 4.1).
        dtype: of A and B; None takes fp32 beside weights in fp16 or bf16, in which small steps are lost, and the dtype
            of the weight beside others.

    Raises:
        LoRAError: a value is out of its range.
    """

    targets: Sequence[str] = (ALL_LINEAR,)
    rank: int = 8
    alpha: float = 8.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dropout: float = 0.0
    init: str = "kaiming"
    dtype: torch.dtype | None = None

    def __new__(cls, *_: Any, **settings: Any) -> "LoRAConfig":
        known = [one.name for one in fields(cls)]
        if unknown := settings.keys() - known:
            raise LoRAError(f"LoRAConfig has no `{sorted(unknown)[0]}`.", f"Its settings are {', '.join(known)}.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):  # one pattern
            object.__setattr__(self, "targets", (self.targets,))
        dropout = _is_number(self.dropout) and 0 <= self.dropout < 1
        patterns = isinstance(self.targets, Sequence) and not isinstance(self.targets, str) and bool(self.targets)
        if patterns:
            object.__setattr__(self, "targets", tuple(self.targets))  # equal whatever sequence they came in
        rules = [
            ("targets", self.targets, patterns, "a list of at least one pattern"),
            ("dropout", self.dropout, dropout, "a number from 0 to below 1"),
            ("init", self.init, self.init in ("kaiming", "gaussian"), "kaiming or gaussian"),
            ("dtype", self.dtype, self.dtype is None or self.dtype in DTYPES, "None, or a float dtype of torch"),
            ("rank_pattern", self.rank_pattern, isinstance(self.rank_pattern, Mapping), "a rank by pattern"),
            ("alpha_pattern", self.alpha_pattern, isinstance(self.alpha_pattern, Mapping), "an alpha by pattern"),
        ]
        _require(rules)
        for rank in (self.rank, *self.rank_pattern.values()):
            holds = isinstance(rank, Integral) and not isinstance(rank, bool) and 1 <= rank <= LARGEST
            rules.append(("rank", rank, holds, f"a whole number from 1 to {LARGEST:,}"))
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            holds = _is_number(alpha) and 0 < alpha <= 1e30
            rules.append(("alpha", alpha, holds, "a finite number above 0"))
        _require(rules)

    @property
    def scaling(self) -> float:
        """alpha / rank (section 4.1), or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732, theorem 3.2)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def dtype_beside(self, weight: torch.dtype) -> torch.dtype:
        """Of the A and B of a layer whose weight has dtype `weight`."""
        return self.dtype or (torch.float32 if weight in (torch.float16, torch.bfloat16) else weight)

    def of_layers(self, layers: Iterable[str]) -> dict[str, "LoRAConfig"]:
        """What it comes to for each of its target layers among `layers`, in their order; without patterns.

        Raises:
            LoRAError: a pattern finds no layer. Those of rank and alpha look among the target layers only.
        """
        layers = list(layers)
        found = find(self.targets, layers)
        targets = [layer for layer in layers if layer in found]
        ranks, alphas = _by_layer(self.rank_pattern, targets), _by_layer(self.alpha_pattern, targets)
        plain = replace(self, rank_pattern={}, alpha_pattern={})
        return {
            layer: replace(
                plain, targets=(layer,), rank=ranks.get(layer, self.rank), alpha=alphas.get(layer, self.alpha)
            )
            for layer in targets
        }


def _require(rules: Iterable[tuple[str, Any, bool, str]]) -> None:
    for name, value, holds, rule in rules:
        if not holds:
            raise LoRAError(f"`{name}` (={shown(value)}) must be {rule}.", "Correct that value.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def find(patterns: Iterable[str], names: Sequence[str], kind: str = "linear layer") -> set[str]:
    """The names among `names`, of what is called `kind` in an error, that at least one of `patterns` finds.

    Raises:
        LoRAError: a pattern finds none, or is not a valid expression.
    """
    return set().union(*(_find(pattern, names, kind) for pattern in patterns))


def matching(pattern: str, names: Sequence[str]) -> set[str]:
    """The names among `names` that `pattern` finds. Raises LoRAError if it is not a valid expression."""
    if by_its_end := {name for name in names if name == pattern or name.endswith(f".{pattern}")}:
        return by_its_end
    try:
        return {name for name in names if re.fullmatch(pattern, name)}
    except re.error as error:
        raise LoRAError(f"Target {pattern!r} is not a regular expression: {error}.", "Correct it.") from error


def _find(pattern: str, names: Sequence[str], kind: str) -> set[str]:
    found = matching(pattern, names)
    if not found:
        there = f"The {kind}s are {', '.join(names)}." if names else "There is none to adapt."
        raise LoRAError(f"Target {pattern!r} matches no {kind}.", there)
    return found


def _by_layer(values: Mapping[str, Any], layers: Sequence[str]) -> dict[str, Any]:
    found = [(_find(pattern, layers, "target layer"), value) for pattern, value in values.items()]
    return {layer: value for hits, value in reversed(found) for layer in hits}  # the first pattern has the last word
