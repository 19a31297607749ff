"""The command `sweep`: a grid of fine-tunings, and what they say."""

from pathlib import Path

from lora_mnist.cli import options as o
from lora_mnist.cli.options import in_data, in_lora, in_output, in_repair, in_run, in_training
from lora_mnist.cli.output import open_in_browser, print_result
from lora_mnist.errors import LoraMnistError, UsageError


def sweep(
    session: o.Session,
    # what is varied and trained, from what base, where the results go, and on which images they are counted
    digit: str = in_repair("Digits to repair, or weakest, of each base.", "0-9|weakest", "0-9"),
    rank: str = in_lora("Ranks, with commas between them, or the config's.", "N,N,N|config", "1,2,4,8,16"),
    seed: str = in_run("Seeds, as 0-2 or with commas between them.", "N-N", "0-2"),
    set: list[str] | None = in_training(
        "Values of another setting, named as in a config file: finetune.focus=0.2,0.35. May be repeated.",
        "NAME=X,Y",
        show_default="none",
    ),
    config: str | None = o.config_file(
        "Settings of all jobs to begin with: a config that comes along, or a TOML file."
    ),
    run: Path | None = o.run_folder("Run whose base all jobs start from.", show_default="a new base for every seed"),
    out: Path = in_run(
        *("Folder of the results; what is finished there is not done again.", "DIR", Path("sweeps/default")),
        parser=o.folder,
    ),
    rare: str | None = o.RARE,
    full: bool = in_repair("Also train all weights, once for every combination of settings other than rank."),
    control: bool = in_repair(
        "Train two controls of every adapter: on all images alike, and on hard ones of all digits alike."
    ),
    rounds: int = in_repair(
        "Also repair in up to N rounds, each of the digit that is weakest by then, on top of the round before.",
        "N",
        0,
        show_default="none",
    ),
    hold_out: bool = in_data("Count errors on half the held-out training images, so that a search never sees test."),
    # how the jobs are run
    engine: str = in_run(
        "Many adapters at once, one at a time in each process, or tasks of a Ray cluster.",
        "stacked|local|ray",
        "stacked",
    ),
    address: str | None = in_run("Address of a running Ray cluster.", "HOST:PORT", show_default="one on this machine"),
    gpus: float = in_run("Share of a GPU that each task of Ray takes; 0 computes on CPUs.", "SHARE", 0.0),
    plan: bool = in_run("Say how many jobs and bases there are, and do nothing."),
    # what of the answer is shown
    open: bool = o.OPEN,
    by: str = in_output("Setting that the table is ordered by.", "NAME", "rank"),
    metric: str = in_output("Count that is compared.", "errors|missed|false_alarms", "errors"),
    keep: str | None = in_output(
        "Train one row's adapter by itself and save it in the run of its base: the best on val, or a key.",
        "best|KEY",
        show_default="none",
    ),
    split: str = in_output("Images that it is counted on.", "test|val", "test"),
) -> int:
    """Fine-tune once for every combination of digits, ranks, seeds and settings, and say which are enough.

    Example: lora-mnist sweep --rank 1,4 --set finetune.focus=0.2,0.35 --out sweeps/focus
    """
    from lora_mnist.cli import sweep_tables
    from lora_mnist.pipeline.run_all import require_rounds
    from lora_mnist.sweep import sweep as sweeps
    from lora_mnist.sweep.engines import engine_of
    from lora_mnist.sweep.grid import parse_axes
    from lora_mnist.sweep.page import write_page
    from lora_mnist.sweep.rows import Store
    from lora_mnist.sweep.summary import check_view, summarise

    if keep is not None and hold_out:
        raise UsageError("`--keep` would look at test, which --hold-out leaves alone.", "Leave one of them out.")
    request = o.request_of(out, session, o.ConfigOptions(config=config), **o.given("pretrain", rare=rare))
    axes = parse_axes(digit, rank, seed, set or ())
    if rounds:
        require_rounds(rounds)
    asked = sweeps.SweepRequest(request, axes, out, run, full, control, rounds, hold_out)
    view = check_view(by, metric, split, axes)
    trains = engine_of(engine, session.threads, session.device, address, gpus)
    if plan:
        planned = sweeps.plan(asked)
        print_result(planned, session, sweep_tables.planned(planned), file=out)
        return 0
    done, kept, refused = sweeps.sweep(asked, trains), None, None
    answer = summarise(done.rows, *view, done.label)
    page = write_page(answer, done.rows, out) if answer else None
    try:
        if keep is not None:
            kept = sweeps.keep(asked, sweeps.choose_row(keep, done.rows, Store(out)))
    except LoraMnistError as error:
        refused = error
    if not (refused and session.json):  # which is one object, the error's
        report = sweeps.SweepReport(sweep=done, answer=answer, page=str(page) if page else None, kept=kept)
        print_result(report, session, sweep_tables.answered(report), file=out)
    if refused:
        raise refused
    if open and page:
        open_in_browser(page.resolve().as_uri())
    return 1 if done.failures else 0
