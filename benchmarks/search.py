"""What every recipe that was tried comes to, named by how it differs from a config.

    python benchmarks/search.py default sweeps/search

Means over the bases of the sweep with 95 % intervals (Student's t), on the images that `sweep --hold-out` held out.
*Than the config*: all errors less those that the config leaves of the base of the same seed. *Loses most*: of the
digits that are not repaired, the one whose error rate rises most on average, in points.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from rare import SPLIT, counts_of, more, point_change, print_table, verdicts_of

from lora_mnist.settings.config import load_config, resolve
from lora_mnist.sweep.rows import Row, Store
from lora_mnist.sweep.summary import estimate_of

HEAD = ("recipe", "missed", "false alarms", "all errors", "than the config", "loses most", "verdicts")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("sweep", type=Path)
    arguments = parser.parse_args()
    print_table(HEAD, lines_of(list(Store(arguments.sweep).rows.values()), arguments.config))


def lines_of(rows: Sequence[Row], config: str) -> Iterator[list[str]]:
    """The cells of every line: of each share of a rare digit the base, then the recipes, the fewest errors first."""
    bases = defaultdict[str, dict[str, list[Row]]](lambda: defaultdict(list))
    for row in rows:
        pretrain = row.pretrain
        base = "the base" if pretrain.rare_digit == "none" else f"a base that saw {100 * pretrain.rare_share:g} %"
        bases[base][name_of(row, config)].append(row)
    for base, recipes in bases.items():
        before = {row.seed: row.before[SPLIT] for tried in recipes.values() for row in tried}
        yield [base, *counts_of(before), "", "", ""]
        usual = {row.seed: row.after[SPLIT] for row in recipes.get("", ())}
        for name, tried in sorted(recipes.items(), key=lambda one: sum(row.after[SPLIT].errors for row in one[1])):
            after, shown = {row.seed: row.after[SPLIT] for row in tried}, name or f"**`{config}.toml`**"
            yield [shown, *counts_of(after), more(after, usual), loses_most(tried), verdicts_of(tried)]


def name_of(row: Row, config: str) -> str:
    """Every setting of its recipe that `config` has otherwise, the digit apart; empty for the config itself."""
    usual = resolve([load_config("default"), load_config(config)], row.dataset).finetune.model_dump(mode="json")
    tried = row.settings.model_dump(mode="json")
    differs = [f"{name} {tried[name]}" for name in tried if tried[name] != usual[name] and name != "digit"]
    return ", ".join(differs).replace("_", " ")


def loses_most(rows: Sequence[Row]) -> str:
    """The digit and the rise of its error rate, in points."""
    changes = {}
    for digit in range(10):
        if others := [row for row in rows if row.digit != digit]:
            points = ((row.seed, point_change(row.before[SPLIT], row.after[SPLIT], digit)) for row in others)
            changes[digit] = estimate_of(points)
    worst = max(changes, key=lambda digit: changes[digit].mean)
    return f"{worst}: {changes[worst].signed(2)}"


if __name__ == "__main__":
    main()
