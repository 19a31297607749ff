"""Seconds and peak memory of `--help`, of every stage, and of every command on a finished run, each a new process.

python benchmarks/commands.py [--rounds 5] [--data DIR] [--out DIR]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import finish, machine, options

STAGES = ("pretrain", "finetune", "verify", "report")  # what `run` consists of
READERS = ("--help", "adapters", "params", "report", "evaluate", "verify", "run")  # the last finds all finished


def measure(arguments: list[str]) -> tuple[float, float]:
    """Seconds, and peak resident memory in MB, of one command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lora_mnist", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"lora-mnist {' '.join(arguments)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def training(run: Path) -> float:
    """Seconds that the training of a finished run took, the choice of the strength included."""
    provenance = [run / "base" / "provenance.json", *run.glob("adapters/*/provenance.json")]
    return sum(json.loads(one.read_text())["seconds"] for one in provenance)


def main() -> None:
    """Measure and print both tables."""
    arguments = options(__doc__, rounds=5, data=True)
    load = [round(one, 2) for one in os.getloadavg()]
    common = ["--data", str(arguments.data), *(["--threads", str(arguments.threads)] if arguments.threads else [])]

    def call(command: str, run: str) -> list[str]:
        extra = ["--dataset", "mnist"] if command in ("run", "pretrain") else []
        reads = command in ("report", "adapters", "params")
        return [command, "--quiet", "--run", run, *extra, *([] if reads else common)]

    whole: dict[str, list[tuple[float, float]]] = {name: [] for name in ("run", "run, but for training", *STAGES)}
    readers: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.rounds):
            seconds, memory = measure(call("run", f"{folder}/whole{i}"))
            whole["run"].append((seconds, memory))
            whole["run, but for training"].append((seconds - training(Path(folder) / f"whole{i}"), memory))
            for stage in STAGES:
                whole[stage].append(measure(call(stage, f"{folder}/stages{i}")))
        for _ in range(arguments.rounds):
            for name in READERS:
                command = [name] if name == "--help" else call(name, f"{folder}/whole0")
                readers[name].append(measure(command))
    about = machine() | {"load": load}
    finish("stages", [_row(name, runs) for name, runs in whole.items()], arguments.out, about)
    finish("start-up", [_row(name, runs) for name, runs in readers.items()], arguments.out, about)


def _row(name: str, runs: list[tuple[float, float]]) -> dict:
    seconds, memory = zip(*runs, strict=True)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    return {"command": name, "s": statistics.median(seconds), "from, to": spread, "peak MB": round(max(memory))}


if __name__ == "__main__":
    main()
