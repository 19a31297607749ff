"""The commands: parse, call one stage, print.

A stage is imported when a command calls it: --help is not to wait for torch and pydantic.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mnist.cli import answers, tables
from lora_mnist.cli import options as o
from lora_mnist.cli.options import argument, in_data, in_lora, in_output, in_repair, in_run
from lora_mnist.cli.output import open_in_browser, print_all, print_json, print_result, write
from lora_mnist.errors import NOTHING_KEPT, DataError, ProofError, UsageError

if TYPE_CHECKING:
    from lora_mnist.pipeline.finetune import FinetuneResult
    from lora_mnist.pipeline.run_all import StageDone
    from lora_mnist.pipeline.verify import VerifyResult
    from lora_mnist.pipeline.workspace import Workspace


def run(
    common: o.ConfigOptions,
    base: o.Base,
    repair: o.Repair,
    session: o.Session,
    run: Path = o.RUN,
    rounds: int = in_repair(
        "Repair the weakest digit, then on top of that the one that is now weakest, and so on, up to N times.", "N", 1
    ),
    control: bool = o.CONTROL,
    open: bool = o.OPEN,
    verbose: bool = o.VERBOSE,
) -> int:
    """The whole job: pretrain, finetune, verify and report in turn. What is finished is not done again.

    Example: lora-mnist run --config rare --run runs/rare
    """
    from lora_mnist.pipeline.run_all import run as run_stages
    from lora_mnist.report.page import write_report
    from lora_mnist.runs.run import Run

    request = o.request_of(run, session, common, **base.settings(), **o.given("finetune", **vars(repair)))
    done: list[StageDone] = []

    def show(stage: "StageDone") -> None:
        done.append(stage)
        if not (session.json or session.quiet):
            print_all(*answers.stage_lines(done, rounds))

    with Run(run).writing():  # from the first stage to the last, not only during each of them
        work, whole = run_stages(request, rounds, control, show)
        _raise_failures(whole.verification)
        started = time.perf_counter()
        with replace(work.progress, stage="4/4 ").waiting("writing the report"):
            file = write_report(work.run)
    document = {"pretrain": whole.pretraining, "finetune": whole.rounds[0], "rounds": whole.rounds, "report": str(file)}
    if answers.was_finished(done):
        parts = [answers.nothing_to_do(whole, file)]
    else:
        report_line = answers.stage_line("4/4 report", f"{time.perf_counter() - started:.1f} s", str(file))
        parts = [report_line, answers.run_done(whole, run)]
    if verbose:
        parts += [tables.evaluation(whole.pretraining), *map(tables.finetuning, whole.rounds)]
        parts.append(tables.rounds(whole.rounds))
    print_result(document, session, *parts, file=file)
    if open:
        open_in_browser(file.resolve().as_uri())
    return 0 if any(one.kept for one in whole.rounds) else NOTHING_KEPT


def pretrain(
    common: o.ConfigOptions,
    base: o.Base,
    loop: o.Loop,
    session: o.Session,
    run: Path = o.RUN,
    verbose: bool = o.VERBOSE,
) -> None:
    """Train the base network, fingerprint its weights, and print its errors per digit.

    Example: lora-mnist pretrain --epochs 3 --run runs/mine
    """
    from lora_mnist.pipeline.pretrain import pretrain

    work, pretraining = pretrain(o.request_of(run, session, common, **base.settings(**vars(loop))))
    more = verbose and tables.evaluation(pretraining)
    print_result(pretraining, session, answers.pretraining(pretraining), more, file=work.run.base.folder)


def import_base(
    common: o.ConfigOptions,
    session: o.Session,
    file: Path = argument("Data", "State dict or checkpoint: .pt, .pth, .bin, .ckpt or .safetensors.", "FILE", ...),
    run: Path = o.RUN,
    mean: float | None = in_data("What the network subtracts from its pixels.", "X", show_default="0.1307"),
    std: float | None = in_data(
        "What the network then divides by; negative if it expects dark digits on light.", "X", show_default="0.3081"
    ),
    pixels: str | None = in_data(
        "Pixel range that --mean and --std are for; without them, the network takes such pixels unchanged.", "0-1|0-255"
    ),
    verbose: bool = o.VERBOSE,
) -> None:
    """Make a trained network of your own the base of a run: linear layers from 784 to 10 with ReLU between them.

    Example: lora-mnist import model.pt --run runs/mine
    """
    from lora_mnist.pipeline.import_base import import_base

    request = o.request_of(run, session, common)
    work, imported = import_base(request, file, mean, std, pixels)
    more = verbose and tables.evaluation(imported)
    print_result(imported, session, answers.imported(imported), more, file=work.run.base.folder)


def evaluate(
    adapters: o.Adapters,
    session: o.Session,
    checkpoint: str | None = o.checkpoints(
        "Look at a whole network that `merge` or `finetune --full` made, by its name or file."
    ),
    run: Path = o.RUN,
) -> None:
    """Errors per digit and the confusion matrix of the base; with adapters, before and after.

    Example: lora-mnist evaluate --adapter digit9-r1 --strength 0.5
    """
    from lora_mnist.pipeline.evaluate import evaluate

    work = _open(run, session)
    evaluation = evaluate(work, adapters.applied(), checkpoint, adapters.allow_unverified)
    base = work.run.base.evaluation if evaluation.adapters or evaluation.checkpoint else None
    print_result(evaluation, session, tables.evaluation(evaluation, base))


def finetune(
    common: o.ConfigOptions,
    repair: o.Repair,
    loop: o.Loop,
    session: o.Session,
    more: o.FinetuneOptions,
    run: Path = o.RUN,
    full: bool = in_repair("Train all weights of a copy instead of an adapter, to compare."),
    control: bool = o.CONTROL,
    on_top_of: list[str] | None = o.adapters("Adapter that is on, frozen, while this one is trained. May be repeated."),
    verbose: bool = o.VERBOSE,
) -> int:
    """Train an adapter on the weakest digit or another, prove that the base is untouched, and say what it did.

    What you leave out is as the run has it; the defaults below are those of a run made without --config.

    Example: lora-mnist finetune --digit 9 --rank 1
    """
    from lora_mnist.pipeline.finetune import finetune, finetune_full
    from lora_mnist.settings.config import LORA_SETTINGS

    options = {**vars(repair), **vars(more), **vars(loop)}
    if full:
        of_adapters = {**options, "control": control, "on_top_of": on_top_of}
        for name in (*LORA_SETTINGS, "guard", "control", "on_top_of"):
            if of_adapters[name] not in (None, [], False):
                cause = f"--{name.replace('_', '-')} means nothing with --full, which trains no adapter."
                raise UsageError(cause, "Leave one of them out.")
        options["full_learning_rate"] = options.pop("learning_rate")  # the rate of all weights is a setting of its own
    work = _open(run, session, common, **o.given("finetune", **options))
    tuning = finetune_full(work) if full else finetune(work, on_top_of or (), control)
    return _print_tuning(tuning, work, verbose, session)


def verify(
    session: o.Session,
    run: Path = o.RUN,
    adapter: list[str] | None = o.adapters(
        "Adapter to check. May be repeated.", show_default="all, and all checkpoints"
    ),
    digest: str | None = in_output(
        "Run digest that was noted elsewhere, or its first 16 characters: compare with it.", "HEX"
    ),
) -> None:
    """Prove a run from its files: fingerprint, frozen bytes, "off" equals base, "on" equals W + scaling · B A.

    It also computes logits, evaluation and analysis again and names the file that disagrees.

    Example: lora-mnist verify --run runs/default
    """
    from lora_mnist.pipeline.verify import verify

    findings = verify(o.request_of(run, session), adapter or (), digest)
    if findings.passed or not session.json:  # which is one object, the error's
        print_result(findings, session, tables.verification(findings))
    _raise_failures(findings)


def merge(
    adapters: o.Adapters,
    session: o.Session,
    force: bool = o.FORCE,
    run: Path = o.RUN,
    name: str | None = o.a_name(show_default="the adapters' and -merged"),
    verbose: bool = o.VERBOSE,
) -> None:
    """Write the base with adapters merged into its weights as a checkpoint of its own.

    Example: lora-mnist merge --adapter digit9-r1 --name repaired
    """
    from lora_mnist.pipeline.convert import merge

    work = _open(run, session, o.ConfigOptions(force=force), **o.given("finetune", name=name))
    merged, base = merge(work, adapters.applied(), adapters.allow_unverified), work.run.base.evaluation
    more = verbose and tables.evaluation(merged.evaluation, base)
    print_result(merged, session, answers.merged(merged, base, run), more, file=merged.file)


def extract(
    session: o.Session,
    checkpoint: str | None = o.checkpoints(
        "The network that was fine-tuned whole, by its name or file.", show_default="the latest in the run"
    ),
    force: bool = o.FORCE,
    run: Path = o.RUN,
    digit: str | None = in_repair(
        "Digit that the adapter is judged by.", "0-9|weakest", show_default="the one it was fine-tuned on"
    ),
    rank: int = o.a_rank(default=8),
    name: str | None = o.NAME,
    verbose: bool = o.VERBOSE,
) -> int:
    """Make the best adapter of a rank from a network that was fine-tuned whole.

    Example: lora-mnist extract --rank 4
    """
    from lora_mnist.pipeline.convert import extract

    work = _open(run, session, o.ConfigOptions(force=force), **o.given("finetune", digit=digit, name=name))
    return _print_tuning(extract(work, rank, checkpoint), work, verbose, session)


def adapters(output: o.Output, run: Path = o.RUN) -> None:
    """List a run's adapters: digit, rank, size, errors before and after, proof.

    Example: lora-mnist adapters --run runs/mine
    """
    from lora_mnist.runs.listing import list_adapters
    from lora_mnist.runs.run import Run

    listing = list_adapters(Run(run))
    print_result(listing, output, tables.adapters(listing))


def compare(
    output: o.Output,
    runs: list[Path] | None = argument(
        *("Run", "Folders of the runs to compare, one or several.", "RUN"),
        autocompletion=o.complete_runs,
        show_default=str(o.DEFAULT_RUN),
    ),
    run: list[Path] | None = o.run_folder("Another way to name such a folder. May be repeated.", show_default="none"),
    threads: int | None = o.THREADS,
    adapter: list[str] | None = o.adapters(
        "Adapter or checkpoint to compare. May be repeated.", show_default="all, and the bases"
    ),
    data: Path = o.DATA,
    verbose: bool = o.VERBOSE,
) -> None:
    """Bases and adapters of one run or several side by side, and two by two on the same test images.

    Two are tested by McNemar's exact test: of the images that one of them alone gets right, whose are more?

    Example: lora-mnist compare runs/default runs/mine --adapter digit9-r1
    """
    from lora_mnist.pipeline.compare import compare
    from lora_mnist.training.device import prepare_device

    prepare_device("cpu", threads)
    compared = compare([*(runs or ()), *(run or ())] or [o.DEFAULT_RUN], adapter or (), data)
    print_result(compared, output, tables.side_by_side(compared, verbose))


def runs(output: o.Output, folder: Path = o.BELOW, run: Path | None = o.ONE_RUN) -> None:
    """List the runs below a folder: data, accuracy of the base, adapters, what the best one did, size, digest.

    Example: lora-mnist runs runs
    """
    from lora_mnist.runs.listing import list_runs

    listing = list_runs(run or folder)
    print_result(listing, output, tables.runs(listing))


def doctor(machine: o.Machine, output: o.Output, folder: Path = o.BELOW, run: Path | None = o.ONE_RUN) -> int:
    """Look at what is installed, the machine, the data and every run, and say what to do where one is not good.

    Example: lora-mnist doctor
    """
    from lora_mnist.pipeline.doctor import doctor

    diagnosis = doctor(run or folder, machine.data, machine.device, machine.threads)
    print_result(diagnosis, output, tables.diagnosis(diagnosis))
    return diagnosis.exit_code


def params(
    output: o.Output,
    run: Path = o.RUN,
    rank: str = in_lora("Ranks to count for, with commas between them.", "N,N,N", "1,2,4,8,16,32,64"),
    shape: list[str] | None = in_lora(
        "Count for a layer of this shape instead of the run's network. May be repeated.", "OUTxIN"
    ),
) -> None:
    """Count what full fine-tuning and LoRA train, for the run's network or any layer.

    Example: lora-mnist params --shape 4096x4096 --rank 4,8,16
    """
    from lora_mnist.runs.listing import count_parameters
    from lora_mnist.runs.run import Run

    counted = count_parameters(Run(run), rank, shape)
    print_result(counted, output, tables.sizes(counted))


def report(
    output: o.Output,
    run: Path = o.RUN,
    normalise: bool = in_output("Confusion in per cent of each true digit instead of counts."),
    open: bool = o.OPEN,
    threads: int | None = in_run(
        "Has no effect, since one thread draws a report; for scripts that give it to every command.", "N", min=1
    ),
) -> None:
    """One HTML page on what the repair did and cost, its plots as PNG and SVG, its numbers as CSV and JSON.

    Example: lora-mnist report --open
    """
    from lora_mnist.report.page import write_report
    from lora_mnist.runs.run import Run

    file = write_report(Run(run), normalise)
    if output.json:
        print_json({"report": str(file), "files": sorted(one.name for one in file.parent.iterdir())})
    else:
        write(f"{file}\n")
    if open:
        open_in_browser(file.resolve().as_uri())


def predict(
    adapters: o.Adapters,
    session: o.Session,
    run: Path = o.RUN,
    images: list[Path] | None = argument(
        "Data", "PNG, JPEG, WebP or .npy of one digit, of any size, dark on light or light on dark.", "IMAGE"
    ),
    index: list[int] | None = in_data("Test image to take instead of a file; the first is 0. May be repeated.", "N"),
    show: Path | None = in_output("Write the 28×28 picture that the networks see, of one picture, as PNG.", "FILE"),
    force: bool = in_output("Let --show replace a file that is there."),
) -> int:
    """Say which digit the base sees in a picture, and which one it sees with each adapter, or with those you name.

    Example: lora-mnist predict three.png
    """
    from lora_mnist.pipeline.predict import pictures_in, pictures_of, predict, require_one_picture, write_picture

    if bool(images) == bool(index):
        cause = "Both files and test images are given." if images else "There is no picture to look at."
        raise UsageError(cause, "Name files, or choose test images by --index.")
    if show:
        require_one_picture(len(images or index or ()), show, force)
    work = _open(run, session)
    pictures, refused = pictures_in(images or ())
    pictures += pictures_of(work, index or ())
    chosen = replace(adapters, adapter=adapters.adapter or work.run.adapter_names()).applied()
    result = predict(work, pictures, chosen, adapters.allow_unverified)
    result = result.model_copy(update={"refused": refused or None})
    if show:
        write_picture(pictures[0], show)
    print_result(result, session, tables.predictions(result), file=show)
    return DataError.exit_code if refused else 0


def export(
    adapters: o.Adapters,
    session: o.Session,
    force: bool = o.FORCE,
    run: Path = o.RUN,
    format: str = in_output(
        "ONNX, which needs the extra onnx; a file for torch.export.load; the original format of an imported base; or a"
        " page to draw on, for any browser.",
        "onnx|torch|original|html",
        "onnx",
    ),
    out: Path | None = in_output(
        "File to write.", "FILE", show_default="in the run's exports/, named after the adapters"
    ),
) -> None:
    """Write the base with adapters to one file: ONNX (runs on phones), another format, or a page showing what they do.

    Example: lora-mnist export --adapter digit9-r1 --format html
    """
    from lora_mnist.pipeline.export import export, require_format

    if format != "html":
        require_format(format)  # before the run is read
    work = _open(run, session, o.ConfigOptions(force=force))
    if format == "html":
        from lora_mnist.browser.one_file import export_page

        page = export_page(work, adapters.applied(), out, adapters.allow_unverified)
        print_result(page, session, answers.page_exported(page), file=page.file)
    else:
        exported = export(work, adapters.applied(), format, out, adapters.allow_unverified)
        print_result(exported, session, answers.exported(exported), file=exported.file)


def teach(
    common: o.ConfigOptions,
    session: o.Session,
    folder: Path = argument(
        "Data", "Folder with the drawings, each below its digit: 0/*.png to 9/*.png.", "FOLDER", ...
    ),
    run: Path = o.RUN,
    rank: int | None = o.a_rank(),
    steps: int | None = o.STEPS,
    share: float | None = in_data("Share of every batch that is drawings.", "SHARE"),
    guard: str | None = o.TEACH_GUARD,
    name: str | None = o.a_name(show_default="taught"),
    dry_run: bool = in_output("Test what it would learn, and keep nothing."),
) -> int:
    """Train an adapter on drawings of your own, test it on drawings it has not seen, and show the side effects.

    Example: lora-mnist teach drawings --run runs/mine
    """
    from lora_mnist.datasets.drawings import read_drawings
    from lora_mnist.pipeline.teach import teach_and_keep

    settings = o.given("teach", rank=rank, steps=steps, share=share, guard=guard, name=name)
    work = _open(run, session, common, **settings)
    taught = teach_and_keep(work, read_drawings(folder), dry_run)
    print_result(taught, session, answers.taught(taught, run, work.dataset.name), file=taught.folder)
    return NOTHING_KEPT if taught.lesson.scale is None else 0


def play(
    session: o.PlaySession,
    run: Path = o.RUN,
    port: int = in_output("Port of the page on this machine; 0 takes a free one.", "N", 8017),
    open: bool = o.OPEN,
) -> None:
    """Draw digits on a local page, compare the base with its adapters, and teach it your own hand.

    It serves until Ctrl-C ends it, to browsers on this machine alone.

    Example: lora-mnist play --run runs/default --open
    """
    from lora_mnist.play.server import Server

    with Server(o.request_of(run, session), port) as server:
        if session.json:
            print_json({"address": server.url, "run": str(run)})
        else:
            write(f"{server.url}\n" if session.quiet else f"Playing with {run} at {server.url} (Ctrl-C ends it)\n")
        if open:
            open_in_browser(server.url)
        server.serve_forever()


def _open(run: Path, session: o.Session, common: o.ConfigOptions = o.ConfigOptions(), **settings: Any) -> "Workspace":
    from lora_mnist.pipeline.workspace import open_workspace

    return open_workspace(o.request_of(run, session, common, **settings))


def _print_tuning(tuning: "FinetuneResult", work: "Workspace", verbose: bool, output: o.Output) -> int:
    run = work.request.run
    place = tuning.file or (run / "adapters" / tuning.record.name if tuning.kept else None)
    answer, more = answers.finetuning(tuning, run, work.run.record), verbose and tables.finetuning(tuning)
    print_result(tuning, output, answer, more, file=place)
    return 0 if tuning.kept else NOTHING_KEPT


def _raise_failures(findings: "VerifyResult") -> None:
    if not findings.passed:
        failures = "; ".join(failure.rstrip(".") for failure in findings.failures)
        raise ProofError(f"The proof failed: {failures}.", "Restore the run from a copy.")
