"""Interleaved timings: what each contestant takes, and how they compare within the same rounds."""

import os
import platform
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def options(
    about: str | None,
    rounds: int | None = None,
    device: bool = False,
    data: bool = False,
    out: bool = True,
) -> Namespace:
    """The command line of a benchmark: `--threads`, and those of the others that it has; `rounds` is the default."""
    parser = ArgumentParser(description=about, formatter_class=RawDescriptionHelpFormatter)
    if device:
        parser.add_argument("--device", default="cpu")
    if data:
        parser.add_argument("--data", type=Path, default=Path(os.environ.get("LORA_MNIST_DATA", "data")))
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int)
    if out:
        parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def median_ms(times: Mapping[str, Sequence[float]], name: str) -> float:
    """Milliseconds per call."""
    return 1e3 * statistics.median(times[name])


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of every contestant in every round, in which all have their turn; a first round is left out."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, call in contestants.items():
            started = clock()
            for _ in range(repeats):
                call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append((clock() - started) / repeats)
    return times


Times = dict[str, list[float]]  # seconds per call by contestant, a figure a round


def in_process(work: Callable[..., Any], *given: Any) -> Any:
    """What `work(*given)` returns, called in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *given).result()


def in_processes(work: Callable[..., Mapping[Any, Times]], *given: Any, count: int = 5) -> dict[Any, Times]:
    """What `work(*given)` measures, in several processes one after the other, their rounds put together.

    On a shared machine one may be a third faster or slower than the next, for all of its life.
    """
    together: dict[Any, Times] = {}
    for _ in range(count):
        for row, times in in_process(work, *given).items():
            for name, seconds in times.items():
                together.setdefault(row, {}).setdefault(name, []).extend(seconds)
        print(".", end="", flush=True, file=sys.stderr)
    return together


def ratio(times: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    """How many times as long `name` takes as `to`: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def machine(threads: int | None = None) -> dict[str, Any]:
    """What it ran on, and how busy it was; `threads` where the processes that are timed have others."""
    import torch  # not above: a process that starts others to see how much memory they take must be small itself

    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":?")
    return {
        "cpu": model.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def finish(name: str, rows: Sequence[Mapping[str, Any]], folder: Path, about: Mapping[str, Any]) -> None:
    """Print `rows` as a table with what it ran on, and write the same to `folder`/`name`.md."""
    headings = list(rows[0])
    lines = [
        f"{name}: {about['cpu']}, {about['cores']} cores, {about['threads']} threads, {about['instructions']},",
        f"GPU {about['gpu'] or 'none'}, load {about['load']}, torch {about['torch']}",
        "",
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
        *(f"| {' | '.join(map(_shown, row.values()))} |" for row in rows),
    ]
    print("", *lines, sep="\n", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"  # a rounding error is not 0.00
