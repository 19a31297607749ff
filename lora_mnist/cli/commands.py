"""The commands: parse, call one stage, print."""

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from lora_mnist.cli import completion
from lora_mnist.cli import options as o
from lora_mnist.cli.output import open_in_browser, print_all, print_json, print_result, write
from lora_mnist.errors import ProofError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from lora_mnist.pipeline import FinetuneResult, VerifyResult
    from lora_mnist.runs.run import Run


def run(
    *,
    place: o.Place,
    common: o.Recipe,
    network: o.Network,
    epochs: o.Epochs = None,
    repair: o.Repair,
    rounds: o.Rounds = 1,
    control: o.Control = False,
    images: o.DataChoice,
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
    from lora_mnist.runs.run import Run

    pretraining = o.given("pretrain", epochs=epochs)
    settings = (images.settings("data"), network.settings("model"), pretraining, repair.settings())
    request = o.request_of(place, machine, output, common, *settings)
    silent, stages = output.json or output.quiet, results.Stages(rounds)
    with Run(place.run).writing():  # from the first stage to the last, not only during each of them
        work, whole = pipeline.run(
            request, rounds, control, lambda done: None if silent else print_all(stages.after(done))
        )
        _raise_failures(whole.verification)
        started = time.perf_counter()
        with replace(work.progress, stage="4/4 ").waiting("writing the report"):
            page = write_report(work.run)
    if output.json:
        tunings = [tuning.model_dump(mode="json") for tuning in whole.rounds]
        base = whole.pretraining.model_dump(mode="json")
        print_json({"pretrain": base, "finetune": tunings[0], "rounds": tunings, "report": str(page)})
    elif output.quiet:
        write(f"{page}\n")
    elif stages.finished:
        print_all(results.finished(whole, page))
    else:
        print_all(results.report_line(page, time.perf_counter() - started))
        print_all(results.whole(whole, place.run, verbose))
    if verbose and not silent:
        print_all(
            tables.evaluation(whole.pretraining), *map(tables.finetuning, whole.rounds), tables.path(whole.rounds)
        )
    if open:
        open_in_browser(page.resolve().as_uri())


def pretrain(
    *,
    place: o.Place,
    common: o.Recipe,
    network: o.Network,
    epochs: o.Epochs = None,
    loop: o.Loop,
    images: o.DataChoice,
    machine: o.Machine,
    verbose: o.Verbose = False,
    output: o.Output,
) -> None:
    """Train the base network, fingerprint its weights, and print its errors per digit.

    Example: lora-mnist pretrain --epochs 3 --run runs/mine
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import results, tables

    training = (o.given("pretrain", epochs=epochs), loop.settings("pretrain"))
    request = o.request_of(
        place, machine, output, common, images.settings("data"), network.settings("model"), *training
    )
    work, pretraining = pipeline.pretrain(request)
    views = [results.pretraining, *([tables.evaluation] if verbose else [])]
    print_result(pretraining, views, output, work.run.base.folder)


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
    from lora_mnist.cli import tables

    work = pipeline.open_workspace(o.request_of(place, machine, output, o.Recipe()))
    base = work.run.base.evaluation
    evaluation = pipeline.evaluate(work, adapters.applied(), checkpoint, adapters.allow_unverified)
    changed = evaluation.adapters or evaluation.checkpoint
    view = partial(tables.before_and_after, base) if changed else tables.evaluation
    print_result(evaluation, [view], output)


def finetune(
    *,
    place: o.Place,
    common: o.Recipe,
    full: o.Full = False,
    repair: o.Repair,
    shape: o.AdapterShape,
    control: o.Control = False,
    on_top_of: o.OnTopOf = None,
    loop: o.Loop,
    loss: o.Loss,
    machine: o.Machine,
    augmentation: o.Augmentation,
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
        o.refuse_with_full(repair, shape, control, on_top_of)
    settings = [group.settings() for group in (repair, shape, augmentation, loss, loop)]
    if full:  # the rate of all weights is a setting of its own
        settings[-1] = replace(loop, learning_rate=None).settings()
        settings.append(o.given("finetune", full_learning_rate=loop.learning_rate))
    work = pipeline.open_workspace(o.request_of(place, machine, output, common, *settings))
    tuning = pipeline.finetune_full(work) if full else pipeline.finetune(work, on_top_of or (), control)
    views = [lambda one: results.finetuning(one, place.run), *([tables.finetuning] if verbose else [])]
    print_result(tuning, views, output, _made(tuning, work.run))


def verify(
    *,
    place: o.Place,
    adapter: o.Verified = None,
    digest: o.Digest = None,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Prove a run from its files: fingerprint, frozen bytes, "off" equals base, "on" equals W + scaling · B A.

    It also computes logits, evaluation and analysis again and names the file that disagrees.

    Example: lora-mnist verify --run runs/default
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import tables

    findings = pipeline.verify(o.request_of(place, machine, output, o.Recipe()), adapter or (), digest)
    if output.json:
        _raise_failures(findings)
    print_result(findings, [tables.verification], output)
    _raise_failures(findings)


def merge(
    *,
    place: o.Place,
    force: o.Force = False,
    adapters: o.Adapters,
    name: o.MergedName = None,
    machine: o.Machine,
    verbose: o.Verbose = False,
    output: o.Output,
) -> None:
    """Write the base with adapters merged into its weights as a checkpoint of its own.

    Example: lora-mnist merge --adapter digit9-r1 --name repaired
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import results, tables

    request = o.request_of(place, machine, output, o.Recipe(force=force), o.given("finetune", name=name))
    work = pipeline.open_workspace(request)
    merged, base = pipeline.merge(work, adapters.applied(), adapters.allow_unverified), work.run.base.evaluation
    rest = [lambda one: tables.before_and_after(base, one.evaluation)] if verbose else []
    print_result(merged, [lambda one: results.merged(one, base, place.run), *rest], output, merged.file)


def extract(
    *,
    place: o.Place,
    checkpoint: o.Source = None,
    force: o.Force = False,
    digit: o.OfDigit = None,
    rank: o.Rank = 8,
    name: o.Name = None,
    machine: o.Machine,
    verbose: o.Verbose = False,
    output: o.Output,
) -> None:
    """Make the best adapter of a rank from a network that was fine-tuned whole.

    Example: lora-mnist extract --rank 4
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import results, tables

    settings = o.given("finetune", digit=digit, name=name)
    work = pipeline.open_workspace(o.request_of(place, machine, output, o.Recipe(force=force), settings))
    tuning = pipeline.extract(work, rank, checkpoint)
    views = [lambda one: results.extracted(one, place.run), *([tables.extraction] if verbose else [])]
    print_result(tuning, views, output, _made(tuning, work.run))


def adapters(*, place: o.Place, output: o.Output) -> None:
    """List a run's adapters: digit, rank, size, errors before and after, proof.

    Example: lora-mnist adapters --run runs/mine
    """
    from lora_mnist.cli import tables
    from lora_mnist.runs.listing import list_adapters
    from lora_mnist.runs.run import Run

    print_result(list_adapters(Run(place.run)), [tables.adapters], output)


def compare(
    *,
    runs: o.Runs = None,
    adapter: o.Compared = None,
    data: o.Data = o.DATA,
    verbose: o.Verbose = False,
    output: o.Output,
) -> None:
    """Bases and adapters of one run or several side by side, and two by two on the same test images.

    Two are tested by McNemar's exact test: of the images that one of them alone gets right, whose are more?

    Example: lora-mnist compare runs/default runs/mine --adapter digit9-r1
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import tables

    compared = pipeline.compare(runs or [completion.DEFAULT_RUN], adapter or (), data)
    print_result(compared, [partial(tables.side_by_side, every_pair=verbose)], output)


def runs(*, folder: o.Folder = o.RUNS, output: o.Output) -> None:
    """List the runs below a folder: data, accuracy of the base, adapters, what the best one did, size, digest.

    Example: lora-mnist runs runs
    """
    from lora_mnist.cli import tables
    from lora_mnist.runs.listing import list_runs

    print_result(list_runs(folder), [tables.runs], output)


def doctor(*, folder: o.Folder = o.RUNS, machine: o.Here, output: o.Output) -> int:
    """Look at what is installed, the machine, the data and every run, and say what to do where one is not good.

    Example: lora-mnist doctor
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import tables

    diagnosis = pipeline.doctor(folder, machine.data, machine.device, machine.threads)
    print_result(diagnosis, [tables.diagnosis], output)
    return diagnosis.exit_code


def params(*, place: o.Place, rank: o.Ranks = "1,2,4,8,16,32,64", shape: o.Shapes = None, output: o.Output) -> None:
    """Count what full fine-tuning and LoRA train, for the run's network or any layer.

    Example: lora-mnist params --shape 4096x4096 --rank 4,8,16
    """
    from lora_mnist.cli import tables
    from lora_mnist.runs.listing import count_parameters
    from lora_mnist.runs.run import Run

    print_result(count_parameters(Run(place.run), rank, shape), [tables.sizes], output)


def report(*, place: o.Place, normalise: o.Normalise = False, open: o.Open = False, output: o.Output) -> None:
    """One HTML page on what the repair did and cost, its plots as PNG and SVG, its numbers as CSV and JSON.

    Example: lora-mnist report --open
    """
    from lora_mnist.report.page import write_report
    from lora_mnist.runs.run import Run

    page = write_report(Run(place.run), normalise)
    if output.json:
        print_json({"report": str(page), "files": sorted(file.name for file in page.parent.iterdir())})
    else:
        write(f"{page}\n")
    if open:
        open_in_browser(page.resolve().as_uri())


def predict(
    *,
    place: o.Place,
    images: o.Images = None,
    index: o.Index = None,
    adapters: o.Adapters,
    show: o.Show = None,
    force: o.Replace = False,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Say what the base takes a picture for, and what each adapter does, or those that are named.

    Example: lora-mnist predict three.png
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import tables

    if bool(images) == bool(index):
        cause = "Both files and test images are given." if images else "There is no picture to look at."
        raise UsageError(cause, "Name files, or choose test images by --index.")
    if show:
        pipeline.require_one_picture(len(images or index or ()), show, force)

    work = pipeline.open_workspace(o.request_of(place, machine, output, o.Recipe()))
    pictures = [*pipeline.pictures_in(images or (), work.dataset.name), *pipeline.pictures_of(work, index or ())]
    chosen = replace(adapters, adapter=adapters.adapter or work.run.adapter_names()).applied()
    result = pipeline.predict(work, pictures, chosen, adapters.allow_unverified)
    if show:
        pipeline.write_picture(pictures[0], show)
    print_result(result, [tables.predictions], output, show)


def export(
    *,
    place: o.Place,
    force: o.Force = False,
    adapters: o.Adapters,
    format: o.FileFormat = "onnx",
    out: o.Out = None,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Write the base, with adapters merged into it, as one ONNX file, which phones and browsers run.

    Example: lora-mnist export --adapter digit9-r1
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import results

    work = pipeline.open_workspace(o.request_of(place, machine, output, o.Recipe(force=force)))
    exported = pipeline.export(work, adapters.applied(), format, out, adapters.allow_unverified)
    print_result(exported, [results.exported], output, exported.file)


def teach(
    *,
    folder: o.Drawings,
    place: o.Place,
    common: o.Recipe,
    rank: Annotated[int | None, o.RANK] = None,
    steps: o.Steps = None,
    share: o.Share = None,
    guard: o.Guard = None,
    name: o.TaughtName = None,
    dry_run: o.DryRun = False,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Train an adapter on drawings of your own, test it on drawings it has not seen, and show the side effects.

    Example: lora-mnist teach drawings --run runs/mine
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import results

    recipe = o.given("teach", rank=rank, steps=steps, share=share, guard=guard, name=name)
    work = pipeline.open_workspace(o.request_of(place, machine, output, common, recipe))
    drawings = pipeline.read_drawings(folder, work.dataset.name)
    taught = pipeline.teach_and_keep(work, drawings, dry_run)
    print_result(taught, [lambda one: results.taught(one, place.run, work.dataset.name)], output, taught.folder)


def play(
    *, place: o.Place, machine: o.PlayMachine, port: o.Port = 8017, open: o.Open = False, output: o.Output
) -> None:
    """Draw digits on a local page, compare the base with its adapters, and teach it your own hand.

    It serves until Ctrl-C ends it, to browsers on this machine alone.

    Example: lora-mnist play --run runs/default --open
    """
    try:
        from lora_mnist.play.server import serve
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("starlette", "uvicorn"):
            raise
        raise UsageError(
            f"The playground needs {missing}, which is not installed.",
            "Install the extra `play`, in a checkout by pip install -e '.[play]'.",
        ) from error

    def announce(address: str) -> None:
        if output.json:
            print_json({"address": address, "run": str(place.run)})
        else:
            write(f"{address}\n" if output.quiet else f"Playing with {place.run} at {address} (Ctrl-C ends it)\n")
        if open:
            open_in_browser(address)

    serve(o.request_of(place, machine, output, o.Recipe()), port, announce)


def _raise_failures(findings: "VerifyResult") -> None:
    if not findings.passed:
        failures = "; ".join(failure.rstrip(".") for failure in findings.failures)
        raise ProofError(f"The proof failed: {failures}.", "Restore the run from a copy.")


def _made(tuning: "FinetuneResult", run: "Run") -> "Path | str | None":
    """Where it lies, if it was kept."""
    return tuning.file or (run.adapter(tuning.record.name).folder if tuning.kept else None)
