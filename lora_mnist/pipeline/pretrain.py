"""The first stage: train the base, evaluate it, fingerprint it, save it."""

import logging
import time

from lora_mnist import SCHEMA
from lora_mnist.datasets.dataset import Dataset, choose_dataset, data_folder, load
from lora_mnist.errors import RunError
from lora_mnist.evaluation.metrics import held_out_logits, require_finite, weakest_digit
from lora_mnist.evaluation.results import WeakestDigit
from lora_mnist.evaluation.significance import wilson
from lora_mnist.lora import compute_fingerprint
from lora_mnist.pipeline.workspace import Workspace, open_workspace, workspace_with
from lora_mnist.runs.artifact import PROVENANCE, RECORD
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import (
    Evaluation,
    ImportedFile,
    Provenance,
    RareDigit,
    RunRecord,
    evaluation_of,
    facts_of,
    rare_digit,
    record_provenance,
)
from lora_mnist.settings.config import Maybe, Settings
from lora_mnist.settings.request import Request
from lora_mnist.training.device import prepare_device
from lora_mnist.training.loop import History
from lora_mnist.training.model import MLP
from lora_mnist.training.progress import Progress
from lora_mnist.training.train import train_base

log = logging.getLogger("lora_mnist")


class PretrainResult(Evaluation):
    """What a base does, where it lies, how many seconds it took, and its weakest digit, if `val` tells."""

    run: str
    seconds: float
    weakest: WeakestDigit | None
    rare: Maybe[RareDigit] = None  # the digit of which it saw only a share
    source: Maybe[ImportedFile] = None  # the file that it was imported from


def pretrain(request: Request, resume: bool = False, run: Run | None = None) -> tuple[Workspace, PretrainResult]:
    """Train a base, and open its run for the stages that follow.

    Args:
        resume: a finished base is taken as it is.
        run: that of `request`, if it is opened already.

    Raises:
        BusyError: another command writes to the run.
        RunError: the base is finished already, or something else lies in its place.
        UsageError: a setting is wrong, or contradicts the finished base.
    """
    run = run or Run(request.run)
    with run.writing():
        if not run.base.is_finished or request.force:
            work = _train(request, run)
        elif resume:
            run.require_base()
            run.tidy()
            # what made the base; the rest belongs to an adapter, and of an imported one the seed too
            sections = ("data", "model", "pretrain", *(() if run.record.source else ("seed",)))
            stored = run.record.settings.model_dump(mode="json")
            request.refuse_contradictions(stored, sections, run.record.dataset.name, run.base.folder)
            work = open_workspace(request, run)
        else:
            run.tidy()  # whoever made it may have been killed before it came to that
            raise RunError(
                f"{run.base.folder} is finished already.",
                "Go on with `lora-mnist finetune`, choose another --run, or train it again with --force.",
            )
    return work, result_of(work)


def result_of(work: Workspace) -> PretrainResult:
    """What the base of an opened run does."""
    base, record, weakest = work.run.base, work.run.record, None
    if len(work.dataset.val):
        digit = weakest_digit(base.logits()["val"], work.dataset.val.labels)
        val = base.evaluation.splits["val"]
        low, high = wilson(val.wrong[digit], val.images[digit])
        weakest = WeakestDigit(digit=digit, wrong=val.wrong[digit], images=val.images[digit], low=low, high=high)
    return PretrainResult(
        **dict(base.evaluation),
        run=str(work.request.run),
        seconds=base.provenance.seconds,
        weakest=weakest,
        rare=record.rare,
        source=record.source,
    )


def _stored_settings(request: Request, run: Run) -> Settings | None:
    """Of the base that is to be replaced. If they are lost, only a --config may stand in for them."""
    if not run.base.is_finished:
        return None
    try:
        run.base.require_saved(RECORD)
        record = run.record
    except RunError as error:
        if request.config is None:
            cause = f"{error.cause} So it is not known with what settings to train again."
            raise type(error)(cause, "Name them with --config, or choose another --run.") from error
        log.warning("Note: %s Only --config says with what settings to train again.", error.cause)
        return None
    if record.source:  # and nobody else may have the network any more
        cause = f"{run.base.folder} {record.source}, so training does not replace it."
        raise RunError(cause, "Choose another --run, or replace it with `lora-mnist import --force`.")
    return record.settings


def _train(request: Request, run: Run) -> Workspace:
    if not request.force:
        run.require_vacant()
    stored = _stored_settings(request, run)
    wanted = request.wanted_dataset(stored)
    run.require_writable()
    device = prepare_device(request.device, request.threads)
    data = data_folder(request.data)
    name = choose_dataset(wanted, data, request.quiet, request.offline)
    if stored and stored.data.dataset != name:
        stored = None  # made for another data set, which has its own epochs and steps
    settings = request.settings(stored, name)
    dataset = load(name, data, settings.data.val_share, settings.data.split_seed, device, settings.data.val_from)

    started = time.perf_counter()
    model, history = train_base(settings, dataset, device, Progress(request.quiet, request.stage))
    provenance = record_provenance(device, started, data if name == "mnist" else None)
    save_base(run, model, settings, dataset, provenance, history)
    return workspace_with(request, run, settings, device, dataset)


def save_base(
    run: Run,
    model: MLP,
    settings: Settings,
    dataset: Dataset,
    provenance: Provenance,
    history: History | None = None,
    source: ImportedFile | None = None,
) -> None:
    """Make `model` the base of `run`; what was made from an old one is removed, and a warning names it.

    Args:
        history: of its training, or `source`, the file that it was imported from.

    Raises:
        UsageError: its logits are not finite.
        BusyError: another command writes to the run.
        DiskError: the disk refuses.
    """
    logits = held_out_logits(model, dataset)
    require_finite(logits, "Choose a lower --learning-rate." if history else "Its weights are too large.")
    try:
        replaced = run.base.evaluation.base_fingerprint if run.base.is_finished else None
    except RunError:
        replaced = None  # damaged, which may be why it is trained again
    fingerprint = compute_fingerprint(model.state_dict())
    record = RunRecord(
        schema_version=SCHEMA,
        settings=settings,
        dataset=facts_of(dataset),
        base_fingerprint=fingerprint.sha256,
        rare=rare_digit(settings.pretrain, dataset),
        source=source,
        replaced_fingerprint=replaced,
    )
    removed = [saved.name for saved in run.dependents()] + [file.name for file in sorted(run.exports.glob("*"))]
    with run.new_base() as writer:
        writer.network(model)
        writer.documents({RECORD: record, PROVENANCE: provenance})
        writer.history(history)
        writer.results(evaluation_of(dataset, fingerprint, logits), logits)
    if removed:
        log.warning("Removed what was made from the old base: %s.", ", ".join(removed))
