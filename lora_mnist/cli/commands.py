"""The command line: parse, call one stage, print."""

import json
import os
import sys
import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lora_mnist import __version__
from lora_mnist.cli import completion
from lora_mnist.cli import options as o
from lora_mnist.cli import recipe as r
from lora_mnist.cli.exits import report_error, returns_exit_code, silence_stdout
from lora_mnist.cli.groups import Command, Commands, flattened
from lora_mnist.cli.start import listen
from lora_mnist.errors import ProofError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from lora_mnist.pipeline import Tuning, Verification
    from lora_mnist.runs.rundir import Run
    from lora_mnist.settings.strict import Document

D = TypeVar("D", bound="Document")

app = typer.Typer(
    name="lora-mnist",
    cls=Commands,
    help="""Repair one digit of a trained MNIST network with LoRA, and prove that nothing else was touched.

    Example: lora-mnist run

    `lora-mnist COMMAND --help` explains a command and its options.
    """,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode=None,  # help pages are our own, and brackets mean themselves
    pretty_exceptions_enable=False,
)


def command(function: Callable[..., int | None]) -> Callable[..., int]:
    """Register `function`, whose parameters are groups and options, as a command that returns its exit code."""
    return app.command(cls=Command)(returns_exit_code(flattened(function)))


def _alone(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command be the only one that writes to its run, not only each of its stages."""

    @wraps(function)
    def alone(*, place: o.Place, **options: Any) -> None:
        from lora_mnist.runs.rundir import Run

        with Run(place.run).writing():
            function(place=place, **options)

    return alone


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
@_alone
def run(
    *,
    place: o.Place,
    making: o.Making,
    network: r.Network,
    epochs: r.Epochs = None,
    repair: r.Repair,
    rounds: o.Rounds = 1,
    twin: o.Twin = False,
    images: r.DataChoice,
    machine: o.Machine,
    open: o.Open = False,
    verbose: o.Verbose = False,
    output: o.Output,
) -> None:
    """The whole job: pretrain, finetune, verify and report in turn. What is finished is not done again.

    Example: lora-mnist run --dataset digits --run runs/digits
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import results, tables
    from lora_mnist.report.page import write_report

    pretraining = r.given("pretrain", epochs=epochs)
    settings = (images.settings(), network.settings(), pretraining, repair.settings())
    request = o.request_of(place, machine, output, making, *settings)
    silent, stages = output.json or output.quiet, results.Stages(rounds)
    work, whole = pipeline.run(request, rounds, twin, lambda done: None if silent else _print(stages.after(done)))
    _raise_failures(whole.verification)
    started = time.perf_counter()
    with replace(work.progress, stage="4/4 ").waiting("writing the report"):
        page = write_report(work.run)
    if output.json:
        tunings = [tuning.model_dump(mode="json") for tuning in whole.rounds]
        base = whole.pretraining.model_dump(mode="json")
        _print_json({"pretrain": base, "finetune": tunings[0], "rounds": tunings, "report": str(page)})
    elif output.quiet:
        _write(f"{page}\n")
    elif stages.finished:
        _print(results.finished(whole, page))
    else:
        _print(results.report_line(page, time.perf_counter() - started))
        _print(results.whole(whole, place.run))
    if verbose and not silent:
        _print(tables.evaluation(whole.pretraining), *map(tables.finetuning, whole.rounds), tables.path(whole.rounds))
    if open:
        _open(page)


@command
def pretrain(
    *,
    place: o.Place,
    making: o.Making,
    network: r.Network,
    epochs: r.Epochs = None,
    loop: r.Loop,
    images: r.DataChoice,
    machine: o.Machine,
    verbose: o.Verbose = False,
    output: o.Output,
) -> None:
    """Train the base network, seal its weights, and print its errors per digit.

    Example: lora-mnist pretrain --epochs 3 --run runs/mine
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import results, tables

    training = (r.given("pretrain", epochs=epochs), loop.settings("pretrain"))
    request = o.request_of(place, machine, output, making, images.settings(), network.settings(), *training)
    work, pretraining = pipeline.pretrain(request)
    views = [results.pretraining, *([tables.evaluation] if verbose else [])]
    _show(pretraining, views, output, work.run.base.folder)


@command
def evaluate(
    *,
    place: o.Place,
    checkpoint: o.Checkpoint = None,
    adapters: o.Adapters,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Errors per digit and the confusion matrix of the base; with adapters, before and after.

    Example: lora-mnist evaluate --adapter digit9-r1 --strength 0.5
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import comparisons, tables

    work = pipeline.open_workspace(o.request_of(place, machine, output, o.Making()))
    evaluation = pipeline.evaluate(work, adapters.applied(), checkpoint, adapters.allow_unsealed)
    changed = evaluation.adapters or evaluation.checkpoint
    view = partial(comparisons.before_and_after, work.run.base.evaluation) if changed else tables.evaluation
    _show(evaluation, [view], output)


@command
def finetune(
    *,
    place: o.Place,
    making: o.Making,
    full: o.Full = False,
    repair: r.Repair,
    shape: r.AdapterShape,
    twin: o.Twin = False,
    on_top_of: o.OnTopOf = None,
    loop: r.Loop,
    loss: r.Loss,
    machine: o.Machine,
    augmentation: r.Augmentation,
    verbose: o.Verbose = False,
    output: o.Output,
) -> None:
    """Train an adapter on the weakest digit or another, prove that the base is untouched, and say what it did.

    What you leave out is as the run has it; the defaults below are those of a run made without --config.

    Example: lora-mnist finetune --digit 9 --rank 1
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import results, tables

    if full:
        r.refuse_with_full(repair, shape, twin, on_top_of)
    training = loop.settings("finetune", rate="full_learning_rate" if full else "learning_rate")
    settings = (repair.settings(), shape.settings(), augmentation.settings(), loss.settings(), training)
    work = pipeline.open_workspace(o.request_of(place, machine, output, making, *settings))
    tuning = pipeline.finetune_full(work) if full else pipeline.finetune(work, on_top_of or (), twin)
    views = [lambda one: results.finetuning(one, place.run), *([tables.finetuning] if verbose else [])]
    _show(tuning, views, output, _made(tuning, work.run))


@command
def verify(*, place: o.Place, adapter: o.Verified = None, machine: o.Machine, output: o.Output) -> None:
    """Prove it again from the files: seals, frozen bytes, "off" equals base, "on" equals W + scaling · B A.

    Example: lora-mnist verify --run runs/default
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import tables

    findings = pipeline.verify(o.request_of(place, machine, output, o.Making()), adapter or ())
    if output.json:
        _raise_failures(findings)
    _show(findings, [tables.verification], output)
    _raise_failures(findings)


@command
def merge(
    *,
    place: o.Place,
    force: o.Force = False,
    adapters: o.Adapters,
    name: o.MergedName = None,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Write the base with adapters merged into its weights as a checkpoint of its own.

    Example: lora-mnist merge --adapter digit9-r1 --name repaired
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import tables

    request = o.request_of(place, machine, output, o.Making(force=force), r.given("finetune", name=name))
    merged = pipeline.merge(pipeline.open_workspace(request), adapters.applied(), adapters.allow_unsealed)
    _show(merged, [tables.merging], output, merged.file)


@command
def extract(
    *,
    place: o.Place,
    checkpoint: o.Source = None,
    force: o.Force = False,
    digit: o.OfDigit = None,
    rank: o.Rank = 8,
    name: o.Name = None,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Make the best adapter of a rank from a network that was fine-tuned whole.

    Example: lora-mnist extract --rank 4
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import tables

    settings = r.Repair(digit=digit, name=name).settings()
    work = pipeline.open_workspace(o.request_of(place, machine, output, o.Making(force=force), settings))
    tuning = pipeline.extract(work, rank, checkpoint)
    _show(tuning, [tables.extraction], output, _made(tuning, work.run))


@command
def adapters(*, place: o.Place, output: o.Output) -> None:
    """List a run's adapters: digit, rank, size, errors before and after, proof.

    Example: lora-mnist adapters --run runs/mine
    """
    from lora_mnist.cli import listing
    from lora_mnist.runs.listing import list_adapters
    from lora_mnist.runs.rundir import Run

    _show(list_adapters(Run(place.run)), [listing.adapters], output)


@command
def compare(*, runs: o.Runs = None, adapter: o.Compared = None, data: o.Data = o.DATA, output: o.Output) -> None:
    """Bases and adapters of one run or several side by side, and two by two on the same test images.

    Two are tested by McNemar's exact test: of the images that one of them alone gets right, whose are more?

    Example: lora-mnist compare runs/default runs/mine --adapter digit9-r1
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import comparisons

    compared = pipeline.compare(runs or [completion.DEFAULT_RUN], adapter or (), data)
    _show(compared, [comparisons.side_by_side], output)


@command
def runs(*, folder: o.Folder = o.RUNS, output: o.Output) -> None:
    """List the runs below a folder: data, accuracy of the base, adapters, what the best one did, size, digest.

    Example: lora-mnist runs runs
    """
    from lora_mnist.cli import overview
    from lora_mnist.runs.overview import list_runs

    _show(list_runs(folder), [overview.overview], output)


@command
def doctor(*, folder: o.Folder = o.RUNS, machine: o.Machine, output: o.Output) -> int:
    """Look at what is installed, the machine, the data and every run, and say what to do where one is not good.

    Example: lora-mnist doctor
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import doctor as words

    diagnosis = pipeline.doctor(folder, machine.data, machine.device, machine.threads)
    _show(diagnosis, [words.diagnosis], output)
    return diagnosis.exit_code


@command
def params(*, place: o.Place, rank: o.Ranks = "1,2,4,8,16,32,64", shape: o.Shapes = None, output: o.Output) -> None:
    """Count what full fine-tuning and LoRA train, for the run's network or any layer.

    Example: lora-mnist params --shape 4096x4096 --rank 4,8,16
    """
    from lora_mnist.cli import tables
    from lora_mnist.runs.listing import count_parameters
    from lora_mnist.runs.rundir import Run

    _show(count_parameters(Run(place.run), rank, shape), [tables.sizes], output)


@command
def report(*, place: o.Place, normalise: o.Normalise = False, open: o.Open = False, output: o.Output) -> None:
    """One HTML page on what the repair did and cost, its plots as PNG and SVG, its numbers as CSV and JSON.

    Example: lora-mnist report --open
    """
    from lora_mnist.report.page import write_report
    from lora_mnist.runs.rundir import Run

    page = write_report(Run(place.run), normalise)
    if output.json:
        _print_json({"report": str(page), "files": sorted(file.name for file in page.parent.iterdir())})
    else:
        _write(f"{page}\n")
    if open:
        _open(page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    listen()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="replace")  # a terminal that has no "·" shows "?" rather than a traceback
    try:
        code = typer.main.get_command(app).main(arguments, "lora-mnist", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except SystemExit as ended:  # so do Typer's completion, with its answer, and its help where nobody reads on
        silence_stdout()
        return int(ended.code or 0) if completion.is_asked() else 0
    except BaseException as error:
        return report_error(error, "--json" in arguments)


def _raise_failures(findings: "Verification") -> None:
    if not findings.passed:
        failures = "; ".join(failure.rstrip(".") for failure in findings.failures)
        raise ProofError(f"The proof failed: {failures}.", "Restore the run from a copy.")


def _made(tuning: "Tuning", run: "Run") -> "Path | str | None":
    """Where it lies, if it was kept."""
    return tuning.file or (run.adapter(tuning.record.name).folder if tuning.kept else None)


def _open(page: "Path") -> None:
    if not webbrowser.open(page.resolve().as_uri()):
        typer.echo("Note: no browser could be opened.", err=True)


def _show(
    document: D, views: "Sequence[Callable[[D], RenderableType]]", output: o.Output, made: "Path | str | None" = None
) -> None:
    """Print a result as it was asked for: as JSON, or no more than where what was `made` lies, or its `views`."""
    if output.json:
        _print_json(document.model_dump(mode="json"))
    elif not output.quiet:
        _print(*(view(document) for view in views))
    elif made:
        _write(f"{made}\n")


def _print(*renderables: "RenderableType") -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)  # brackets in the name of a folder mean themselves
    console.width = max(console.width, 80)  # a narrower terminal breaks lines itself, where rich would drop columns
    with console.capture() as text:  # written by us, because rich ends the process when the pipe is closed
        for renderable in renderables:
            console.print(renderable, crop=False)  # a path is longer than the line, rather than cut
    _write(text.get())


def _print_json(document: object) -> None:
    _write(json.dumps(document, indent=1) + "\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()  # shown before the next stage begins
    except BrokenPipeError:
        silence_stdout()  # nobody reads on, but the work is still to be finished
