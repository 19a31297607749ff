"""What the recipes reach: run a config with several seeds and print base accuracy, missed, claimed and all errors.

    python benchmarks/recipes.py classic > benchmarks/results/classic.md
    python benchmarks/recipes.py default --dataset digits > benchmarks/results/digits.md

Every run goes through the command line as a user's would; `test` figures are printed, decisions were taken on `val`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lora_mnist.evaluation.metrics import counts_in

COUNTS = ("missed", "claimed", "errors")


def measure(config: str, dataset: str, seed: int, options: list[str]) -> dict:
    """One whole `lora-mnist run` in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lora_mnist", "run", "--config", config, "--dataset", dataset]
        command += ["--seed", str(seed), "--run", str(Path(folder) / "run"), "--json", *options]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - started
    result = json.loads(done.stdout)
    tuned, base = result["finetune"], result["pretrain"]["splits"]["test"]
    before = counts_in(base["confusion"], tuned["digit"]).model_dump()
    kept = tuned["kept"]  # if not, the base stays as it is
    after = tuned["comparison"]["test"]["after"] if kept else before
    return {
        "seed": seed,
        "digit": tuned["digit"],
        "accuracy": [base["accuracy"], 1 - after["errors"] / base["count"]],
        **{count: [before[count], after[count]] for count in COUNTS},
        "proof": tuned["proof"]["passed"] if kept else None,
        "verdict": tuned["verdict"]["kind"] if kept else "not kept",
        "seconds": seconds,
    }


def main() -> None:
    """Measure, and print a row a seed and their means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--seeds", type=int, default=5)
    arguments, options = parser.parse_known_args()

    rows = []
    print("| seed | digit | accuracy | missed | claimed | all errors | proof | verdict | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in range(arguments.seeds):
        row = measure(arguments.config, arguments.dataset, seed, options)
        rows.append(row)
        before, after = row["accuracy"]
        counts = " | ".join(f"{row[count][0]} → {row[count][1]}" for count in COUNTS)
        proof = {True: "passed", False: "failed", None: "not kept"}[row["proof"]]
        print(f"| {seed} | {row['digit']} | {100 * before:.2f} → {100 * after:.2f} % | {counts} | {proof}", end="")
        print(f" | {row['verdict']} | {row['seconds']:.1f} |")
        sys.stdout.flush()
    before, after = ([statistics.mean(row["accuracy"][i] for row in rows)] for i in (0, 1))
    means = {count: [statistics.mean(row[count][i] for row in rows) for i in (0, 1)] for count in COUNTS}
    counts = " | ".join(f"{b:.1f} → {a:.1f} ({100 * (a / b - 1) if b else 0:+.0f} %)" for b, a in means.values())
    seconds = statistics.median(row["seconds"] for row in rows)
    print(f"| mean | | {100 * before[0]:.2f} → {100 * after[0]:.2f} % | {counts} | | | median {seconds:.1f} |")


if __name__ == "__main__":
    main()
