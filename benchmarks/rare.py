"""What repairs of a rare digit come to, beside the base of the same seed that saw all of its images.

    python benchmarks/rare.py sweeps/rare sweeps/balanced-9

The sweeps together hold repairs of one digit: of bases that saw a share of it, and of bases that saw all of it
(`pretrain.rare_digit` "none"). A row of the table is a share and a setting; means over
seeds with 95 % intervals (Student's t). *Most more* is the largest rise, in points, of another digit's error rate when
that is first averaged over seeds: against the base that was repaired, and against the one that saw all.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lora_mnist.sweep.rows import Row, SplitCounts, Store
from lora_mnist.sweep.summary import estimate_of

SPLIT = "test"
Networks = Mapping[int, SplitCounts]  # by seed, what each does on it
HEAD = (
    *("the base saw", "setting", "missed", "false alarms", "all errors", "times those of a base that saw all"),
    *("most more than before", "than a base that saw all", "verdicts"),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path)
    rows = [row for sweep in parser.parse_args().sweeps for row in Store(sweep).rows.values()]
    for cells in (HEAD, len(HEAD) * ["---"], *lines_of(rows)):
        print(f"| {' | '.join(cells)} |")


def lines_of(rows: Sequence[Row]) -> Iterator[list[str]]:
    """The cells of every line below the heading."""
    saw_all = {row.seed: row.before[SPLIT] for row in rows if row.pretrain.rare_digit == "none"}
    groups = defaultdict[tuple[float, int, str], list[Row]](list)
    for row in rows:
        if row.method in ("lora", "full"):
            share = 1.0 if row.pretrain.rare_digit == "none" else row.pretrain.rare_share
            groups[share, row.rank or 0, setting_of(row)].append(row)
    shown = set[float]()
    for (share, _, setting), group in sorted(groups.items()):
        before = {row.seed: row.before[SPLIT] for row in group}
        after = {row.seed: row.after[SPLIT] for row in group}
        digit, seen = group[0].digit, f"{100 * share:g} %"
        if share not in shown:
            shown.add(share)
            yield [seen, "", *counts_of(before, saw_all), "", most_more(digit, before, saw_all), ""]
        verdicts = Counter(row.verdict or "nothing kept" for row in group)
        said = ", ".join(f"{count} {kind}" for kind, count in verdicts.most_common())
        rises = (most_more(digit, after, before), most_more(digit, after, saw_all))
        yield [seen, setting, *counts_of(after, saw_all), *rises, said]


def setting_of(row: Row) -> str:
    """What tells a repair from others of the same base."""
    if row.method == "full":
        return "all weights"
    return f"rank {row.rank}, focus {row.settings.focus:g}, {row.settings.steps:,} steps"


def counts_of(networks: Networks, saw_all: Networks) -> list[str]:
    """Missed, false alarms, errors; and how many times as many errors as `saw_all`, the same seeds, on average."""
    metrics = ("missed", "false_alarms", "errors")
    means = [estimate_of((seed, one.of(metric)) for seed, one in networks.items()) for metric in metrics]
    if not networks.keys() <= saw_all.keys():
        return [*map(str, means), ""]
    reference = estimate_of((seed, saw_all[seed].errors) for seed in networks)
    return [*map(str, means), f"{means[2].mean / reference.mean:.3f}"]


def most_more(digit: int, after: Networks, before: Networks) -> str:
    """The other digit whose error rate rose most on average, and by how many points."""
    if not after.keys() <= before.keys():
        return ""
    rises = {
        other: estimate_of(
            (seed, 100 * (one.wrong[other] - before[seed].wrong[other]) / one.images[other])
            for seed, one in after.items()
        )
        for other in range(10)
        if other != digit
    }
    other = max(rises, key=lambda one: rises[one].mean)
    return f"{other}: {rises[other].points}"


if __name__ == "__main__":
    main()
