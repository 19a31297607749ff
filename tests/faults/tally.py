"""How many attacks were tried and survived, and the table that docs/trust.md has of them.

`make faults` keeps the counts in benchmarks/results/faults.json and writes the table anew.
"""

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lora_mnist.errors import RunError

Rows = dict[str, dict[str, list[int]]]  # by attack and part of it: tried, survived

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
PAGE = ROOT / "docs" / "trust.md"
BEGIN, END = "<!-- written by `make faults` -->\n", "<!-- so far -->\n"

ASKED = os.environ.get("LORA_MNIST_FAULTS", "0")  # of each attack: "all", as `make faults` has it, or at least so many
ALL = ASKED == "all"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def some(cases: Iterable[Any], few: int, most: int = 10_000) -> list[Any]:
    """At `most` so many, in `make test` but a `few`, as far from each other as can be."""
    cases, count = list(cases), most if ALL else max(few, int(ASKED))
    if len(cases) <= count:
        return cases
    return [cases[round(i * (len(cases) - 1) / (count - 1))] for i in range(count)]


class Tally:
    """The counts of one session."""

    def __init__(self):
        self.rows: Rows = {}

    def attack(
        self, name: str, part: str, cases: Iterable[Any], survive: Callable[[Any], None], workers: int = CORES
    ) -> None:
        """Try all `cases`, so many at a time. Raises AssertionError with the first few that were not survived."""
        cases, faults = list(cases), []

        def attempt(case: Any) -> None:
            try:
                survive(case)
            except (AssertionError, RunError) as error:
                faults.append(f"{case}: {error}")

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(attempt, cases))
        self.rows.setdefault(name, {})[part] = [len(cases), len(cases) - len(faults)]
        assert not faults, f"{len(faults)} of {len(cases)}:\n" + "\n\n".join(faults[:5])

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
    lines = ["| attack | tried | survived | lost or wrong |", "|---|---|---|---|"]
    for name, parts in sorted(rows.items()):
        tried, survived = (sum(counts) for counts in zip(*parts.values(), strict=True))
        lines.append(f"| {name} | {tried:,} | {survived:,} | {tried - survived:,} |")
    return "\n".join(lines) + "\n"
