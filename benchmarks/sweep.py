"""Many fine-tunings: a stack of them, processes of one each, and one after the other.

    python benchmarks/sweep.py step [--threads 2]     # the bare training step, on an idle machine
    python benchmarks/sweep.py speed [--rounds 3]     # training alone, in turns, all processes warm
    python benchmarks/sweep.py equal                  # a stack against the same jobs alone, on MNIST
    python benchmarks/sweep.py grow --jobs 10,100     # the engine, with its start: seconds and memory by number of jobs
    python benchmarks/sweep.py grid                   # the default grid, 100 batches of 10, bases apart

`speed`: one after the other has all cores for each product, as `finetune` has; the others a process a core. What the
base thinks of the images is known to all three. The base is a new one, whose weights are drawn and not trained.
"""

import argparse
import copy
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from timing import finish, machine
from torch.nn import functional as F

from lora_mnist.datasets.dataset import Dataset, load
from lora_mnist.lora import LoRAConfig, inject
from lora_mnist.lora.model import updates_of
from lora_mnist.lora.stacked import stack
from lora_mnist.pipeline import Request, pretrain
from lora_mnist.runs.artifact import load_network
from lora_mnist.settings.config import Settings, load_config, resolve
from lora_mnist.sweep.engines import cores
from lora_mnist.sweep.jobs import split_counts
from lora_mnist.training.device import prepare_device
from lora_mnist.training.loop import Adam
from lora_mnist.training.model import MLP
from lora_mnist.training.train import NAME, least_confidence, train_base, train_on_digit, train_stack

CASES = {  # name: settings, adapters, how many of them are trained one after the other
    "rank 1, 100 batches of 10": ({"rank": 1, "steps": 100, "batch_size": 10}, 100, 6),
    "rank 16, 100 batches of 10": ({"rank": 16, "steps": 100, "batch_size": 10}, 100, 6),
    "default (rank 32), 20 batches of 128": ({"rank": 32, "steps": 20, "batch_size": 128}, 32, 4),
}
_there: tuple[MLP, Dataset, torch.Tensor]  # of a process: base, images, uncertainty


def recipe(seed: int, **tuning: object) -> Settings:
    """The default with other values."""
    return resolve([load_config("default"), {"seed": seed, "finetune": tuning}], "mnist")


def jobs_of(tuning: dict, count: int) -> list[tuple[int, Settings]]:
    """So many, of all digits and several seeds."""
    return [(number % 10, recipe(number // 10, **tuning)) for number in range(count)]


def begin(data: Path, threads: int | None) -> None:
    """What every process has: drawn weights, the images, the uncertainty."""
    global _there
    prepare_device("cpu", threads)
    torch.manual_seed(0)
    base, dataset = MLP().requires_grad_(False), load("mnist", data, 0.083333, 0)
    _there = base, dataset, least_confidence(base, dataset.train.images)


def alone(jobs: Sequence[tuple[int, Settings]]) -> float:
    """One after the other. Returns seconds of processor time."""
    base, dataset, uncertainty = _there
    started = time.process_time()
    for digit, settings in jobs:
        train_on_digit(base, NAME, digit, settings, dataset, uncertainty=uncertainty)
    return time.process_time() - started


def together(jobs: Sequence[tuple[int, Settings]]) -> float:
    """As one stack, likewise."""
    base, dataset, uncertainty = _there
    started = time.process_time()
    train_stack(base, jobs, dataset, uncertainty=uncertainty)
    return time.process_time() - started


def step(arguments: argparse.Namespace) -> None:
    """Milliseconds a job of a step of one adapter, and of stacks of several, on random images, in turns."""
    prepare_device("cpu", arguments.threads)
    torch.manual_seed(0)
    base, rows = MLP(), []
    for rank, batch in itertools.product((1, 16, 32), (10, 128)):
        sizes = (10, 25, 50, 100, 200) if batch == 10 else (2, 4, 8, 16)
        steppers = {1: _stepper(_adapted(base, rank), batch)}
        steppers |= {n: _stepper(stack([_adapted(base, rank) for _ in range(n)], NAME), n * batch) for n in sizes}
        times: dict[int, list[float]] = {n: [] for n in steppers}
        for _ in range(arguments.rounds):
            for n, call in steppers.items():
                repeats = max(2, (100 if batch == 10 else 16) // n)
                call()
                started = time.perf_counter()
                for _ in range(repeats):
                    call()
                times[n].append(1e3 * (time.perf_counter() - started) / repeats / n)
        best = {n: statistics.median(one) for n, one in times.items()}
        row = {"rank": rank, "batch": batch, "alone, ms": best[1]}
        rows.append(row | {"stack of": sizes[-1], "ms a job": best[sizes[-1]], "ratio": best[1] / best[sizes[-1]]})
    finish("sweep-step", rows, arguments.out, machine())


def _adapted(base: MLP, rank: int) -> MLP:
    """A network that shares the weights of `base`."""
    network = copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})
    inject(network, NAME, LoRAConfig(("linear1", "linear2", "linear3"), rank=rank))
    return network.train()


def _stepper(network: torch.nn.Module, rows: int) -> Callable[[], None]:
    optimizer = Adam([weight for weight in network.parameters() if weight.requires_grad])
    images, labels = torch.randn(rows, 784), torch.randint(10, (rows,))

    def once() -> None:
        F.cross_entropy(network(images), labels).backward()
        optimizer.step(1e-3)

    return once


def speed(arguments: argparse.Namespace) -> None:
    """Milliseconds per adapter, in turns: by the clock, and of processor time, which a busy machine changes less."""
    begin(arguments.data, arguments.threads)
    rows = []
    with ProcessPoolExecutor(arguments.processes, get_context("spawn"), begin, (arguments.data, 1)) as pool:
        for name in arguments.cases or CASES:
            rows.append(_case(name, pool, arguments.processes, arguments.rounds))
            print(rows[-1], file=sys.stderr, flush=True)
    finish("sweep-speed", rows, arguments.out, machine() | {"processes": arguments.processes})


def _case(name: str, pool: ProcessPoolExecutor, count: int, rounds: int) -> dict:
    tuning, adapters, sample = CASES[name]
    jobs = jobs_of(tuning, adapters)
    tasks = {  # by contestant: how many jobs, and the work, which returns processor time
        "alone": (sample, lambda: alone(jobs[:sample])),
        "local": (sample * count, lambda: sum(pool.map(alone, [[job] for job in jobs[: sample * count]]))),
        "stacked": (adapters, lambda: sum(pool.map(together, [jobs[start::count] for start in range(count)]))),
    }
    clock: dict[str, list[float]] = {one: [] for one in tasks}
    processor: dict[str, list[float]] = {one: [] for one in tasks}
    for turn in range(rounds + 1):
        for one, (done, work) in tasks.items():
            started = time.perf_counter()
            seconds = work()
            if turn:  # the first warms up
                processor[one].append(1e3 * seconds / done)
                clock[one].append(1e3 * (time.perf_counter() - started) / done)
    row = {"": name, "adapters": adapters}
    row |= {f"{one}, ms": statistics.median(clock[one]) for one in tasks}
    row |= {f"times as fast as {one}": _ratio(clock[one], clock["stacked"]) for one in ("alone", "local")}
    row |= {f"{one}, ms of a core": statistics.median(processor[one]) for one in ("local", "stacked")}
    return row | {"less of a core": _ratio(processor["local"], processor["stacked"])}


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def equal(arguments: argparse.Namespace) -> None:
    """Largest differences of a stack from its jobs alone, and of these with other threads; counts on `test`."""
    prepare_device("cpu", 1)
    dataset = load("mnist", arguments.data, 0.083333, 0)
    if arguments.run:
        base = load_network(arguments.run / "base" / "model.safetensors")[0].requires_grad_(False)
    else:
        base = train_base(recipe(0), dataset, torch.device("cpu"))[0].requires_grad_(False)
    uncertainty = least_confidence(base, dataset.train.images)
    rows = []
    for rank in arguments.ranks:
        jobs = jobs_of({"rank": rank, "steps": 100, "batch_size": 10}, arguments.count)
        singly = [train_on_digit(base, NAME, d, s, dataset, uncertainty=uncertainty)[0] for d, s in jobs]
        compared = {"stack": train_stack(base, jobs, dataset, uncertainty=uncertainty)}
        if arguments.yardstick:
            torch.set_num_threads(2)
            compared["two threads"] = [
                train_on_digit(base, NAME, d, s, dataset, uncertainty=uncertainty)[0] for d, s in jobs
            ]
            torch.set_num_threads(1)
        row = {"rank": rank}
        for name, others in compared.items():
            row |= {f"{name}: {key}": value for key, value in _differences(others, singly).items()}
            wrong = [_counts(one, dataset, job[0]) for one, job in zip(others, jobs, strict=True)]
            there = [_counts(one, dataset, job[0]) for one, job in zip(singly, jobs, strict=True)]
            row[f"{name}: jobs with the same counts"] = sum(a == b for a, b in zip(wrong, there, strict=True))
            row[f"{name}: largest difference in errors"] = max(
                abs(a.errors - b.errors) for a, b in zip(wrong, there, strict=True)
            )
        rows.append(row)
    finish("sweep-equal", rows, arguments.out, machine())


def _differences(networks: Sequence[MLP], others: Sequence[MLP]) -> dict[str, float]:
    """Of A and of B: the largest relative one in norm, and of a single number to the largest."""
    found = dict.fromkeys(("A in norm", "B in norm", "A at most", "B at most"), 0.0)
    for one, other in zip(networks, others, strict=True):
        for path, update in updates_of(one, NAME).items():
            for factor in "AB":
                ours, theirs = (
                    getattr(part, f"lora_{factor}").detach() for part in (update, updates_of(other, NAME)[path])
                )
                apart = ours - theirs
                assert bool(apart.isfinite().all())  # or the largest would not be seen
                norm, most = apart.norm() / theirs.norm(), apart.abs().max() / theirs.abs().max()
                found[f"{factor} in norm"] = max(found[f"{factor} in norm"], float(norm))
                found[f"{factor} at most"] = max(found[f"{factor} at most"], float(most))
    return found


def _counts(network: MLP, dataset, digit: int):
    from lora_mnist.training.model import logits_of

    return split_counts({"test": logits_of(network, dataset.test.images)}, {"test": dataset.test.labels}, digit)["test"]


def grow(arguments: argparse.Namespace) -> None:
    """The whole command by number of jobs from one base, without a guard: seconds, and the most memory of all its
    processes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.run:
            arguments.run = Path(folder) / "run"
            pretrain(Request(run=arguments.run, data=arguments.data, options={"data": {"dataset": arguments.dataset}}))
        for count in arguments.jobs:
            seeds = f"0-{max(1, count // 10) - 1}"
            grid = ("--digit", "0-9", "--rank", "1", "--seed", seeds, "--set", "finetune.guard=none")
            rows.append(_command(arguments, *grid))
            print(rows[-1], file=sys.stderr, flush=True)
    finish("sweep-grow", rows, arguments.out, machine())


def grid(arguments: argparse.Namespace) -> None:
    """10 digits, 5 ranks, 3 seeds; the bases are there if `--bases` is a folder that has them."""
    finish("sweep-grid", [_command(arguments)], arguments.out, machine())


def _command(arguments: argparse.Namespace, *options: str) -> dict:
    """How many jobs the command did, by the clock and of processor time, and the most memory of its processes."""
    with tempfile.TemporaryDirectory() as folder:
        if arguments.bases:
            (Path(folder) / "bases").symlink_to(arguments.bases.resolve())
        run = ["--run", str(arguments.run)] if arguments.run else []
        short = ("--set", "finetune.steps=100", "--set", "finetune.batch_size=10")
        command = [
            sys.executable,
            "-m",
            "lora_mnist",
            "sweep",
            "--dataset",
            arguments.dataset,
            "--data",
            str(arguments.data),
        ]
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(
            [*command, *short, *options, *run, "--out", folder, "--json"], stdout=subprocess.PIPE, text=True
        )
        most = [0.0]
        watch = threading.Thread(target=_watch, args=(process, most))
        watch.start()
        out, _ = process.communicate()
        seconds = time.perf_counter() - started
        watch.join()
    after, trained = resource.getrusage(resource.RUSAGE_CHILDREN), json.loads(out)["sweep"]["trained"]
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row = {"jobs": trained, "seconds": seconds, "seconds of all cores": processor}
    return row | {"ms of a core a job": 1e3 * processor / trained, "memory, MiB": most[0]}


def _watch(process: subprocess.Popen, most: list[float]) -> None:
    """Proportional memory of a process and all below it, in MiB, as long as it lives."""
    while process.poll() is None:
        most[0] = max(most[0], sum(map(_memory, _tree(process.pid))))
        time.sleep(0.2)


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(below for child in children for below in _tree(int(child)))]


def _memory(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def main() -> None:
    """One of the five."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "speed", "equal", "grow", "grid"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="*", choices=list(CASES))
    parser.add_argument("--jobs", type=lambda text: [int(one) for one in text.split(",")], default=[10, 100, 1000])
    parser.add_argument("--count", type=int, default=10, help="jobs of each rank in `equal`")
    parser.add_argument("--yardstick", action="store_true", help="compare with two threads too; on an idle machine")
    parser.add_argument("--ranks", type=lambda text: [int(one) for one in text.split(",")], default=[1, 4, 16])
    parser.add_argument("--run", type=Path, help="whose base all jobs start from")
    parser.add_argument("--bases", type=Path, help="folder of bases that a sweep has made")
    parser.add_argument("--dataset", choices=("mnist", "mnist-5k"), default="mnist", help="of grow and grid")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LORA_MNIST_DATA", "data")))
    parser.add_argument("--threads", type=int, help="of the jobs that are trained one after the other")
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    {"step": step, "speed": speed, "equal": equal, "grow": grow, "grid": grid}[arguments.what](arguments)


if __name__ == "__main__":
    main()
