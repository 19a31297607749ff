"""The command `sweep`: a grid of fine-tunings, and what they say."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lora_mnist.cli import completion
from lora_mnist.cli import options as o
from lora_mnist.cli.options import folder, in_data, in_lora, in_output, in_repair, in_run, in_training
from lora_mnist.cli.output import open_in_browser, print_result
from lora_mnist.errors import LoraMnistError, UsageError

if TYPE_CHECKING:
    from lora_mnist.sweep.run import SweepRequest


@dataclass(frozen=True)
class Grid:
    """What is varied, from what base, and where the results go."""

    digit: Annotated[str, in_repair("--digit", "Digits to repair, or weakest, of each base.", "0-9|weakest")] = "0-9"
    rank: Annotated[str, in_lora("--rank", "Ranks, with commas between them, or the config's.", "N,N,N|config")] = (
        "1,2,4,8,16"
    )
    seed: Annotated[str, in_run("--seed", "Seeds, as 0-2 or with commas between them.", "N-N")] = "0-2"
    set: Annotated[
        list[str] | None,
        in_training(
            "--set",
            "Values of another setting, named as in a config file: finetune.focus=0.2,0.35. May be repeated.",
            "NAME=X,Y",
            show_default="none",
        ),
    ] = None
    config: Annotated[
        str | None,
        in_run(
            "--config",
            "Settings of all jobs to begin with: a config that comes along, or a TOML file.",
            "NAME|FILE",
            autocompletion=completion.configs,
            show_default="the run's, else default",
        ),
    ] = None
    run: Annotated[
        Path | None,
        in_run(
            "--run",
            "Run whose base all jobs start from.",
            "DIR",
            parser=folder,
            autocompletion=completion.runs,
            show_default="a new base for every seed",
        ),
    ] = None
    out: Annotated[
        Path, in_run("--out", "Folder of the results; what is finished there is not done again.", "DIR", parser=folder)
    ] = Path("sweeps/default")
    dataset: Annotated[
        str | None, in_data("--dataset", "MNIST, or scikit-learn's small digits.", "auto|mnist|digits")
    ] = None


@dataclass(frozen=True)
class Compared:
    """What is trained beside the adapters, and on which images they are compared."""

    full: Annotated[bool, in_repair("--full", "Train all weights too, for every combination but of ranks.")] = False
    control: Annotated[
        bool,
        in_repair(
            "--control",
            "Train two controls of every adapter: on all images alike, and on hard ones of all digits alike.",
        ),
    ] = False
    rounds: Annotated[
        int,
        in_repair(
            "--rounds",
            "Also repair in rounds, each of the digit that is weakest then, on top of the last: at most so many.",
            "N",
            show_default="none",
        ),
    ] = 0
    hold_out: Annotated[
        bool,
        in_data("--hold-out", "Count on half of the held-out training images: a search is not to look at test."),
    ] = False


@dataclass(frozen=True)
class Engine:
    """How the jobs are run."""

    engine: Annotated[
        str,
        in_run(
            "--engine",
            "Many adapters at once, one at a time in each process, or tasks of a Ray cluster.",
            "stacked|local|ray",
        ),
    ] = "stacked"
    address: Annotated[
        str | None,
        in_run("--address", "Address of a running Ray cluster.", "HOST:PORT", show_default="one on this machine"),
    ] = None
    gpus: Annotated[
        float, in_run("--gpus", "Share of a GPU that each task of Ray takes; 0 computes on CPUs.", "SHARE")
    ] = 0.0
    plan: Annotated[bool, in_run("--plan", "Say how many jobs and bases there are, and do nothing.")] = False


@dataclass(frozen=True)
class View:
    """What of the answer is shown."""

    by: Annotated[str, in_output("--by", "Setting that the table is ordered by.", "NAME")] = "rank"
    metric: Annotated[str, in_output("--metric", "Count that is compared.", "errors|missed|false_alarms")] = "errors"
    keep: Annotated[
        str | None,
        in_output(
            "--keep",
            "Train one row's adapter by itself and save it in the run of its base: the best on val, or a key.",
            "best|KEY",
            show_default="none",
        ),
    ] = None
    split: Annotated[str, in_output("--split", "Images that it is counted on.", "test|val")] = "test"


def sweep(
    *,
    grid: Grid,
    compared: Compared,
    engine: Engine,
    machine: o.Machine,
    view: View,
    open: o.Open = False,
    output: o.Output,
) -> int:
    """Fine-tune once for every combination of digits, ranks, seeds and settings, and say which are enough.

    Example: lora-mnist sweep --rank 1,4 --set finetune.focus=0.2,0.35 --out sweeps/focus
    """
    from lora_mnist.cli import sweep_tables
    from lora_mnist.sweep.engines import engine_of
    from lora_mnist.sweep.page import write_page
    from lora_mnist.sweep.rows import Store
    from lora_mnist.sweep.run import choose_row, keep, plan, sweep
    from lora_mnist.sweep.summary import check_view

    if view.keep is not None and compared.hold_out:
        raise UsageError("`--keep` would look at test, which --hold-out leaves alone.", "Leave one of them out.")
    asked = _asked(grid, compared, machine, output)
    shown = check_view(view.by, view.metric, view.split, asked.axes)
    trains = engine_of(engine.engine, machine.threads, machine.device, engine.address, engine.gpus)
    if engine.plan:
        print_result(plan(asked), [sweep_tables.planned], output, grid.out)
        return 0
    done = sweep(asked, trains)
    answered = done.report(*shown)
    if answered.answer is not None:
        page = write_page(answered.answer, done.rows, grid.out)
        answered = answered.model_copy(update={"page": str(page)})
    try:
        if view.keep is not None:
            kept = keep(asked, choose_row(view.keep, done.rows, Store(grid.out)))
            answered = answered.model_copy(update={"kept": kept})
    except LoraMnistError:
        if not output.json:  # which is one object, the error's
            print_result(answered, [sweep_tables.answered], output, grid.out)
        raise
    print_result(answered, [sweep_tables.answered], output, grid.out)
    if open and answered.page:
        open_in_browser(Path(answered.page).resolve().as_uri())
    return 1 if done.failures else 0


def _asked(grid: Grid, compared: Compared, machine: o.Machine, output: o.Output) -> "SweepRequest":
    from lora_mnist.pipeline.run import require_rounds
    from lora_mnist.settings.request import Request
    from lora_mnist.sweep.grid import Comparisons, parse_axes
    from lora_mnist.sweep.run import SweepRequest

    request = Request(
        data=machine.data,
        config=grid.config,
        options={} if grid.dataset is None else {"data": {"dataset": grid.dataset}},
        offline=machine.offline,
        device=machine.device,
        threads=machine.threads,
        quiet=output.quiet,
    )
    axes = parse_axes(grid.digit, grid.rank, grid.seed, grid.set or ())
    if compared.rounds:
        require_rounds(compared.rounds)
    comparisons = Comparisons(compared.full, compared.control, compared.rounds)
    return SweepRequest(request, axes, grid.out, grid.run, comparisons, compared.hold_out)
