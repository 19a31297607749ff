"""The command line: parse, call one stage, print, turn an error into its exit code."""

import functools
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_mnist import __version__
from lora_mnist.errors import DiskError, LoraMnistError, ProofError, UsageError

log = logging.getLogger("lora_mnist")

app = typer.Typer(
    name="lora-mnist",
    help="Repair one digit of a trained MNIST network with LoRA, and prove that nothing else was touched.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _option(kind: Any, name: str, text: str, **more: Any) -> Any:
    return Annotated[kind, typer.Option(name, help=text, **more)]


RunDir = _option(Path, "--run", "Directory of the run.")
Config = _option(str | None, "--config", "default, classic, smoke, or a TOML file.", metavar="NAME|FILE")
Dataset = _option(
    str | None, "--dataset", "auto: MNIST if it can be had, else the embedded digits.", metavar="auto|mnist|digits"
)
Data = _option(Path, "--data", "Where data sets lie; MNIST in its MNIST/raw/.", envvar="LORA_MNIST_DATA")
Device = _option(str, "--device", "auto, cpu, cuda or cuda:N.")
Threads = _option(int | None, "--threads", "CPU threads.  [default: torch's choice]")
Seed = _option(int | None, "--seed", "Of weights and of the order of images.")
Json = _option(bool, "--json", "Print one JSON object.")
Quiet = _option(bool, "--quiet", "No progress and no notes.")
Force = _option(bool, "--force", "Replace what is finished.")
Debug = _option(bool, "--debug", "Show the traceback of an error.")
Adapters = _option(list[str] | None, "--adapter", "Adapter by name; may be repeated.")

Epochs = _option(int | None, "--epochs", "Passes over the training images.")
BatchSize = _option(int | None, "--batch-size", "Images per step.")
LearningRate = _option(float | None, "--learning-rate", "Of the first step.")
Optimizer = _option(str | None, "--optimizer", "Adam, or AdamW.", metavar="adam|adamw")
Schedule = _option(str | None, "--schedule", "Of the learning rate; the cosine falls to 0.", metavar="constant|cosine")
WeightDecay = _option(float | None, "--weight-decay", "Adam: L2 penalty; AdamW: decoupled.")
Hidden = _option(str | None, "--hidden", "Sizes of the hidden layers, as 1000,2000.")
ValShare = _option(float | None, "--val-share", "Share of the training images that takes the decisions.")
Digit = _option(str | None, "--digit", "Digit to repair, or weakest (found on val).", metavar="0-9|weakest")
Rank = _option(int | None, "--rank", "Of the adapter.")
Alpha = _option(float | None, "--alpha", "scaling = alpha / rank.  [default: the rank]")
RsLoRA = _option(bool | None, "--rslora/--no-rslora", "scaling = alpha / sqrt(rank).")
Targets = _option(list[str] | None, "--targets", "Layer by name or regular expression; may be repeated.")
Dropout = _option(float | None, "--dropout", "On the input of lora_A, while training.")
Init = _option(str | None, "--init", "Start of lora_A: uniform as in loralib, or N(0, 1).", metavar="kaiming|gaussian")
Steps = _option(int | None, "--steps", "Fine-tuning steps.")
Focus = _option(float | None, "--focus", "Share of every batch that is the target digit; 1 is only that digit.")
Name = _option(str | None, "--name", "Of the adapter.  [default: digit9-r1 and the like]")


def command(function: Callable[..., None]) -> Callable[..., int]:
    """Register `function` as a command whose errors become one message and an exit code."""

    @functools.wraps(function)
    def handled(*, json: bool = False, quiet: bool = False, debug: bool = False, **options: Any) -> int:
        notes = logging.StreamHandler()  # to standard error
        log.addHandler(notes)
        log.setLevel(logging.ERROR if quiet else logging.INFO)
        try:
            function(json=json, quiet=quiet, debug=debug, **options)
            sys.stdout.flush()
        except BaseException as error:
            if debug:
                traceback.print_exc()
            return _report(error, json)
        finally:
            log.removeHandler(notes)
        return 0

    return app.command()(handled)


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
    from lora_mnist import stages, terminal
    from lora_mnist.report import write_report

    request = _request(
        locals(),
        seed=seed,
        data={"dataset": dataset, "val_share": val_share},
        model={"hidden": _sizes(hidden)},
        pretrain={"epochs": epochs},
        finetune={**_digit(digit), "rank": rank, "alpha": alpha, "steps": steps, "focus": focus, "name": name},
    )
    base = stages.pretrain(request, resume=True)
    if not json:
        _print(terminal.evaluation(base))
    tuned = stages.finetune(request, resume=True)
    if not json:
        _print(terminal.finetuning(tuned))
    _raise_failures(stages.verify(request))
    page = write_report(run)
    if json:
        _print_json({"pretrain": base, "finetune": tuned, "report": str(page)})
    else:
        print(f"Verified from the files. The report is {page}")


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
    from lora_mnist import stages, terminal

    training = _training(batch_size, learning_rate, optimizer, schedule, weight_decay)
    request = _request(
        locals(),
        seed=seed,
        data={"dataset": dataset, "val_share": val_share},
        model={"hidden": _sizes(hidden)},
        pretrain={"epochs": epochs, **training},
    )
    _show(stages.pretrain(request), terminal.evaluation, json)


@command
def evaluate(
    run: RunDir = Path("runs/default"),
    adapter: Adapters = None,
    strength: Annotated[float, typer.Option(help="Factor on every adapter named; 1 as trained, 0 off.")] = 1.0,
    data: Data = Path("data"),
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Confusion matrix and errors per digit of the base, or of the base with adapters."""
    from lora_mnist import stages, terminal

    _show(stages.evaluate(_request(locals()), adapter or [], strength), terminal.evaluation, json)


@command
def finetune(
    run: RunDir = Path("runs/default"),
    config: Config = None,
    digit: Digit = None,
    rank: Rank = None,
    alpha: Alpha = None,
    rslora: RsLoRA = None,
    targets: Targets = None,
    dropout: Dropout = None,
    init: Init = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    focus: Focus = None,
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
    from lora_mnist import stages, terminal

    request = _request(
        locals(),
        seed=seed,
        finetune={
            **_digit(digit),
            "rank": rank,
            "alpha": alpha,
            "rslora": rslora,
            "targets": targets,
            "dropout": dropout,
            "init": init,
            "steps": steps,
            "focus": focus,
            "name": name,
            **_training(batch_size, learning_rate, optimizer, schedule, weight_decay),
        },
    )
    _show(stages.finetune(request), terminal.finetuning, json)


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
    from lora_mnist import stages, terminal

    findings = stages.verify(_request(locals()), adapter or [])
    if json:
        _raise_failures(findings)
    _show(findings, terminal.verification, json)
    _raise_failures(findings)


@command
def report(
    run: RunDir = Path("runs/default"),
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Confusion plots before, after and their difference, and the HTML page."""
    from lora_mnist.report import write_report

    page = write_report(run)
    if json:
        _print_json({"report": str(page), "files": sorted(file.name for file in page.parent.iterdir())})
    else:
        print(page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that has no "·" shows "?" rather than a traceback
    try:
        code = typer.main.get_command(app).main(arguments, "lora-mnist", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except BaseException as error:
        return _report(error, "--json" in arguments)


def script() -> None:
    """`lora-mnist` on the command line."""
    sys.exit(main())


class _Terminated(BaseException):
    pass


def _terminate(*_: Any) -> None:
    raise _Terminated


def _report(error: BaseException, as_json: bool) -> int:
    """Print `error` as a user should see it and return its exit code."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its own exit
        return 0
    code, message = _explain(error)
    if as_json and code not in (130, 143):
        print(json.dumps({"error": {"code": code, "type": type(error).__name__, "message": message}}), flush=True)
    else:
        print(f"Error: {message}" if code < 128 else message, file=sys.stderr)
    return code


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, LoraMnistError):
        return error.exit_code, str(error)
    if isinstance(error, typer.TyperException):  # an unknown option or a value of the wrong type
        return 2, f"{error.format_message()} See --help."
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, "Interrupted; what was finished before is kept."
    if isinstance(error, _Terminated):
        return 143, "Terminated; what was finished before is kept."
    if isinstance(error, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DiskError.exit_code, f"The system refused: {error}. Make room, or choose another place."
    return (
        1,
        f"This is a bug in lora-mnist: {type(error).__name__}: {error}. Run it again with --debug and report that.",
    )


def _request(options: dict[str, Any], **settings: Any) -> Any:
    from lora_mnist.request import Request

    return Request(
        run=options["run"],
        folder=options["data"],
        config=options.get("config"),
        options=_given(settings),
        device=options["device"],
        threads=options["threads"],
        force=options.get("force", False),
        quiet=options["quiet"],
    )


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the options that were left out."""
    nested = {key: _given(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in nested.items() if value is not None}


def _training(batch_size, learning_rate, optimizer, schedule, weight_decay) -> dict[str, Any]:
    return {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "schedule": schedule,
        "weight_decay": weight_decay,
    }


def _digit(digit: str | None) -> dict[str, Any]:
    return {"digit": int(digit) if digit and digit.isdecimal() else digit}


def _sizes(hidden: str | None) -> list[int] | None:
    try:
        return hidden and [int(size) for size in hidden.split(",")]
    except ValueError as error:
        raise UsageError(f"`hidden` (={hidden!r}) is not a list of sizes.", "Write it as 1000,2000.") from error


def _raise_failures(findings: dict[str, Any]) -> None:
    if not findings["passed"]:
        raise ProofError(f"The proof failed: {'; '.join(findings['failures'])}.", "Restore the run from a copy.")


def _show(document: dict[str, Any], renderer: Callable[[dict[str, Any]], Any], as_json: bool) -> None:
    if as_json:
        _print_json(document)
    else:
        _print(renderer(document))


def _print(renderable: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as text:  # printed by us, because rich ends the process when the pipe is closed
        console.print(renderable)
    sys.stdout.write(text.get())


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=1))
