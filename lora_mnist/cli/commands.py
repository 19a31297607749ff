"""The command line: parse, call one stage, print."""

import json
import os
import sys
import webbrowser
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_mnist import __version__
from lora_mnist.cli.exits import listen_to_termination, report_error, returns_exit_code, silence_stdout
from lora_mnist.cli.options import (
    AdapterFolders,
    Adapters,
    Alpha,
    AlphaPattern,
    BatchSize,
    Checkpoint,
    Config,
    Data,
    Dataset,
    Debug,
    Device,
    Digit,
    Dropout,
    Epochs,
    Focus,
    Force,
    Full,
    Guard,
    Hidden,
    Init,
    Json,
    LearningRate,
    Name,
    Normalise,
    OnTopOf,
    Open,
    Optimizer,
    Quiet,
    Rank,
    RankPattern,
    Ranks,
    Rotate,
    Rounds,
    RsLoRA,
    RunDir,
    Schedule,
    Seed,
    Shapes,
    Shift,
    Steps,
    Strengths,
    Targets,
    Threads,
    Twin,
    Unsealed,
    ValShare,
    WeightDecay,
    Zoom,
    applied,
    digit_of,
    pattern_of,
    refuse_with_full,
    request_of,
    sizes_of,
    training,
)
from lora_mnist.errors import ProofError

app = typer.Typer(
    name="lora-mnist",
    help="Repair one digit of a trained MNIST network with LoRA, and prove that nothing else was touched.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def command(function: Callable[..., None]) -> Callable[..., int]:
    """Register `function` as a command that returns its exit code."""
    return app.command()(returns_exit_code(function))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@command
def run(
    run: RunDir = Path("runs/default"),
    config: Config = None,
    dataset: Dataset = None,
    data: Data = Path("data"),
    val_share: ValShare = None,
    hidden: Hidden = None,
    epochs: Epochs = None,
    digit: Digit = None,
    rank: Rank = None,
    alpha: Alpha = None,
    steps: Steps = None,
    focus: Focus = None,
    guard: Guard = None,
    rounds: Rounds = 1,
    name: Name = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Everything below, in order: pretrain, finetune, verify, report. Skips what is finished."""
    from lora_mnist.cli import tables as terminal
    from lora_mnist.pipeline import finetune as tuning
    from lora_mnist.pipeline import stages
    from lora_mnist.report.page import write_report

    request = request_of(
        locals(),
        seed=seed,
        data={"dataset": dataset, "val_share": val_share},
        model={"hidden": sizes_of(hidden)},
        pretrain={"epochs": epochs},
        finetune={
            **digit_of(digit),
            **{"rank": rank, "alpha": alpha, "steps": steps, "focus": focus, "guard": guard, "name": name},
        },
    )
    tuning.require_rounds(request, rounds)
    base = stages.pretrain(request, resume=True)
    if not json:
        _print(terminal.evaluation(base))
    tuned = tuning.repair(request, rounds)
    if not json:
        for result in tuned:
            _print(terminal.finetuning(result))
        _print(terminal.path(tuned))
    _raise_failures(stages.verify(request))
    page = write_report(run)
    if json:
        _print_json({"pretrain": base, "finetune": tuned[0], "rounds": tuned, "report": str(page)})
    else:
        _write(f"Verified from the files. The report is {page}\n")


@command
def pretrain(
    run: RunDir = Path("runs/default"),
    config: Config = None,
    dataset: Dataset = None,
    data: Data = Path("data"),
    val_share: ValShare = None,
    hidden: Hidden = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    optimizer: Optimizer = None,
    schedule: Schedule = None,
    weight_decay: WeightDecay = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Train the base, print accuracy and errors per digit, seal it."""
    from lora_mnist.cli import tables as terminal
    from lora_mnist.pipeline import stages

    request = request_of(
        locals(),
        seed=seed,
        data={"dataset": dataset, "val_share": val_share},
        model={"hidden": sizes_of(hidden)},
        pretrain={
            "epochs": epochs,
            **training(batch_size, learning_rate, optimizer, schedule, weight_decay),
        },
    )
    _show(stages.pretrain(request), terminal.evaluation, json)


@command
def evaluate(
    run: RunDir = Path("runs/default"),
    adapter: AdapterFolders = None,
    strength: Strengths = None,
    checkpoint: Checkpoint = None,
    allow_unsealed: Unsealed = False,
    data: Data = Path("data"),
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Confusion matrix and errors per digit of the base, or of the base with adapters."""
    from lora_mnist.cli import tables as terminal
    from lora_mnist.pipeline import stages

    evaluation = stages.evaluate(request_of(locals()), applied(adapter, strength), checkpoint, allow_unsealed)
    _show(evaluation, terminal.evaluation, json)


@command
def finetune(
    run: RunDir = Path("runs/default"),
    config: Config = None,
    digit: Digit = None,
    full: Full = False,
    rank: Rank = None,
    alpha: Alpha = None,
    rank_pattern: RankPattern = None,
    alpha_pattern: AlphaPattern = None,
    rslora: RsLoRA = None,
    targets: Targets = None,
    dropout: Dropout = None,
    init: Init = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    focus: Focus = None,
    shift: Shift = None,
    rotate: Rotate = None,
    zoom: Zoom = None,
    guard: Guard = None,
    twin: Twin = False,
    on_top_of: OnTopOf = None,
    learning_rate: LearningRate = None,
    optimizer: Optimizer = None,
    schedule: Schedule = None,
    weight_decay: WeightDecay = None,
    name: Name = None,
    data: Data = Path("data"),
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Inject LoRA, train it on the weakest digit, check the frozen bytes, re-evaluate."""
    from lora_mnist.cli import tables as terminal
    from lora_mnist.pipeline import finetune as tuning

    if full:
        refuse_with_full(locals())
    request = request_of(
        locals(),
        seed=seed,
        finetune={
            **digit_of(digit),
            "rank": rank,
            "alpha": alpha,
            "rank_pattern": pattern_of(rank_pattern, int),
            "alpha_pattern": pattern_of(alpha_pattern, float),
            "rslora": rslora,
            "targets": targets,
            "dropout": dropout,
            "init": init,
            "steps": steps,
            "focus": focus,
            "shift": shift,
            "rotate": rotate,
            "zoom": zoom,
            "guard": guard,
            "name": name,
            "full_learning_rate": learning_rate if full else None,
            **training(batch_size, None if full else learning_rate, optimizer, schedule, weight_decay),
        },
    )
    stage = tuning.finetune_full if full else partial(tuning.finetune, on_top_of=on_top_of or [], twin=twin)
    _show(stage(request), terminal.finetuning, json)


@command
def verify(
    run: RunDir = Path("runs/default"),
    adapter: Adapters = None,
    data: Data = Path("data"),
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prove it again from the files: seals, frozen bytes, "off" equals base, "on" equals W + scaling · B A."""
    from lora_mnist.cli import tables as terminal
    from lora_mnist.pipeline import stages

    findings = stages.verify(request_of(locals()), adapter or [])
    if json:
        _raise_failures(findings)
    _show(findings, terminal.verification, json)
    _raise_failures(findings)


@command
def merge(
    run: RunDir = Path("runs/default"),
    adapter: AdapterFolders = None,
    strength: Strengths = None,
    allow_unsealed: Unsealed = False,
    name: Name = None,
    data: Data = Path("data"),
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write the base with adapters merged into its weights as a checkpoint of its own."""
    from lora_mnist.cli import tables as terminal
    from lora_mnist.pipeline import convert as conversions

    request = request_of(locals(), finetune={"name": name})
    _show(conversions.merge_adapters(request, applied(adapter, strength), allow_unsealed), terminal.merging, json)


@command
def extract(
    run: RunDir = Path("runs/default"),
    rank: Rank = 8,
    checkpoint: Checkpoint = None,
    digit: Digit = None,
    name: Name = None,
    data: Data = Path("data"),
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Make the best adapter of a rank from a network that was fine-tuned whole."""
    from lora_mnist.cli import tables as terminal
    from lora_mnist.pipeline import convert as conversions

    request = request_of(locals(), finetune={**digit_of(digit), "name": name})
    _show(conversions.extract_adapter(request, rank, checkpoint), terminal.extraction, json)


@command
def adapters(
    run: RunDir = Path("runs/default"), json: Json = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """List a run's adapters: digit, rank, size, errors before and after, proof."""
    from lora_mnist.cli import tables as terminal
    from lora_mnist.runs import listing as overview

    _show(overview.list_adapters(run), terminal.adapters, json)


@command
def params(
    run: RunDir = Path("runs/default"),
    rank: Ranks = "1,2,4,8,16,32,64",
    shape: Shapes = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Count what full fine-tuning and LoRA train, for the run's network or any layer."""
    from lora_mnist.cli import tables as terminal
    from lora_mnist.runs import listing as overview

    _show(overview.count_parameters(run, rank, shape), terminal.sizes, json)


@command
def report(
    run: RunDir = Path("runs/default"),
    normalise: Normalise = False,
    open: Open = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """One HTML page on what the repair did and cost, its plots as PNG and SVG, its numbers as CSV and JSON."""
    from lora_mnist.report.page import write_report

    page = write_report(run, normalise)
    if json:
        _print_json({"report": str(page), "files": sorted(file.name for file in page.parent.iterdir())})
    else:
        _write(f"{page}\n")
    if open and not webbrowser.open(page.resolve().as_uri()):
        typer.echo("Note: no browser could be opened.", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    listen_to_termination()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="replace")  # a terminal that has no "·" shows "?" rather than a traceback
    try:
        code = typer.main.get_command(app).main(arguments, "lora-mnist", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except SystemExit:  # rich ends the process so when nobody reads on, and only it does
        silence_stdout()
        return 0
    except BaseException as error:
        return report_error(error, "--json" in arguments)


def script() -> None:
    """`lora-mnist` on the command line."""
    sys.exit(main())


def _raise_failures(findings: dict[str, Any]) -> None:
    if not findings["passed"]:
        failures = "; ".join(failure.rstrip(".") for failure in findings["failures"])
        raise ProofError(f"The proof failed: {failures}.", "Restore the run from a copy.")


def _show(document: dict[str, Any], renderer: Callable[[dict[str, Any]], Any], as_json: bool) -> None:
    if as_json:
        _print_json(document)
    else:
        _print(renderer(document))
        if "file" in document:
            _write(f"Saved as {document['file']}\n")


def _print(renderable: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as text:  # written by us, because rich ends the process when the pipe is closed
        console.print(renderable)
    _write(text.get())


def _print_json(document: dict[str, Any]) -> None:
    _write(json.dumps(document, indent=1) + "\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()  # shown before the next stage begins
    except BrokenPipeError:
        silence_stdout()  # nobody reads on, but the work is still to be finished
