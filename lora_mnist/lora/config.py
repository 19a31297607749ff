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
    """What an adapter is, apart from its weights. Raises LoRAError if a value is out of its range.

    A pattern is a layer's name or the end of it (`q_proj` for every `….q_proj`), as in PEFT, or else a regular
    expression for the whole name (`blocks[.][0-3][.].*`).

    Attributes:
        targets: patterns of the layers to adapt, or among them `all-linear`: every linear layer but the output layer of
            a model of transformers, which `get_output_embeddings()` returns or is called `score` or `classifier`.
        rank: columns of B and rows of A.
        alpha: numerator of the scaling.
        rank_pattern, alpha_pattern: another rank or alpha for the target layers that a pattern finds; an expression is
            for the end of a name too here, as in PEFT. Where several find a layer, the first counts.
        rslora: see `scaling`.
        dropout: probability that an input of `lora_A` is zeroed, in training mode.
        init: how `lora_A` starts: `kaiming` (uniform, as in loralib) or `gaussian`, N(0, 1). `lora_B` starts at 0, so
            the model starts as the base (section 4.1).
        dtype: of A and B; None takes fp32 beside weights in fp16, bf16 or less, in which small steps are lost, and the
            dtype of the weight beside others.
        about: what PEFT's config says of the base and its use, such as `base_model_name_or_path` and `task_type`. It
            does nothing here; `load_adapter` keeps it, and `save_adapter` writes it back.
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
    about: Mapping[str, Any] = field(default_factory=dict)

    def __new__(cls, *_: Any, **settings: Any) -> "LoRAConfig":
        known = [one.name for one in fields(cls)]
        if unknown := settings.keys() - known:  # as somebody writes who comes from PEFT
            raise LoRAError(f"LoRAConfig has no `{sorted(unknown)[0]}`.", f"Its settings are {', '.join(known)}.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets  # one pattern
        listed = isinstance(targets, Sequence) and bool(targets) and all(isinstance(one, str) for one in targets)
        _require("targets", targets, listed, "a list of at least one pattern")
        object.__setattr__(self, "targets", tuple(targets))  # equal whatever sequence they came in
        _require("dropout", self.dropout, _is_number(self.dropout) and 0 <= self.dropout < 1, "from 0 to below 1")
        _require("init", self.init, self.init in ("kaiming", "gaussian"), "kaiming or gaussian")
        _require("dtype", self.dtype, self.dtype is None or self.dtype in DTYPES, "None, or a float dtype of torch")
        _require("rslora", self.rslora, isinstance(self.rslora, bool), "True or False")
        for name, patterns in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            mapping = isinstance(patterns, Mapping) and all(isinstance(one, str) for one in patterns)
            _require(name, patterns, mapping, "a value by pattern")
        for rank in (self.rank, *self.rank_pattern.values()):
            whole = isinstance(rank, Integral) and not isinstance(rank, bool)
            _require("rank", rank, whole and 1 <= rank <= LARGEST, f"a whole number from 1 to {LARGEST:,}")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            _require("alpha", alpha, _is_number(alpha) and 0 < alpha <= 1e30, "a finite number above 0")

    @property
    def scaling(self) -> float:
        """alpha / rank (section 4.1), or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732, theorem 3.2)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def dtype_beside(self, weight: torch.dtype) -> torch.dtype:
        """Of the A and B of a layer whose weight has dtype `weight`."""
        return self.dtype or (weight if weight.is_complex or weight == torch.float64 else torch.float32)

    def of_layers(self, layers: Iterable[str]) -> dict[str, "LoRAConfig"]:
        """What it comes to for each of its target layers among `layers`, in their order; without patterns.

        Raises LoRAError if a pattern finds no layer; those of rank and alpha look among the target layers only.
        """
        layers = list(layers)
        found = {layer for pattern in self.targets for layer in require_matching(pattern, layers)}
        plain = replace(self, rank_pattern={}, alpha_pattern={})
        own = {layer: replace(plain, targets=(layer,)) for layer in layers if layer in found}
        for setting, patterns in (("rank", self.rank_pattern), ("alpha", self.alpha_pattern)):
            for pattern in reversed(list(patterns)):  # so that the first one has the last word
                value: dict[str, Any] = {setting: patterns[pattern]}
                for layer in require_matching(pattern, list(own), "target layer", of_end=True):
                    own[layer] = replace(own[layer], **value)
        return own


def _require(name: str, value: Any, holds: bool, rule: str) -> None:
    if not holds:
        raise LoRAError(f"`{name}` (={shown(value)}) must be {rule}.", "Correct that value.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def require_matching(pattern: str, names: Sequence[str], kind: str = "linear layer", of_end: bool = False) -> set[str]:
    """As `matching`; LoRAError also if it finds none, with `kind` for what `names` are names of."""
    if found := matching(pattern, names, of_end):
        return found
    there = f"The {kind}s are {', '.join(names)}." if names else "There is none to adapt."
    raise LoRAError(f"Target {pattern!r} matches no {kind}.", there)


def matching(pattern: str, names: Sequence[str], of_end: bool = False) -> set[str]:
    """The names among `names` that `pattern` finds; as an expression, by the whole name or, if `of_end`, from a dot on.

    Raises LoRAError if it is not a valid expression.
    """
    if by_its_end := {name for name in names if name == pattern or name.endswith(f".{pattern}")}:
        return by_its_end
    try:
        return {name for name in names if re.fullmatch(rf"(.*\.)?({pattern})" if of_end else pattern, name)}
    except re.error as error:
        raise LoRAError(f"Target {pattern!r} is not a regular expression: {error}.", "Correct it.") from error
