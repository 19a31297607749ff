"""The pipeline: pretrain, evaluate, finetune, verify. Each reads the run, does one thing, writes the run, and returns
its result as a document ready for JSON."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_mnist import data
from lora_mnist.config import Layer, Settings
from lora_mnist.device import prepare
from lora_mnist.documents import SCHEMA, environment, evaluation_of, record_of_adapter, record_of_run
from lora_mnist.errors import AlteredError, ProofError, RunError, UsageError
from lora_mnist.evaluate import compare, logits_of, summarise, weakest_digit
from lora_mnist.integrity import Seal, seal
from lora_mnist.lora import parameter_table, set_strength
from lora_mnist.model import MLP
from lora_mnist.proof import TOLERANCE, failures, prove
from lora_mnist.recipe import lora_config, train_adapter, train_base
from lora_mnist.request import Request
from lora_mnist.rundir import Outcome, Run
from lora_mnist.train import learning_rates

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
    logits = _held_out_logits(model, dataset)
    _require_finite(logits, "Choose a lower --learning-rate.")
    sealed = seal(model.state_dict())
    evaluation = evaluation_of(dataset, sealed, [], logits)
    record = record_of_run(settings, dataset, sealed, device, seconds)
    rates = learning_rates(settings.pretrain, len(losses))
    removed = run.save_base(model, record, Outcome(losses, rates, evaluation, logits))
    if removed:
        log.warning("Removed the adapters of the old base: %s.", ", ".join(removed))
    return {**evaluation, "run": str(request.run), "seconds": seconds}


def evaluate(request: Request, adapters: Sequence[str] = (), strength: float | None = None) -> dict[str, Any]:
    """Confusion matrix and errors per digit of the base, or of the base with adapters; nothing is stored.

    Args:
        strength: factor on every one of `adapters`; None is 1, as trained.

    Raises:
        UsageError: a strength without an adapter, or one that is not finite.
    """
    run, settings = _open(request)
    if strength is not None and not adapters:
        raise UsageError(f"`strength` (={strength}) needs an adapter to act on.", "Name one with --adapter.")
    strength = 1.0 if strength is None else strength
    for name in adapters:
        run.require_adapter(name)
    device = prepare(request.device, request.threads)
    dataset = _load_data(run, settings, request, device)
    model, sealed = run.load_base(device)
    for name in dict.fromkeys(adapters):
        run.load_adapter(model, sealed, name)
        set_strength(model, name, strength)
    used = [{"name": name, "strength": strength} for name in dict.fromkeys(adapters)]
    logits = _held_out_logits(model, dataset)
    _require_finite(logits, "Choose a smaller --strength.")
    return evaluation_of(dataset, sealed, used, logits)


def finetune(request: Request, resume: bool = False) -> dict[str, Any]:
    """Inject LoRA, train it on one digit, prove that the base is untouched, evaluate, save.

    With `resume`, a finished adapter is returned as it is.

    Raises:
        ProofError: the proof failed. The adapter is then not kept.
    """
    run, settings = _open(request)
    device = prepare(request.device, request.threads)
    dataset = _load_data(run, settings, request, device)
    digit = _target_digit(run, settings, dataset)
    name = settings.finetune.name or f"digit{digit}-r{settings.finetune.rank}"
    if run.has_adapter(name) and not request.force:
        if resume:
            return _finished_adapter(run, name, digit, request)
        raise RunError(
            f"{run.adapter(name)} is finished already.",
            "Look at it with `lora-mnist report`, give this one another --name, or train it again with --force.",
        )
    run.require_writable()
    run.tidy()
    base, sealed = run.load_base(device)
    config = lora_config(settings)
    adapted, updates, losses, seconds = train_adapter(base, name, digit, settings, dataset, request.quiet)
    images = {split: part.images for split, part in dataset.held_out.items()}
    findings, logits = prove(base, sealed, adapted, name, config, images, _held_out_logits(base, dataset))
    _require_finite(logits, "Choose a lower --learning-rate.")
    if not findings["passed"]:
        raise ProofError(f"The adapter was not kept: {failures(findings)[0]}.", "This is a bug; please report it.")
    document = record_of_adapter(settings, config, name, digit, parameter_table(adapted, name), findings)
    document |= {**environment(device), "seconds": seconds}
    evaluation = evaluation_of(dataset, sealed, [{"name": name, "strength": 1.0}], logits)
    labels = {split: part.labels for split, part in dataset.held_out.items()}
    analysis = {"schema_version": SCHEMA, "splits": compare(run.logits(), logits, labels, digit)}
    outcome = Outcome(losses, learning_rates(settings.finetune, len(losses)), evaluation, logits)
    run.save_adapter(name, config, updates, sealed, {"finetune.json": document, "analysis.json": analysis}, outcome)
    return {**document, "comparison": analysis["splits"], "evaluation": evaluation}


def verify(request: Request, adapters: Sequence[str] = ()) -> dict[str, Any]:
    """Prove everything again from the files, for the base and for `adapters` (all, if none is named).

    Returns:
        The findings, with `passed` overall and `failures`, a sentence for each. Nothing is written.

    Raises:
        RunError: something is missing altogether, or belongs to another base.
    """
    run = Run(request.run)
    try:
        run, settings = _open(request)
        names = list(dict.fromkeys(adapters)) or run.adapter_names()
        device = prepare(request.device, request.threads)
        dataset = _load_data(run, settings, request, device)
        base, sealed = run.load_base(device)
    except AlteredError as error:
        return {"passed": False, "failures": [error.cause], "base": {"passed": False}, "adapters": []}
    plain = _held_out_logits(base, dataset)
    wrong = _unlike_stored(run, None, dataset, plain)
    facts = {"passed": not wrong, "seal": sealed.sha256, "tensors": len(sealed.tensors)}
    entries = [_verify_adapter(run, name, base, sealed, dataset, plain) for name in names]
    failed = [f"base: {clause}" for clause in wrong]
    failed += [f"{entry['name']}: {clause}" for entry in entries for clause in entry["failures"]]
    return {
        "passed": not failed,
        "failures": failed,
        "dataset": dataset.name,
        "base": facts,
        "adapters": entries,
    }


def _open(request: Request) -> tuple[Run, Settings]:
    """The run and the settings for a stage after pretraining. Raises UsageError if what was asked contradicts it."""
    run = Run(request.run)
    run.require_base()
    stored = run.record()["settings"]
    name = stored["data"]["dataset"]
    request.refuse_contradictions(stored, ("data", "model"), name, run.base)
    return run, request.settings(stored, name)


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
    document = run.document(name, "finetune.json")
    if document["digit"] != digit:
        raise UsageError(
            f"{run.adapter(name)} repairs {document['digit']}, not {digit}.", "Give another --name, or use --force."
        )
    stored = {"seed": document["seed"], "finetune": document["settings"]}
    request.refuse_contradictions(stored, ("seed", "finetune"), run.record()["dataset"]["name"], run.adapter(name))
    log.info("%s is finished: skipped.", run.adapter(name))
    comparison = run.document(name, "analysis.json")["splits"]
    return {**document, "comparison": comparison, "evaluation": run.evaluation(name)}


def _stored_settings(run: Run) -> Layer | None:
    try:
        run.require_base()
        return run.record()["settings"]
    except RunError:
        return None  # no run yet, or one that --force is about to replace because it is damaged


def _load_data(run: Run, settings: Settings, request: Request, device: torch.device) -> data.Dataset:
    chosen, stored = settings.data, run.record()["dataset"]
    data.choose(chosen.dataset, request.folder, request.quiet)
    dataset = data.load(chosen.dataset, request.folder, chosen.val_share, chosen.split_seed, device)
    if dataset.sha256 != stored["sha256"]:
        raise RunError(f"{run.path} was trained on other images of the same name.", "Choose another --run.")
    return dataset


def _target_digit(run: Run, settings: Settings, dataset: data.Dataset) -> int:
    digit = settings.finetune.digit
    if digit != "weakest":
        return digit
    if not len(dataset.val):
        raise UsageError("The weakest digit is found on `val`, and this run has none.", "Name one with --digit.")
    digit = weakest_digit(run.logits()["val"], dataset.val.labels)
    log.info("The weakest digit on val is %d.", digit)
    return digit


def _require_finite(logits: Mapping[str, torch.Tensor], way_out: str) -> None:
    """Weights can be finite and yet so large that the logits are not."""
    if not all(bool(part.isfinite().all()) for part in logits.values()):
        raise UsageError("The network's logits are no longer finite numbers.", way_out)


def _held_out_logits(model: MLP, dataset: data.Dataset) -> dict[str, torch.Tensor]:
    return {split: logits_of(model, part.images) for split, part in dataset.held_out.items()}


def _verify_adapter(
    run: Run, name: str, base: MLP, sealed: Seal, dataset: data.Dataset, plain: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    try:
        run.require_adapter(name)
        adapted = copy.deepcopy(base)
        config = run.load_adapter(adapted, sealed, name)
    except AlteredError as error:
        return {"name": name, "passed": False, "failures": [error.cause]}
    images = {split: part.images for split, part in dataset.held_out.items()}
    findings, logits = prove(base, sealed, adapted, name, config, images, plain)
    wrong = failures(findings) + _unlike_stored(run, name, dataset, logits)
    return {"name": name, **findings, "passed": not wrong, "failures": wrong}


def _unlike_stored(
    run: Run, adapter: str | None, dataset: data.Dataset, logits: Mapping[str, torch.Tensor]
) -> list[str]:
    """What of the stored logits and evaluation does not follow from the weights, a clause each."""
    stored, splits, wrong = run.logits(adapter), run.evaluation(adapter)["splits"], []
    for split, part in dataset.held_out.items():
        tolerance = 10 * TOLERANCE * float(logits[split].abs().max())  # they may come from another machine
        if not torch.allclose(stored[split], logits[split], rtol=0, atol=tolerance):  # False for NaN
            wrong.append(f"the stored logits of {split} are not those of its weights")
        elif splits[split] != summarise(stored[split], part.labels):
            wrong.append(f"the stored evaluation of {split} is not that of its logits")
    return wrong
