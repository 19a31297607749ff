"""What a sweep varies → its jobs. Imports no torch."""

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_mnist.errors import UsageError, shown
from lora_mnist.settings.config import Settings
from lora_mnist.settings.strict import Document

MOST_JOBS = 200_000  # of one folder, whose rows are in memory at once
LONGEST = 1_000  # characters of one value
OF_BASE = ("data", "model", "pretrain")  # a value there means another base
FORBIDDEN = {"finetune.name", "data.dataset"}  # an adapter's name is not part of what it does; one data set a sweep
OWN = "config"  # in place of ranks: the one of the config

Axes = Mapping[str, Sequence[Any]]  # values by the dotted name of the setting, as in a config file
Method = Literal["lora", "full", "control", "hard control", "rounds"]
CONTROLS: tuple[Method, ...] = ("control", "hard control")


@dataclass(frozen=True)
class Beside:
    """What is trained to compare with, from the same base.

    Attributes:
        full: all weights, once for every combination of the values other than the rank.
        control: every adapter twice more: with uniform sampling, and with hard-example sampling at the natural share.
        rounds: at most so many repairs on top of each other, each of the digit that is weakest then; 0: none.
    """

    full: bool = False
    control: bool = False
    rounds: int = 0


NOTHING = Beside()


class Job(Document):
    """One fine-tuning.

    Attributes:
        base: key of the base that it starts from, among those of the sweep.
        method: an adapter, or what it is compared with (see `Beside`). A control has the settings of its adapter.
        settings: of which `seed` and `finetune` count; `digit` is a digit, with `rounds` the first.
        rounds: at most so many.
    """

    base: str
    method: Method
    settings: Settings
    rounds: int = 1

    @property
    def digit(self) -> int:
        """The digit to repair."""
        digit = self.settings.finetune.digit
        assert digit != "weakest"  # settled when the base was opened
        return digit

    def repairing(self, digit: int) -> "Job":
        """The same with that digit."""
        tuning = self.settings.finetune.model_copy(update={"digit": digit})
        return self.model_copy(update={"settings": self.settings.model_copy(update={"finetune": tuning})})

    @property
    def rank(self) -> int | None:
        """Of its adapters; all weights have none."""
        return None if self.method == "full" else self.settings.finetune.rank

    def key(self, base_fingerprint: str, dataset_sha256: str) -> str:
        """The job's identity: 16 hexadecimal digits of SHA-256 over base, data, method and settings."""
        tuning = self.settings.finetune.model_dump(mode="json", exclude={"name"})
        settings = {"seed": self.settings.seed, "data": self.settings.data.model_dump(mode="json"), "finetune": tuning}
        identity = {"base": base_fingerprint, "data": dataset_sha256, "method": self.method, "settings": settings}
        if self.method == "rounds":
            identity["rounds"] = str(self.rounds)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def parse_axes(digits: str, ranks: str, seeds: str, settings: Iterable[str] = ()) -> dict[str, tuple[Any, ...]]:
    """`0-9`, `1,2,4`, `0-2` and `finetune.focus=0.2,0.35` → the values of every setting that is varied.

    Args:
        ranks: or `config`, which leaves the rank to the config.

    Raises:
        UsageError: a value or a name is not one, or a setting is given twice, or the images are split in several ways.
    """
    axes = {"seed": values_in("seed", seeds), "finetune.digit": values_in("digit", digits)}
    if ranks != OWN:
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
        if name.startswith("data.") and len(axes[name]) > 1:
            raise UsageError(f"`set` (={shown(entry)}) splits the images in several ways.", "Make a sweep of each.")
    return axes


def values_in(name: str, text: str) -> tuple[Any, ...]:
    """`0-2` is 0, 1, 2; `a,b` is a and b; each is what TOML takes it for, or else a word. Lists have their brackets.

    Raises:
        UsageError: there is no value, or one twice.
    """
    if any(len(part) > LONGEST for part in text.split(",")):
        raise UsageError(f"`{name}` (={shown(text)}) has a value of more than {LONGEST:,} characters.", "Shorten it.")
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
        raise UsageError(f"The grid has {count:,} jobs, more than {MOST_JOBS:,}.", "Make several sweeps of it.")
    return [_nested(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def base_key(settings: Settings) -> str:
    """What tells the base of a job from others that a sweep makes: its seed, and a hash of how it is trained."""
    made_by = settings.model_dump(mode="json", include=set(OF_BASE))
    return f"seed{settings.seed}-{hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:8]}"


def jobs_of(
    axes: Axes, resolved: Callable[[Mapping[str, Any]], Settings], base: str | None = None, beside: Beside = NOTHING
) -> list[Job]:
    """The jobs of a grid, seed by seed.

    Args:
        resolved: tables laid over the defaults, and checked.
        base: the key of the one base that all start from; None is one for every seed (see `base_key`).

    Raises:
        UsageError: a value is out of its range, or rounds are asked for with a digit, or with several values.
    """
    jobs = []
    if beside.rounds and (varied := [name for name, values in axes.items() if name != "seed" and len(values) > 1]):
        cause = f"`rounds` (={beside.rounds}) are of one setting, and {varied[0]} has {len(axes[varied[0]])} values."
        raise UsageError(cause, "Give it one, as --digit weakest --rank 1.")
    for tables in settings_of(axes):
        settings = resolved(tables)
        methods: tuple[Method, ...] = ("lora", *CONTROLS) if beside.control else ("lora",)
        methods += ("rounds",) if beside.rounds else ()
        if beside.rounds and settings.finetune.digit != "weakest":
            raise UsageError(f"`rounds` (={beside.rounds}) looks for the weakest digit.", "Use --digit weakest.")
        for method in methods:
            rounds = beside.rounds if method == "rounds" else 1
            jobs.append(Job(base=base or base_key(settings), method=method, settings=settings, rounds=rounds))
    if beside.full:
        others = {name: values for name, values in axes.items() if name != "finetune.rank"}
        for tables in settings_of(others):
            settings = resolved(tables)
            jobs.append(Job(base=base or base_key(settings), method="full", settings=settings))
    return jobs


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # a word, such as cosine
        return text


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for name, value in values.items():
        table = tables
        *folders, last = name.split(".")
        for folder in folders:
            table = table.setdefault(folder, {})
            if not isinstance(table, dict):
                raise UsageError(
                    f"`{shown(name)}` is no setting: `{folder}` is one value.", "See configs/default.toml."
                )
        table[last] = value
    return tables
