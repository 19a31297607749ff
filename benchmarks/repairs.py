"""Is it a repair? The adapter beside everything that could excuse it, on finished bases, many seeds.

    python benchmarks/repairs.py measure out.jsonl --seeds 0-9      # appends a line per seed; resumes
    python benchmarks/repairs.py table out.jsonl [more.jsonl …]     # means on `test` with 95 % intervals

Per seed and base (1 and 3 epochs): the default recipe, `--rank 1`, and for both the shifted threshold at as many missed
images (chosen on `val`, and once more on `test` itself). On the base of one epoch also the twin, as it is and with a
number on its logit, all weights, and five rounds, unless told otherwise; with `--brief` the default and its twin only.
The digit is the weakest on `val`; `test` decides nothing.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from scipy.stats import t as student

from lora_mnist.evaluation.findings import COUNTS
from lora_mnist.evaluation.metrics import counts_in
from lora_mnist.evaluation.threshold import shifted_threshold
from lora_mnist.pipeline import Request, Tuning, Workspace, finetune, finetune_full, open_workspace, pretrain, repair


def measure(seed: int, epochs: int, data: Path, threads: int | None, rounds: int, brief: bool) -> dict:
    """One base and everything on it: missed, claimed and errors on `test` by what was done."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"seed": seed, "data": {"dataset": "mnist"}, "pretrain": {"epochs": epochs}}
        work, base = pretrain(Request(Path(folder), data, options=options, threads=threads))
        started = time.perf_counter()
        default = finetune(work, twin=epochs == 1 or brief)
        seconds = time.perf_counter() - started
        test, digit = base.splits["test"], default.record.digit
        row = {"seed": seed, "epochs": epochs, "accuracy": test.accuracy, "seconds": seconds, "digit": digit}
        row["base"] = counts_in(test.confusion, digit).model_dump()
        row |= _beside("default", default, work)
        if default.kept and default.analysis.twin:
            row["twin"] = default.analysis.twin.splits["test"].model_dump()
            row["twin + number"] = default.analysis.twin.threshold.splits["test"].model_dump()
        if brief:
            return row
        options = {**options, "finetune": {"rank": 1}}
        rank1 = finetune(open_workspace(Request(Path(folder), data, options=options, threads=threads)))
        row |= _beside("rank 1", rank1, work)
        if epochs == 1:
            row["full"] = finetune_full(work).analysis.splits["test"].after.model_dump()
            if rounds:
                row["rounds"] = [_round(tuning) for tuning in repair(work, rounds)]
    return row


def _beside(name: str, tuning: Tuning, work: Workspace) -> dict:
    """What an adapter did, and what the shifted threshold does at as many missed images."""
    if not tuning.kept:
        return {name: None}
    pair = ({"test": one.logits()["test"]} for one in (work.run.base, work.run.adapter(tuning.record.name)))
    on_test = shifted_threshold(*pair, {"test": work.labels["test"]}, tuning.record.digit)
    return {
        name: tuning.analysis.splits["test"].after.model_dump(),
        f"{name}: threshold": tuning.analysis.threshold.splits["test"].model_dump(),
        f"{name}: threshold on test": on_test.splits["test"].model_dump(),
    }


def _round(tuning: Tuning) -> dict:
    counts = tuning.analysis.splits["test"].model_dump() if tuning.kept else {}
    return {"digit": tuning.record.digit, "kept": tuning.kept, **counts}


def interval(values: list[float]) -> str:
    """Mean and half-width of its 95 % interval (Student's t)."""
    mean, n = statistics.mean(values), len(values)
    half = student.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else float("nan")
    return f"{mean:.1f} ± {half:.1f}"


def table(rows: list[dict]) -> None:
    """Print every comparison."""
    for epochs in sorted({row["epochs"] for row in rows}):
        chosen = [row for row in rows if row["epochs"] == epochs]
        accuracies = [row["accuracy"] for row in chosen]
        print(f"\n{epochs} epoch(s), {len(chosen)} seeds, accuracy {min(accuracies):.4f} to {max(accuracies):.4f}\n")
        print("| on test | missed | claimed | all errors | missed | all errors | kept |")
        print("|---|---|---|---|---|---|---|")
        names = ["base", "default", "default: threshold", "default: threshold on test", "twin", "twin + number"]
        names += ["rank 1", "rank 1: threshold", "rank 1: threshold on test", "full"]
        for name in names:
            if not any(name in row for row in chosen):
                continue
            counts = [row.get(name) or row["base"] for row in chosen]  # what was not kept changed nothing
            cells = [interval([one[key] for one in counts]) for key in COUNTS]
            for key in ("missed", "errors"):
                change = sum(one[key] for one in counts) / sum(row["base"][key] for row in chosen) - 1
                cells.append(f"{100 * change:+.0f} %")
            print(f"| {name} | {' | '.join(cells)} | {sum(bool(row.get(name)) for row in chosen)} of {len(chosen)} |")
        for name in ("default", "rank 1"):
            there = [row for row in chosen if row.get(name)]  # a baseline needs something to be compared with
            for words in ("threshold", "threshold on test"):
                if not there:
                    continue
                ratio = sum(r[f"{name}: {words}"]["errors"] for r in there) / sum(r[name]["errors"] for r in there)
                print(f"\n{name}: the {words} makes {100 * (ratio - 1):+.1f} % errors")
        if several := [row for row in chosen if "rounds" in row]:
            path(several)


def path(rows: list[dict]) -> None:
    """Print the rounds: means over the seeds that got so far, and whether all errors fell in each."""
    print("\n| round | kept | missed | all errors | change | errors fell in |\n|---|---|---|---|---|---|")
    for i in range(max(len(row["rounds"]) for row in rows)):
        there = [row["rounds"][i] for row in rows if len(row["rounds"]) > i]
        kept = [one for one in there if one["kept"]]
        if kept:
            pairs = [(one["before"]["errors"], one["after"]["errors"]) for one in kept]
            means = []
            for key in ("missed", "errors"):
                before, after = (statistics.mean(one[when][key] for one in kept) for when in ("before", "after"))
                means.append(f"{before:.1f} → {after:.1f}")
            fell = sum(after < before for before, after in pairs)
            means.append(interval([after - before for before, after in pairs]))
            print(f"| {i + 1} | {len(kept)} of {len(there)} | {' | '.join(means)} | {fell} of {len(kept)} |")


def main() -> None:
    """Measure or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("measure", "table"))
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--epochs", default="1,3")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--brief", action="store_true")
    arguments = parser.parse_args()
    if arguments.action == "table":
        table([json.loads(line) for file in arguments.files for line in file.read_text().splitlines()])
        return
    out = arguments.files[0]
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    first, last = map(int, arguments.seeds.split("-"))
    for epochs in map(int, arguments.epochs.split(",")):
        for seed in range(first, last + 1):
            if not any((row["seed"], row["epochs"]) == (seed, epochs) for row in done):
                given = (arguments.data, arguments.threads, arguments.rounds, arguments.brief)
                row = measure(seed, epochs, *given)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
