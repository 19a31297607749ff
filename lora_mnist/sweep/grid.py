"""What a sweep varies → its jobs. Imports no torch."""

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from lora_mnist.errors import UsageError, shown
from lora_mnist.settings.config import Settings
from lora_mnist.settings.strict import Document

MOST_JOBS = 1_000_000
OF_BASE = ("data", "model", "pretrain")  # a value there means another base
FORBIDDEN = {"finetune.name", "data.dataset"}  # an adapter's name is not part of what it does; one data set a sweep

Axes = Mapping[str, Sequence[Any]]  # values by the dotted name of the setting, as in a config file


class Job(Document):
    """One fine-tuning.

    Attributes:
        base: key of the base that it starts from, among those of the sweep.
        method: an adapter, or all weights.
        settings: of which `seed` and `finetune` count; `digit` is a digit.
    """

    base: str
    method: Literal["lora", "full"]
    settings: Settings

    @property
    def digit(self) -> int:
        """The digit to repair."""
        digit = self.settings.finetune.digit
        assert digit != "weakest"  # settled when the base was opened
        return digit

    def key(self, base_seal: str, dataset_sha256: str) -> str:
        """The job's identity: 16 hexadecimal digits of SHA-256 over base, data, method and settings."""
        tuning = self.settings.finetune.model_dump(mode="json", exclude={"name"})
        settings = {"seed": self.settings.seed, "data": self.settings.data.model_dump(mode="json"), "finetune": tuning}
        identity = {"base": base_seal, "data": dataset_sha256, "method": self.method, "settings": settings}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def parse_axes(digits: str, ranks: str, seeds: str, settings: Iterable[str] = ()) -> dict[str, tuple[Any, ...]]:
    """`0-9`, `1,2,4`, `0-2` and `finetune.focus=0.2,0.35` → the values of every setting that is varied.

    Raises:
        UsageError: a value or a name is not one, or a setting is given twice.
    """
    axes = {"seed": values_in("seed", seeds), "finetune.digit": values_in("digit", digits)}
    axes["finetune.rank"] = values_in("rank", ranks)
    for entry in settings:
        name, equals, text = entry.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
            raise UsageError(
                f"`set` (={shown(entry)}) is not a setting and its values.", "Write --set finetune.focus=0.2,0.35."
            )
        if name in axes or name in FORBIDDEN:
            raise UsageError(f"`set` (={shown(entry)}) names {name}, which is not set there.", "Leave it out.")
        axes[name] = values_in(name, text)
    return axes


def values_in(name: str, text: str) -> tuple[Any, ...]:
    """`0-2` is 0, 1, 2; `a,b` is a and b; each is what TOML takes it for, or else a word. Lists have their brackets.

    Raises:
        UsageError: there is no value, or one twice.
    """
    if found := re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", text):
        first, last = map(int, found.groups())
        if last - first >= MOST_JOBS:
            raise UsageError(f"`{name}` (={shown(text)}) is more than {MOST_JOBS:,} values.", "Choose fewer.")
        values: list[Any] = list(range(first, last + 1))
    else:
        values = [_value(part) for part in re.split(r",(?![^\[]*\])", text) if part]
    if not values or any(values.count(value) > 1 for value in values[:1000]):
        raise UsageError(f"`{name}` (={shown(text)}) is not a list of different values.", "Write it as 1,2,4 or 0-9.")
    return tuple(values)


def settings_of(axes: Axes) -> list[dict[str, Any]]:
    """Every combination of the values, as the tables of a config file.

    Raises:
        UsageError: they are too many.
    """
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST_JOBS:
        raise UsageError(f"The grid has {count:,} jobs, more than {MOST_JOBS:,}.", "Choose fewer values.")
    return [_nested(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def base_key(settings: Settings) -> str:
    """What tells the base of a job from others that a sweep makes: its seed, and a hash of how it is trained."""
    made_by = settings.model_dump(mode="json", include=set(OF_BASE))
    return f"seed{settings.seed}-{hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:8]}"


def jobs_of(
    axes: Axes, resolved: Callable[[Mapping[str, Any]], Settings], base: str | None = None, full: bool = False
) -> list[Job]:
    """The jobs of a grid, seed by seed.

    Args:
        resolved: tables laid over the defaults, and checked.
        base: the key of the one base that all start from; None is one for every seed (see `base_key`).
        full: also all weights once for every combination of the values other than the rank.

    Raises:
        UsageError: a value is out of its range.
    """
    jobs = []
    for tables in settings_of(axes):
        settings = resolved(tables)
        jobs.append(Job(base=base or base_key(settings), method="lora", settings=settings))
    if full:
        others = {name: values for name, values in axes.items() if name != "finetune.rank"}
        for tables in settings_of(others):
            settings = resolved(tables)
            jobs.append(Job(base=base or base_key(settings), method="full", settings=settings))
    return jobs


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a word, such as cosine


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for name, value in values.items():
        table = tables
        *folders, last = name.split(".")
        for folder in folders:
            table = table.setdefault(folder, {})
        table[last] = value
    return tables
