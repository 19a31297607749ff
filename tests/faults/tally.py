"""How many attacks were tried and survived, and the table that docs/trust.md has of them.

`make faults` keeps the counts in benchmarks/results/faults.json and writes the table anew.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lora_mnist.errors import RunError

T = TypeVar("T")
Rows = dict[str, dict[str, list[int]]]  # by attack and part of it: tried, survived

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
PAGE = ROOT / "docs" / "trust.md"
BEGIN, END = "<!-- written by `make faults` -->\n", "<!-- so far -->\n"

BEFORE = {  # by attack: what came of it on the version that had no lock and no proof of its own numbers
    "a file damaged, gone, or of another kind, and then every command that reads": "2,050 tried: a pipe or a device "
    "was waited for, a manifest without files was a traceback",
    "an open, a write, a sync, a rename, a mkdir or a remove fails, anywhere in any stage": "265 tried: nothing lost",
    "Ctrl-C or SIGTERM at a random time from the start of Python on": "a traceback in the first 0.3 s, an abort during "
    "`import torch`, 4 s under load",
    "JSON that misleads: depth, NaN, 1e999, twice the same key, another encoding": "a list for an object was a "
    "traceback",
    "killed at a random time": "316 tried: nothing lost",
    "tensors that mislead: lengths, offsets, types, names, values": "rank 1,000,000 was refused after 16 s and 3.6 GB",
    "two or three commands at once on one run": "a base or an adapter lost without a word in 7 of 10, another command "
    "dead in 2 of 4",
}

ALL = os.environ.get("LORA_MNIST_FAULTS") == "all"  # as `make faults` has it; else a few of each
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def some(cases: Iterable[T], few: int) -> list[T]:
    """All of them, or in `make test` so many, as far from each other as can be."""
    cases = list(cases)
    if ALL or len(cases) <= few:
        return cases
    return [cases[round(i * (len(cases) - 1) / max(1, few - 1))] for i in range(few)]


class Tally:
    """The counts of one session."""

    def __init__(self):
        self.rows: Rows = {}
        self._lock = threading.Lock()

    def attack(
        self, name: str, part: str, cases: Iterable[T], survive: Callable[[T], None], workers: int = CORES
    ) -> None:
        """Try all `cases`, so many at a time. Raises AssertionError with the first few that were not survived."""
        cases = list(cases)
        with ThreadPoolExecutor(workers) as pool:
            faults = [fault for fault in pool.map(lambda case: _fault(survive, case), cases) if fault]
        self.count(name, part, len(cases), len(cases) - len(faults))
        assert not faults, f"{len(faults)} of {len(cases)}:\n" + "\n\n".join(faults[:5])

    def count(self, name: str, part: str, tried: int, survived: int) -> None:
        """Note how a part of an attack ended."""
        with self._lock:
            self.rows.setdefault(name, {})[part] = [tried, survived]

    def keep(self) -> None:
        """Put the counts beside those of the parts that were not tried now, and write the table."""
        kept: Rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        for name, parts in self.rows.items():
            kept[name] = kept.get(name, {}) | parts
        RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + table(kept) + END + rest.partition(END)[2])


def table(rows: Rows) -> str:
    """In Markdown, an attack a line."""
    lines = ["| attack | before | tried now | survived | lost or wrong |", "|---|---|---|---|---|"]
    for name, parts in sorted(rows.items()):
        tried, survived = (sum(counts) for counts in zip(*parts.values(), strict=True))
        lines.append(f"| {name} | {BEFORE.get(name, '')} | {tried:,} | {survived:,} | {tried - survived:,} |")
    return "\n".join(lines) + "\n"


def _fault(survive: Callable[[T], None], case: T) -> str | None:
    try:
        survive(case)
        return None
    except (AssertionError, RunError) as error:
        return f"{case}: {error}"
