"""The whole classic recipe: `lora-mnist run --config classic` against the plain script, as processes, in turns.

python benchmarks/pipeline.py [--rounds 3] [--data DIR] [--out DIR]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import finish, machine, options


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds and standard output of a process."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, done.stdout


def ours(data: Path, threads: list[str]) -> dict:
    """Seconds of the whole run and of its pretraining, accuracy and wrong nines before and after."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lora_mnist", "run", "--config", "classic", "--dataset", "mnist", "--json"]
        seconds, out = timed([*command, "--quiet", "--run", folder, "--data", str(data), *threads])
        provenance, tuned = json.loads(out)["pretrain"], json.loads(out)["finetune"]
        test, after = provenance["splits"]["test"], tuned["evaluation"]["splits"]["test"]
        return {
            "whole": seconds,
            "pretraining": provenance["seconds"],
            "fine-tuning": tuned["seconds"],
            "before": (test["accuracy"], test["wrong"][9]),
            "after": (after["accuracy"], after["wrong"][9]),
        }


def plain(data: Path, threads: list[str]) -> dict:
    """The same of the plain script."""
    script = str(Path(__file__).with_name("plain.py"))
    seconds, out = timed([sys.executable, script, "--data", str(data), *threads])
    document = json.loads(out)
    parts = {part: document["seconds"][part] for part in ("pretraining", "fine-tuning")}
    return {"whole": seconds, **parts, "before": document["before"], "after": document["after"]}


def main() -> None:
    """Measure in turns and print medians."""
    arguments = options(__doc__, rounds=3, data=True)
    threads = ["--threads", str(arguments.threads)] if arguments.threads else []
    about = machine(arguments.threads)
    results: dict[str, list[dict[str, Any]]] = {"plain script": [], "lora-mnist run": []}
    for _ in range(arguments.rounds):
        results["plain script"].append(plain(arguments.data, threads))
        results["lora-mnist run"].append(ours(arguments.data, threads))
    rows = []
    for name, runs in results.items():
        row = {"": name, "rounds": len(runs)}
        for part in ("whole", "pretraining", "fine-tuning"):
            row[f"{part}, s"] = statistics.median(run[part] for run in runs)
            other = (one[part] for one in results["plain script"])
            row[f"{part}: times as fast"] = statistics.median(a / run[part] for a, run in zip(other, runs, strict=True))
        for when in ("before", "after"):
            row[f"accuracy {when}"], row[f"wrong nines {when}"] = f"{runs[0][when][0]:.4f}", runs[0][when][1]
        rows.append(row)
    finish("pipeline", rows, arguments.out, about)


if __name__ == "__main__":
    main()
