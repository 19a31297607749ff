"""Is it a repair? The adapter beside everything that could excuse it, on finished bases, many seeds.

    python benchmarks/repairs.py measure out.jsonl --runs folder     # a line per seed and part; resumes
    python benchmarks/repairs.py table out.jsonl [more.jsonl …]      # means on `test` with 95 % intervals

Per seed and base (1 and 3 epochs), by part: `default`, with its twin and with a twin that sees hard images more often,
as it does itself; both also with a number on their logit, and the shifted threshold at as many missed images (chosen on
`val`, and once more on `test`). `rank 1` with its own focus. `thorough`. `full` and `full thorough`: all weights with
the same loss, steps and batches. `rounds`: five, each on top of the last. The digit is the weakest on `val`; `test`
decides nothing. The runs are kept in the folder, so that anything else can be asked of them later.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from scipy.stats import t as student

from lora_mnist.evaluation.findings import COUNTS, ShiftedLogit
from lora_mnist.evaluation.metrics import counts_in
from lora_mnist.evaluation.threshold import shifted_logit
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.pipeline import Request, Tuning, Workspace, finetune, finetune_full, open_workspace, pretrain, repair

RANK_1 = {"rank": 1, "focus": 0.3, "steps": 3000}  # fewer numbers need more of the digit, and more steps
Opener = Callable[..., Workspace]  # settings of [finetune], and a config


def measure(part: str, seed: int, epochs: int, arguments: argparse.Namespace) -> dict:
    """One part of a base: what it does on `test`, by name."""
    folder = arguments.runs / f"{epochs}-{seed}"

    def request(config: str | None = None, **tuning: object) -> Request:
        options = {"seed": seed, "data": {"dataset": "mnist"}, "pretrain": {"epochs": epochs}, "finetune": tuning}
        return Request(folder, arguments.data, options=options, threads=arguments.threads, config=config)

    def opened(config: str | None = None, **tuning: object) -> Workspace:
        return open_workspace(request(config, **tuning))

    work, base = pretrain(request(), resume=True)
    rows = PARTS[part](work, opened)
    return {"seed": seed, "epochs": epochs, "part": part, "accuracy": base.splits["test"].accuracy, "rows": rows}


# The parts ------------------------------------------------------------------------------------------------------------


def _default(work: Workspace, opened: Opener) -> dict:
    tuning = finetune(work, twin=True, resume=True)
    if not tuning.kept:
        base = work.run.base.evaluation.splits["test"].confusion
        return {"base": counts_in(base, tuning.record.digit).model_dump(), "default": None}
    twin, digit = tuning.analysis.twin, tuning.record.digit
    rows = _beside("default", tuning, work)
    rows["twin"] = twin.splits["test"].model_dump(include=set(COUNTS))
    rows["twin + number"] = _counts(twin.threshold)
    share = float((work.dataset.train.labels == digit).float().mean())
    hard = finetune(opened(digit=digit, focus=share, name="hard-twin"), resume=True)
    if hard.kept:
        rows["hard twin"] = hard.analysis.splits["test"].after.model_dump()
        rows["hard twin + number"] = _counts(shifted_logit(*_logits(work, hard, tuning), work.labels, digit))
    return rows


def _rank1(work: Workspace, opened: Opener) -> dict:
    return _beside("rank 1", finetune(opened(**RANK_1), resume=True), work)


def _thorough(work: Workspace, opened: Opener) -> dict:
    return _beside("thorough", finetune(opened("thorough", name="thorough"), resume=True), work)


def _full(work: Workspace, opened: Opener) -> dict:
    return {"full": _row(finetune_full(opened(name="full")))}


def _full_thorough(work: Workspace, opened: Opener) -> dict:
    return {"full thorough": _row(finetune_full(opened("thorough", name="full-thorough")))}


def _rounds(work: Workspace, opened: Opener) -> dict:
    tunings = repair(work, 5)
    last = [tuning for tuning in tunings if tuning.kept]
    base = work.run.base.evaluation.splits["test"]
    end = last[-1].evaluation.splits["test"] if last else base
    lost = worst([b - a for a, b in zip(base.wrong, end.wrong, strict=True)], base.images)
    return {"rounds": {"path": [_round(one) for one in tunings], "errors": end.errors, "worst digit": lost}}


PARTS = {
    "default": _default,
    "rank 1": _rank1,
    "thorough": _thorough,
    "full": _full,
    "full thorough": _full_thorough,
    "rounds": _rounds,
}


def _beside(name: str, tuning: Tuning, work: Workspace) -> dict:
    """What an adapter did, and what the shifted threshold does at as many missed images."""
    if not tuning.kept:
        return {name: None}
    before, after = work.run.base.logits(), work.run.adapter(tuning.record.name).logits()
    test = [{"test": one["test"]} for one in (before, after)]
    on_test = shifted_logit(*test, {"test": work.labels["test"]}, tuning.record.digit)
    return {
        "base": tuning.analysis.splits["test"].before.model_dump(),
        name: _row(tuning),
        f"{name}: threshold": _counts(tuning.analysis.threshold),
        f"{name}: threshold on test": _counts(on_test),
    }


def _row(tuning: Tuning) -> dict:
    """Counts, the other digit that lost most, in points of its error rate, the time, and the verdict."""
    record, analysis, images = tuning.record, tuning.analysis, tuning.evaluation.splits["test"].images
    test = analysis.splits["test"]
    return test.after.model_dump() | {
        "worst": worst([one.broken - one.fixed for one in test.by_digit], images, record.digit),
        "seconds": tuning.made.seconds,
        "digit": record.digit,
        "verdict": verdict_of(analysis, record.digit).kind,
    }


def worst(more: Sequence[int], images: Sequence[int], target: int | None = None) -> float:
    """By how many points the error rate rose of the digit, but the target, that lost most."""
    pairs = enumerate(zip(more, images, strict=True))
    return max(100 * wrong / count for digit, (wrong, count) in pairs if digit != target)


def _counts(shifted: ShiftedLogit) -> dict:
    return shifted.splits["test"].model_dump()


def _logits(work: Workspace, *tunings: Tuning) -> list[Mapping[str, torch.Tensor]]:
    return [work.run.adapter(one.record.name).logits() for one in tunings]


def _round(tuning: Tuning) -> dict:
    counts = tuning.analysis.splits["test"].model_dump(include={"before", "after"}) if tuning.kept else {}
    return {"digit": tuning.record.digit, "kept": tuning.kept, **counts}


# The tables -----------------------------------------------------------------------------------------------------------

ROWS = {  # what stands in a table, in this order
    "base": "base",
    "default": "default",
    "default: threshold on test": "one number on the base at as many missed, chosen on `test`",
    "default: threshold": "the same, chosen on `val`",
    "twin": "twin: every image alike",
    "twin + number": "twin + one number, chosen on `val`",
    "hard twin": "hard images, natural share of the digit",
    "hard twin + number": "hard images, natural share + one number, chosen on `val`",
    "full": "all weights, as the default",
    "thorough": "thorough",
    "thorough: threshold on test": "one number on the base at as many missed, chosen on `test`",
    "full thorough": "all weights, as thorough",
    "rank 1": "`--rank 1 --focus 0.3 --steps 3000`",
    "rank 1: threshold on test": "one number on the base at as many missed, chosen on `test`",
}


def interval(values: list[float], form: str = ".1f") -> str:
    """Mean and half-width of its 95 % interval (Student's t)."""
    mean, n = statistics.mean(values), len(values)
    half = student.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else float("nan")
    return f"{mean:{form}} ± {half:{form.lstrip('+')}}".replace("-", "−")


def percent(ratio: float) -> str:
    """By how much more than 1."""
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "−")


SHORT = ("base", "default", "thorough", "rank 1", "default: threshold on test", "twin + number", "hard twin + number")


def table(lines: list[dict]) -> None:
    """Print every comparison, and a short table of both kinds of bases."""
    bases = {epochs: _by_seed(lines, epochs) for epochs in sorted({line["epochs"] for line in lines})}
    for epochs, seeds in bases.items():
        print(f"\n| {_title(epochs, seeds)} | missed | claimed | all errors | missed | claimed", end="")
        print(" | all errors | missed + claimed | worst other | kept |\n|---|---|---|---|---|---|---|---|---|---|")
        there = {name: [row for row in seeds if name in row] for name in ROWS}
        for name, rows in there.items():
            if rows:
                _print_row(name, rows)
        _print_ratios(seeds)
        _print_verdicts(seeds)
        if several := [row for row in seeds if "rounds" in row]:
            path([row["rounds"] for row in several])
    for epochs, seeds in bases.items():
        print(
            f"\n| {_title(epochs, seeds)} | missed | claimed | all errors | worst other digit |\n|---|---|---|---|---|"
        )
        for name in SHORT:
            if rows := [row for row in seeds if name in row]:
                _print_short(name, rows)


def _by_seed(lines: list[dict], epochs: int) -> list[dict]:
    seeds: dict[int, dict] = {}
    for line in lines:
        if line["epochs"] == epochs:
            seeds.setdefault(line["seed"], {"accuracy": line["accuracy"]}).update(line["rows"])
    return list(seeds.values())


def _title(epochs: int, seeds: list[dict]) -> str:
    accuracies = [100 * row["accuracy"] for row in seeds]
    passes = {1: "one epoch", 3: "three epochs"}.get(epochs, f"{epochs} epochs")
    return f"{passes} ({min(accuracies):.2f} to {max(accuracies):.2f} %)"


def _print_short(name: str, rows: list[dict]) -> None:
    counts = [row[name] or row["base"] for row in rows]
    cells = []
    for key in COUNTS:
        ratio = sum(one[key] for one in counts) / sum(row["base"][key] for row in rows)
        change = f" ({percent(ratio)})" if name != "base" else ""
        cells.append(interval([one[key] for one in counts]) + change)
    worst = [one.get("worst") for one in counts]
    print(f"| {ROWS[name]} | {' | '.join(cells)} | {'' if None in worst else interval(worst, '+.2f')} |")


def _print_row(name: str, rows: list[dict]) -> None:
    counts = [row[name] or row["base"] for row in rows]  # what was not kept changed nothing
    cells = [interval([one[key] for one in counts]) for key in COUNTS]
    for keys in (("missed",), ("claimed",), ("errors",), ("missed", "claimed")):
        after, before = (sum(one[key] for one in them for key in keys) for them in (counts, [r["base"] for r in rows]))
        cells.append(percent(after / before) if name != "base" else "")
    there = [row[name] for row in rows if row[name]]
    worst = [one.get("worst") for one in there]
    cells.append(interval(worst, "+.2f") if worst and None not in worst else "")
    print(f"| {ROWS[name]} | {' | '.join(cells)} | {len(there)} of {len(rows)} |")


def _print_ratios(rows: list[dict]) -> None:
    for name in ("default", "thorough", "rank 1"):
        others = [f"{name}: threshold on test"]
        others += ["twin + number", "hard twin + number", "full"] if name == "default" else []
        for other in others:
            there = [row for row in rows if row.get(name) and row.get(other)]
            if there:
                more = interval([row[other]["errors"] - row[name]["errors"] for row in there])
                ratio = sum(row[other]["errors"] for row in there) / sum(row[name]["errors"] for row in there)
                print(f"\n{other}: {percent(ratio)} errors against {name}, {more} more in {len(there)} seeds.")


def _print_verdicts(rows: list[dict]) -> None:
    for name in ("default", "thorough", "rank 1"):
        kinds = [row[name]["verdict"] for row in rows if row.get(name)]
        if kinds:
            print(f"\nVerdicts of {name}: {', '.join(f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds))}.")


def path(rows: list[dict]) -> None:
    """Print the rounds: means over the seeds that got so far, and whether all errors fell in each."""
    print("\n| round | kept | missed | all errors | change | errors fell in |\n|---|---|---|---|---|---|")
    for i in range(max(len(row["path"]) for row in rows)):
        there = [row["path"][i] for row in rows if len(row["path"]) > i]
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
    worst = [row["worst digit"] for row in rows]
    print(
        f"\nAt the end {interval([row['errors'] for row in rows])} errors; the digit that lost most against the base:"
    )
    print(f"{interval(worst, '+.2f')} points, at most {max(worst):+.2f}".replace("-", "−"))


def main() -> None:
    """Measure or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("measure", "table"))
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--epochs", default="1,3")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--runs", type=Path, default=Path("runs/repairs"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.action == "table":
        table([json.loads(line) for file in arguments.files for line in file.read_text().splitlines()])
        return
    out = arguments.files[0]
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    first, last = map(int, arguments.seeds.split("-"))
    for part in arguments.parts.split(","):
        for epochs in map(int, arguments.epochs.split(",")):
            for seed in range(first, last + 1):
                if not any((line["seed"], line["epochs"], line["part"]) == (seed, epochs, part) for line in done):
                    line = measure(part, seed, epochs, arguments)
                    with out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
