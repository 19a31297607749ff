"""How many small changes of the code no test notices: `python benchmarks/mutants.py [--sample 300] [--seed 0]`.

mutmut makes the changes, as `[tool.mutmut]` in pyproject.toml says, in a copy of the package below mutants/. All of
them take hours; a sample is drawn at random from all. What was tried already is not tried again.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PROVENANCE = Path("mutants", "lora_mnist")
SURVIVED, UNTESTED = (0,), (5, 33)  # exit codes in mutmut's words; all others are failures, time-outs and crashes
NONE = "lora_mnist.none"  # a name that no mutant has


def codes() -> dict[str, int | None]:
    """By mutant, what its tests ended with; None if it was not tried yet."""
    found: dict[str, int | None] = {}
    for file in sorted(PROVENANCE.rglob("*.meta")):
        found |= json.loads(file.read_text())["exit_code_by_key"]
    return found


def mutmut(at_once: int | None, *names: str) -> None:
    """Run the tests on these mutants, which it makes first where they are not there."""
    limit = ["--max-children", str(at_once)] if at_once else []
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork has none of torch's threads, and would wait for them
    subprocess.run([Path(sys.executable).with_name("mutmut"), "run", *limit, *names], check=False, env=one_thread)


def module_of(mutant: str) -> str:
    """`files` of `lora_mnist.files.x_write_file__mutmut_1`."""
    return mutant.rpartition(".")[0].removeprefix("lora_mnist.")


def main() -> None:
    """Print the share that was noticed, by module, and the name of every mutant that was not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="so many at random; all of them if it is left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--at-once", type=int, help="so many mutants at the same time; one on each CPU if it is left out"
    )
    options = parser.parse_args()
    if not codes():
        mutmut(options.at_once, NONE)
    names = sorted(codes())
    chosen = random.Random(options.seed).sample(names, min(options.sample or len(names), len(names)))
    if untried := [name for name in chosen if codes()[name] is None]:
        mutmut(options.at_once, *untried)
    ended = codes()
    if untried := [name for name in chosen if ended[name] is None]:
        raise SystemExit(f"{len(untried)} could not be tried; mutmut says above why.")
    table: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name in chosen:
        table[module_of(name)][0] += 1
        table[module_of(name)][1] += ended[name] not in (*SURVIVED, *UNTESTED)
    print("| module | tried | noticed |\n|---|---|---|")
    for module, (tried, noticed) in sorted(table.items()):
        print(f"| {module} | {tried} | {noticed} |")
    noticed = sum(one for _, one in table.values())
    print(f"\n{noticed} of {len(chosen)}, {noticed / len(chosen):.1%}, of {len(names):,} in all")
    for name in sorted(name for name in chosen if ended[name] in (*SURVIVED, *UNTESTED)):
        print(f"not noticed: {name}")


if __name__ == "__main__":
    main()
