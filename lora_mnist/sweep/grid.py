"""What a sweep varies → its jobs. Imports no torch."""

import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from lora_mnist.errors import UsageError, shown
from lora_mnist.settings.config import Document, Settings
from lora_mnist.settings.layers import setting_name

MOST_JOBS = 200_000  # of one folder, whose rows are in memory at once
LONGEST = 1_000  # characters of one value
OF_BASE = ("data", "model", "pretrain")  # how a base is made, beside its seed
FORBIDDEN = {"finetune.name", "data.dataset"}  # a name is not part of what an adapter does; one data set a sweep

Axes = Mapping[str, Sequence[Any]]  # values by the dotted name of the setting, as in a config file
Method = Literal["lora", "full", "control", "hard control", "rounds"]
CONTROLS: tuple[Method, ...] = ("control", "hard control")


class Job(Document):
    """One fine-tuning."""

    base: str  # key of the base that it starts from, among those of the sweep
    method: Method  # an adapter, or what it is compared with (see `make_jobs`)
    settings: Settings  # of which `seed` and `finetune` count; those of a control are its adapter's
    rounds: int = 1

    @property
    def digit(self) -> int:
        digit = self.settings.finetune.digit
        assert digit != "weakest"  # settled when the base was opened
        return digit

    @property
    def rank(self) -> int | None:
        """Of its adapters; all weights have none."""
        return None if self.method == "full" else self.settings.finetune.rank

    def with_finetune(self, **changes: Any) -> "Job":
        """The same with other settings of the fine-tuning."""
        finetune = self.settings.finetune.model_copy(update=changes)
        return self.model_copy(update={"settings": self.settings.model_copy(update={"finetune": finetune})})

    def key(self, base_fingerprint: str, dataset_sha256: str) -> str:
        """The job's identity: 16 hexadecimal digits of SHA-256 over base, data, method and settings."""
        settings = self.settings.model_dump(
            mode="json", include={"seed", "data", "finetune"}, exclude={"finetune": {"name"}}
        )
        identity = {"base": base_fingerprint, "data": dataset_sha256, "method": self.method, "settings": settings}
        if self.method == "rounds":
            identity["rounds"] = str(self.rounds)
        return sha256_of_json(identity)[:16]


def sha256_of_json(document: object) -> str:
    """The same for equal documents, in whatever order their keys are."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def parse_axes(digits: str, ranks: str, seeds: str, settings: Iterable[str] = ()) -> dict[str, tuple[Any, ...]]:
    """`0-9`, `1,2,4`, `0-2` and `finetune.focus=0.2,0.35` → the values of every setting that is varied.

    Args:
        ranks: or `config`, which leaves the rank to the config.

    Raises:
        UsageError: a value or a name is not one, or a setting is given twice, or the images are split in several ways.
    """
    axes = {"seed": parse_values("seed", seeds), "finetune.digit": parse_values("digit", digits)}
    if ranks != "config":
        axes["finetune.rank"] = parse_values("rank", ranks)
    for entry in settings:
        name, equals, text = entry.partition("=")
        if not equals or not re.fullmatch(r"\w[\w-]*(\.\w[\w-]*)*", name):
            cause = f"`set` (={shown(entry)}) is not a setting and its values."
            raise UsageError(cause, "Write --set finetune.focus=0.2,0.35.")
        table, *keys = name.split(".")
        name = ".".join([table, *map(setting_name, keys[:1]), *keys[1:]])  # however it is spelled
        if name in FORBIDDEN or any(f"{name}.".startswith(f"{other}.") for other in axes):  # seed.x is none, for one
            raise UsageError(f"`set` (={shown(entry)}) names {name}, which is not set there.", "Leave it out.")
        axes[name] = parse_values(name, text)
        if name.startswith("data.") and len(axes[name]) > 1:
            raise UsageError(f"`set` (={shown(entry)}) splits the images in several ways.", "Make a sweep of each.")
    return axes


def parse_values(name: str, text: str) -> tuple[Any, ...]:
    """`0-2` is 0, 1, 2; `a,b` is a and b; each is what TOML takes it for, or else a word. Lists have their brackets.

    Raises UsageError if there is no value, or one twice.
    """
    if any(len(part) > LONGEST for part in text.split(",")):
        raise UsageError(f"`{name}` (={shown(text)}) has a value of more than {LONGEST:,} characters.", "Shorten it.")
    if found := re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", text):
        first, last = map(int, found.groups())
        if last - first >= MOST_JOBS:
            raise UsageError(f"`{name}` (={shown(text)}) is more than {MOST_JOBS:,} values.", "Choose fewer.")
        values: list[Any] = list(range(first, last + 1))
    else:
        values = []
        for part in re.split(r",(?![^\[]*\])", text):  # a comma in brackets separates entries of one list
            try:
                values += [tomllib.loads(f"value = {part}")["value"]] if part else []
            except (ValueError, RecursionError):  # a word, such as cosine
                values.append(part)
    if not values or any(values.count(value) > 1 for value in values[:1000]):
        raise UsageError(f"`{name}` (={shown(text)}) is not a list of different values.", "Write it as 1,2,4 or 0-9.")
    return tuple(values)


def combinations(axes: Axes) -> list[dict[str, Any]]:
    """Every combination of the values, as the tables of a config file.

    Raises UsageError if they are too many.
    """
    count = math.prod(len(values) for values in axes.values())
    if count > MOST_JOBS:
        raise UsageError(f"The grid has {count:,} jobs, more than {MOST_JOBS:,}.", "Make several sweeps of it.")
    found = []
    for values in itertools.product(*axes.values()):
        tables: dict[str, Any] = {}
        for name, value in zip(axes, values, strict=True):
            table = tables
            *folders, last = name.split(".")
            for folder in folders:
                table = table.setdefault(folder, {})
            table[last] = value
        found.append(tables)
    return found


def make_jobs(
    axes: Axes,
    resolve: Callable[[Mapping[str, Any]], Settings],
    base: str | None = None,
    full: bool = False,
    control: bool = False,
    rounds: int = 0,
) -> list[Job]:
    """The jobs of a grid, seed by seed: its adapters, and what is trained from the same bases to compare them with.

    Args:
        resolve: lays tables over the defaults and checks them.
        base: the key of the one base that all start from; None is one for every seed and way to train it.
        full: all weights, once for every combination of the values other than the rank.
        control: every adapter with uniform sampling, and with hard examples at the natural share.
        rounds: at most so many repairs on top of each other, each of the digit that is weakest then.

    Raises UsageError if a value is out of its range, or rounds are asked for with a digit, or with several values.
    """
    if rounds and (varied := [name for name, values in axes.items() if name != "seed" and len(values) > 1]):
        cause = f"`rounds` (={rounds}) need one value per setting, but {varied[0]} has {len(axes[varied[0]])} values."
        raise UsageError(cause, "Give it one, as --digit weakest --rank 1.")
    methods: list[Method] = ["lora", *(CONTROLS if control else ())]
    grids: list[tuple[Axes, list[Method]]] = [(axes, [*methods, "rounds"] if rounds else methods)]
    if full:
        grids.append(({name: values for name, values in axes.items() if name != "finetune.rank"}, ["full"]))
    jobs = []
    for own, chosen in grids:
        for tables in combinations(own):
            settings = resolve(tables)
            if rounds and settings.finetune.digit != "weakest":
                raise UsageError(f"`rounds` (={rounds}) looks for the weakest digit.", "Use --digit weakest.")
            made_by = settings.model_dump(mode="json", include=set(OF_BASE))
            key = base or f"seed{settings.seed}-{sha256_of_json(made_by)[:8]}"
            for method in chosen:
                most = rounds if method == "rounds" else 1
                jobs.append(Job(base=key, method=method, settings=settings, rounds=most))
    return jobs
