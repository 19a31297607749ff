"""What repairs of a rare nine come to, beside the bases of the same seeds that saw all nines.

    python benchmarks/rare.py sweeps/rare-0.02 sweeps/rare-none

The sweeps together hold repairs of nines: of bases that saw a share of them, and of bases that saw all of them
(`pretrain.rare_digit` "none"). A row of the table is a share and a setting; means over seeds with 95 % intervals
(Student's t). The errors of a threshold are those of the repaired base with the smallest one that misses no more on
`test`. Differences are taken within a seed: all errors less those of the base that saw all, and less what that base
makes after the same training; wrong fours, in points of their number, less those before and those of the base that saw
all. Held-out images had said before that the fours suffer most (benchmarks/search.md).
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lora_mnist.sweep.rows import Row, SplitCounts, Store
from lora_mnist.sweep.summary import estimate_of

SPLIT = "test"
Networks = Mapping[int, SplitCounts]  # by seed, what each does on it
SUFFERS = 4
HEAD = (
    *("the base saw", "setting", "missed", "false alarms", "all errors", "errors of a threshold", "more than saw-all"),
    *("than saw-all, trained alike", "fours, points", "than saw-all", "verdicts"),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path)
    rows = [row for sweep in parser.parse_args().sweeps for row in Store(sweep).rows.values()]
    print_table(HEAD, lines_of(rows))


def lines_of(rows: Sequence[Row]) -> Iterator[list[str]]:
    """The cells of every line below the heading."""
    groups = defaultdict[tuple[float, int, str], list[Row]](list)
    for row in rows:
        if row.method in ("lora", "full"):
            share = 1.0 if row.pretrain.rare_digit == "none" else row.pretrain.rare_share
            groups[share, row.rank or 0, setting_of(row)].append(row)
    saw_all = {row.seed: row.before[SPLIT] for (share, *_), group in groups.items() if share == 1 for row in group}
    shown = set[float]()
    for (share, rank, setting), group in sorted(groups.items()):
        before = {row.seed: row.before[SPLIT] for row in group}
        after = {row.seed: row.after[SPLIT] for row in group}
        alike = {row.seed: row.after[SPLIT] for row in groups.get((1.0, rank, setting), ())}
        seen = f"{100 * share:g} %"
        if share not in shown:
            shown.add(share)
            yield [seen, "", *counts_of(before), "", more(before, saw_all), "", "", fours(before, saw_all), ""]
        threshold = str(estimate_of((row.seed, row.threshold_on_test.errors) for row in group))
        differences = (more(after, saw_all), more(after, alike), fours(after, before), fours(after, saw_all))
        yield [seen, setting, *counts_of(after), threshold, *differences, verdicts_of(group)]


def setting_of(row: Row) -> str:
    """What tells a repair from others of the same base."""
    if row.method == "full":
        return "all weights"
    return f"rank {row.rank}, focus {row.settings.focus:g}, {row.settings.steps:,} steps"


def counts_of(networks: Networks) -> list[str]:
    """Missed, false alarms and all errors."""
    metrics = ("missed", "false_alarms", "errors")
    return [str(estimate_of((seed, one.of(metric)) for seed, one in networks.items())) for metric in metrics]


def verdicts_of(rows: Sequence[Row]) -> str:
    """How many of each there are."""
    verdicts = Counter(row.verdict or "nothing kept" for row in rows)
    return ", ".join(f"{count} {kind}" for kind, count in verdicts.most_common())


def print_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """In Markdown."""
    for cells in (head, len(head) * ["---"], *lines):
        print(f"| {' | '.join(cells)} |")


def more(networks: Networks, others: Networks) -> str:
    """How many more errors than `others`, if these are of the same seeds."""
    if networks == others or not networks.keys() <= others.keys():
        return ""
    return estimate_of((seed, one.errors - others[seed].errors) for seed, one in networks.items()).signed(1)


def fours(networks: Networks, others: Networks) -> str:
    """By how many points more of the fours are wrong than with `others`."""
    if networks == others or not networks.keys() <= others.keys():
        return ""
    return estimate_of((seed, point_change(others[seed], one, SUFFERS)) for seed, one in networks.items()).signed(2)


def point_change(before: SplitCounts, after: SplitCounts, digit: int) -> float:
    """By how many points the digit's error rate rises."""
    return 100 * (after.wrong[digit] - before.wrong[digit]) / before.images[digit]


if __name__ == "__main__":
    main()
