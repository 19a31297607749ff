"""The pipeline: pretrain, evaluate, finetune, verify. Each reads the run, does one thing, writes the run, and returns
its result as a document ready for JSON."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_mnist import data
from lora_mnist.checkpoint import load_network
from lora_mnist.config import Layer
from lora_mnist.device import prepare
from lora_mnist.documents import SCHEMA, environment, evaluation_of, record_of_run, record_of_tuning
from lora_mnist.errors import AlteredError, ProofError, RunError, UsageError
from lora_mnist.evaluate import compare, summarise
from lora_mnist.integrity import seal
from lora_mnist.lora.adapters import parameter_table
from lora_mnist.peft_format import save_adapter
from lora_mnist.proof import TOLERANCE, failures, prove
from lora_mnist.recipe import lora_config, train_adapter, train_all_weights, train_base
from lora_mnist.request import Applied, Request
from lora_mnist.rundir import WEIGHTS, Outcome, Run
from lora_mnist.train import learning_rates
from lora_mnist.workspace import Workspace, held_out_logits, open_workspace, require_finite

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
    stored = _stored_settings(run)
    wanted = request.wanted_dataset(stored)
    run.require_writable()
    device = prepare(request.device, request.threads)
    name = data.choose(wanted, request.folder, request.quiet)
    if stored and stored["data"]["dataset"] != name:
        stored = None  # made for another data set, which has its own epochs and steps
    settings = request.settings(stored, name)
    dataset = data.load(name, request.folder, settings.data.val_share, settings.data.split_seed, device)

    model, losses, seconds = train_base(settings, dataset, device, request.quiet)
    logits = held_out_logits(model, dataset)
    require_finite(logits, "Choose a lower --learning-rate.")
    sealed = seal(model.state_dict())
    evaluation = evaluation_of(dataset, sealed, [], logits)
    record = record_of_run(settings, dataset, sealed, device, seconds)
    rates = learning_rates(settings.pretrain, len(losses))
    removed = run.save_base(model, record, Outcome(evaluation, logits, losses, rates))
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
    if adapters and checkpoint:
        raise UsageError("A checkpoint takes no adapters.", "Give --adapter or --checkpoint.")
    work = open_workspace(request)
    if checkpoint:
        model, name = work.checkpoint(checkpoint)
        logits = held_out_logits(model, work.dataset)
        return {**evaluation_of(work.dataset, work.sealed, [], logits), "checkpoint": name}
    model, used = work.adapted(adapters, allow_unsealed)
    logits = held_out_logits(model, work.dataset)
    require_finite(logits, "Choose a smaller --strength.")
    return evaluation_of(work.dataset, work.sealed, used, logits)


def finetune(request: Request, resume: bool = False) -> dict[str, Any]:
    """Inject LoRA, train it on one digit, prove that the base is untouched, evaluate, save.

    With `resume`, a finished adapter is returned as it is.

    Raises:
        ProofError: the proof failed. The adapter is then not kept.
    """
    work = open_workspace(request)
    run, settings = work.run, work.settings
    digit = work.target_digit()
    name = settings.finetune.name or f"digit{digit}-r{settings.finetune.rank}"
    if resume and name in run.adapter_names() and not request.force:
        return _finished_adapter(run, name, digit, request)
    run.require_unused(run.adapter(name), request.force)
    run.require_writable()
    run.tidy()
    adapted, losses, seconds = train_adapter(work.base, name, digit, settings, work.dataset, request.quiet)
    alpha = lora_config(settings).alpha
    chosen = {**settings.finetune.model_dump(mode="json"), "alpha": alpha, "digit": digit, "name": name}
    facts = {"weakest_on_val": settings.finetune.digit == "weakest", "seed": settings.seed, "seconds": seconds}
    rates = learning_rates(settings.finetune, len(losses))
    return keep_adapter(work, adapted, "lora", name, digit, chosen, losses, rates, **facts)


def keep_adapter(
    work: Workspace,
    adapted: torch.nn.Module,
    method: str,
    name: str,
    digit: int,
    settings: Mapping[str, Any],
    losses: Sequence[float] = (),
    rates: Sequence[float] = (),
    **facts: Any,
) -> dict[str, Any]:
    """Prove adapter `name` of `adapted`, evaluate it against the base, and save it; the result of a stage.

    Raises:
        ProofError: the proof failed; nothing is saved.
        UsageError: the logits are not finite; nor here.
    """
    plain = held_out_logits(work.base, work.dataset)
    findings, logits = prove(work.base, work.sealed, adapted, name, work.images, plain)
    require_finite(logits, "Choose a lower --learning-rate.")
    if not findings["passed"]:
        raise ProofError(f"The adapter was not kept: {failures(findings)[0]}.", "This is a bug; please report it.")
    table = parameter_table(adapted, name)
    document = record_of_tuning(method, name, digit, settings, table, findings, **facts, **environment(work.device))
    evaluation = evaluation_of(work.dataset, work.sealed, [{"name": name, "strength": 1.0}], logits)
    analysis = {"schema_version": SCHEMA, "splits": compare(work.run.logits(), logits, work.labels, digit)}
    documents = {"finetune.json": document, "analysis.json": analysis}
    outcome = Outcome(evaluation, logits, losses, rates, documents)
    work.run.save_adapter(name, lambda folder: save_adapter(folder, adapted, name, work.sealed), outcome)
    return {**document, "comparison": analysis["splits"], "evaluation": evaluation}


def finetune_full(request: Request) -> dict[str, Any]:
    """Train all weights of a copy of the base as `finetune` would train an adapter, and save it beside the base.

    It is the yardstick for what an adapter reaches: the same batches, the same steps, no limit on the rank.
    """
    work = open_workspace(request)
    run, settings = work.run, work.settings
    digit = work.target_digit()
    name = settings.finetune.name or f"digit{digit}-full"
    run.require_unused(run.checkpoint(name), request.force)
    run.require_writable()
    run.tidy()
    tuned, losses, seconds = train_all_weights(work.base, digit, settings, work.dataset, request.quiet)
    logits = held_out_logits(tuned, work.dataset)
    require_finite(logits, "Choose a lower --learning-rate.")
    count = sum(parameter.numel() for parameter in tuned.parameters())
    recipe = settings.finetune.model_copy(update={"learning_rate": settings.finetune.full_learning_rate})
    about_lora = ("rank", "alpha", "rank_pattern", "alpha_pattern", "rslora", "init", "dropout", "targets")
    chosen = recipe.model_dump(mode="json", exclude={*about_lora, "full_learning_rate"})
    facts = {"weakest_on_val": settings.finetune.digit == "weakest", "seed": settings.seed, "seconds": seconds}
    document = record_of_tuning(
        "full",
        name,
        digit,
        {**chosen, "digit": digit, "name": name},
        {"base": count, "trained": count},
        None,
        **facts,
        **environment(work.device),
    )
    evaluation = {**evaluation_of(work.dataset, work.sealed, [], logits), "checkpoint": name}
    analysis = {"schema_version": SCHEMA, "splits": compare(run.logits(), logits, work.labels, digit)}
    documents = {"finetune.json": document, "analysis.json": analysis}
    rates = learning_rates(recipe, len(losses))
    file = run.save_checkpoint(name, tuned, Outcome(evaluation, logits, losses, rates, documents))
    return {**document, "file": str(file), "comparison": analysis["splits"], "evaluation": evaluation}


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


def _finished_adapter(run: Run, name: str, digit: int, request: Request) -> dict[str, Any]:
    run.require_adapter(name)
    place = run.adapter(name)
    document = run.document(place, "finetune.json")
    if document["digit"] != digit:
        raise UsageError(f"{place} repairs {document['digit']}, not {digit}.", "Give another --name, or use --force.")
    stored = {"seed": document["seed"], "finetune": document["settings"]}
    request.refuse_contradictions(stored, ("seed", "finetune"), run.record()["dataset"]["name"], place)
    log.info("%s is finished: skipped.", place)
    comparison = run.document(place, "analysis.json")["splits"]
    return {**document, "comparison": comparison, "evaluation": run.evaluation(place)}


def _stored_settings(run: Run) -> Layer | None:
    try:
        run.require_base()
        return run.record()["settings"]
    except RunError:
        return None  # no run yet, or one that --force is about to replace because it is damaged


def _verify_adapter(work: Workspace, name: str, plain: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    try:
        adapted, _ = work.adapted([Applied(name)])
    except AlteredError as error:
        return {"name": name, "passed": False, "failures": [error.cause]}
    findings, logits = prove(work.base, work.sealed, adapted, name, work.images, plain)
    wrong = failures(findings) + _unlike_stored(work, work.run.adapter(name), logits)
    return {"name": name, **findings, "passed": not wrong, "failures": wrong}


def _verify_checkpoint(work: Workspace, name: str) -> dict[str, Any]:
    try:
        work.run.require_checkpoint(name)
        model, sealed = load_network(work.run.checkpoint(name) / WEIGHTS, work.device)
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
