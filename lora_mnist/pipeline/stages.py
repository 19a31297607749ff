"""What a run begins and ends with: pretrain, evaluate, verify; `tuning` has what lies between. Each reads the run, does
one thing, writes the run, and returns its result as a document ready for JSON."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_mnist.datasets import dataset as data
from lora_mnist.errors import AlteredError, RunError, UsageError
from lora_mnist.evaluation.metrics import require_finite, summarise
from lora_mnist.evaluation.proof import TOLERANCE, failures, prove
from lora_mnist.files import standing
from lora_mnist.lora.seal import seal
from lora_mnist.pipeline.workspace import Workspace, held_out_logits, open_workspace
from lora_mnist.runs.checkpoint import load_network
from lora_mnist.runs.records import evaluation_of, record_of_run
from lora_mnist.runs.rundir import WEIGHTS, Outcome, Run
from lora_mnist.settings.request import Applied, Request
from lora_mnist.training.device import prepare
from lora_mnist.training.train import train_base

log = logging.getLogger("lora_mnist")


def pretrain(request: Request, resume: bool = False) -> dict[str, Any]:
    """Train the base, evaluate it, seal it, save it. With `resume`, a finished base is returned as it is."""
    run = Run(request.run)
    if run.has_base and not request.force:
        if resume:
            return _finished_base(run, request)
        raise RunError(
            f"{run.base} is finished already.",
            "Go on with `lora-mnist finetune`, choose another --run, or train it again with --force.",
        )
    if not request.force:
        run.require_vacant()
    stored = run.stored_settings()
    wanted = request.wanted_dataset(stored)
    run.require_writable()
    device = prepare(request.device, request.threads)
    name = data.choose(wanted, request.folder, request.quiet)
    if stored and stored["data"]["dataset"] != name:
        stored = None  # made for another data set, which has its own epochs and steps
    settings = request.settings(stored, name)
    dataset = data.load(name, request.folder, settings.data.val_share, settings.data.split_seed, device)

    started = time.perf_counter()
    model, history = train_base(settings, dataset, device, request.quiet)
    seconds = round(time.perf_counter() - started, 2)
    logits = held_out_logits(model, dataset)
    require_finite(logits, "Choose a lower --learning-rate.")
    sealed = seal(model.state_dict())
    evaluation = evaluation_of(dataset, sealed, [], logits)
    record = record_of_run(settings, dataset, sealed, device, seconds)
    removed = run.save_base(model, record, Outcome(evaluation, logits, history.losses, history.rates))
    if removed:
        log.warning("Removed what was made from the old base: %s.", ", ".join(removed))
    return {**evaluation, "run": str(request.run), "seconds": seconds}


def evaluate(
    request: Request,
    adapters: Sequence[Applied] = (),
    checkpoint: str | None = None,
    allow_unsealed: bool = False,
) -> dict[str, Any]:
    """Confusion matrix and errors per digit of the base, of the base with adapters, or of a network made from it.

    Nothing is stored.

    Raises:
        UsageError: both adapters and a checkpoint are given, or a strength is not finite.
    """
    if adapters and checkpoint is not None:
        raise UsageError("A checkpoint takes no adapters.", "Give --adapter or --checkpoint.")
    work = open_workspace(request)
    if checkpoint is not None:
        model, name, _ = work.checkpoint(checkpoint)
        logits = held_out_logits(model, work.dataset)
        require_finite(logits, "Its weights are too large, or not numbers.")
        return {**evaluation_of(work.dataset, work.sealed, [], logits), "checkpoint": name}
    model, used = work.adapted(adapters, allow_unsealed)
    logits = held_out_logits(model, work.dataset)
    require_finite(logits, "Choose a smaller --strength.")
    return evaluation_of(work.dataset, work.sealed, used, logits)


def verify(request: Request, adapters: Sequence[str] = ()) -> dict[str, Any]:
    """Prove everything again from the files: the base, and `adapters`; if none is named, all of them and all
    checkpoints.

    Returns:
        The findings, with `passed` overall and `failures`, a sentence for each. Nothing is written.

    Raises:
        RunError: something is missing altogether, or belongs to another base.
    """
    try:
        work = open_workspace(request)
    except AlteredError as error:
        failed = [error.cause]
        return {"passed": False, "failures": failed, "base": {"passed": False}, "adapters": [], "checkpoints": []}
    names = list(dict.fromkeys(adapters)) or work.run.adapter_names()
    plain = held_out_logits(work.base, work.dataset)
    wrong = _unlike_stored(work, work.run.base, plain)
    facts = {"passed": not wrong, "seal": work.sealed.sha256, "tensors": len(work.sealed.tensors)}
    entries = [_verify_adapter(work, name, plain) for name in names]
    networks = [] if adapters else [_verify_checkpoint(work, name) for name in work.run.checkpoint_names()]
    failed = [f"base: {clause}" for clause in wrong]
    failed += [f"{entry['name']}: {clause}" for entry in [*entries, *networks] for clause in entry["failures"]]
    return {
        "passed": not failed,
        "failures": failed,
        "dataset": work.dataset.name,
        "base": facts,
        "adapters": entries,
        "checkpoints": networks,
    }


def _finished_base(run: Run, request: Request) -> dict[str, Any]:
    run.require_base()
    run.tidy()
    record = run.record()
    sections = ("seed", "data", "model", "pretrain")  # what made the base; the rest belongs to an adapter
    request.refuse_contradictions(record["settings"], sections, record["dataset"]["name"], run.base)
    log.info("%s is finished: skipped.", run.base)
    return {**run.evaluation(), "run": str(request.run), "seconds": record["seconds"]}


def _verify_adapter(work: Workspace, name: str, plain: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    try:
        work.run.require_adapter(name)
        below = work.run.on_top_of(name)
        if missing := [one for one in below if one not in work.run.adapter_names()]:
            clause = f"it was trained on top of {', '.join(missing)}, which is not in the run"
            return {"name": name, "passed": False, "failures": [clause]}
        adapted, _ = work.adapted([Applied(one) for one in (*below, name)])
    except AlteredError as error:
        return {"name": name, "passed": False, "failures": [error.cause]}
    findings, logits = prove(work.base, work.sealed, adapted, work.images, plain)
    wrong = failures(findings) + _unlike_stored(work, work.run.adapter(name), logits)
    return {"name": name, **findings, "passed": not wrong, "failures": wrong}


def _verify_checkpoint(work: Workspace, name: str) -> dict[str, Any]:
    try:
        work.run.require_checkpoint(name)
        work.require_same_base(work.run.checkpoint(name))
        model, sealed = load_network(standing(work.run.checkpoint(name)) / WEIGHTS, work.device)
    except AlteredError as error:
        return {"name": name, "passed": False, "failures": [error.cause]}
    wrong = _unlike_stored(work, work.run.checkpoint(name), held_out_logits(model, work.dataset))
    return {"name": name, "seal": sealed.sha256, "passed": not wrong, "failures": wrong}


def _unlike_stored(work: Workspace, place: Path, logits: Mapping[str, torch.Tensor]) -> list[str]:
    """What of the stored logits and evaluation does not follow from the weights, a clause each."""
    stored, splits, wrong = work.run.logits(place), work.run.evaluation(place)["splits"], []
    for split, part in work.dataset.held_out.items():
        tolerance = 10 * TOLERANCE * float(logits[split].abs().max())  # they may come from another machine
        if not torch.allclose(stored[split], logits[split], rtol=0, atol=tolerance):  # False for NaN
            wrong.append(f"the stored logits of {split} are not those of its weights")
        elif splits[split] != summarise(stored[split], part.labels):
            wrong.append(f"the stored evaluation of {split} is not that of its logits")
    return wrong
