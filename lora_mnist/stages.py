"""The pipeline: pretrain, evaluate, finetune, verify. Each reads the run, does one thing, writes the run, and returns
its result as a document ready for JSON."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lora_mnist import data
from lora_mnist.checkpoint import load_network
from lora_mnist.config import OF_ADAPTERS, Layer, Settings, TrainingSettings
from lora_mnist.device import prepare
from lora_mnist.documents import Twin, analysis_of, environment, evaluation_of, record_of_run, record_of_tuning
from lora_mnist.errors import AlteredError, ProofError, RunError, UsageError
from lora_mnist.evaluate import require_finite, summarise
from lora_mnist.guard import choose, require_val
from lora_mnist.integrity import seal
from lora_mnist.lora.adapters import parameter_table
from lora_mnist.model import MLP
from lora_mnist.peft_format import save_adapter
from lora_mnist.proof import TOLERANCE, failures, prove
from lora_mnist.recipe import train_adapter, train_all_weights, train_base
from lora_mnist.request import Applied, Request
from lora_mnist.rundir import WEIGHTS, Outcome, Run
from lora_mnist.train import learning_rates
from lora_mnist.workspace import Workspace, held_out_logits, open_workspace

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

    started = time.perf_counter()
    model, losses = train_base(settings, dataset, device, request.quiet)
    seconds = round(time.perf_counter() - started, 2)
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


def finetune(
    request: Request, resume: bool = False, on_top_of: Sequence[str] = (), twin: bool = False
) -> dict[str, Any]:
    """Inject LoRA, train it on one digit, prove that the base is untouched, evaluate, save.

    Args:
        resume: return a finished adapter as it is.
        on_top_of: adapters of the run that are on, frozen, while this one trains; it is compared with them.
        twin: train a second one, with the digit at its natural share, and compare the two on the same images.

    Returns:
        The document of the adapter, with `kept`. It is False if no strength met the guard; nothing is saved then.

    Raises:
        ProofError: the proof failed. The adapter is then not kept.
        RunError: `on_top_of` are not adapters of the run, trained on top of each other in that order.
        UsageError: there is a guard, but no `val` to judge by.
    """
    work = open_workspace(request)
    run, settings = work.run, work.settings
    stack = list(dict.fromkeys(on_top_of))
    work.require_stack(stack)
    digit = work.target_digit(stack)
    name = settings.finetune.name or _free_name(run, f"digit{digit}-r{settings.finetune.rank}", digit, stack)
    if resume and name in run.adapter_names() and not request.force:
        return _finished_adapter(run, name, digit, stack, request)
    run.require_unused(run.adapter(name), request.force)
    require_val(settings.finetune.guard, work.dataset.val)
    run.require_writable()
    run.tidy()
    started = time.perf_counter()
    start, used = work.adapted([Applied(one) for one in stack])
    before = work.logits_of_stack(stack)
    adapted, losses = train_adapter(start, name, digit, settings, work.dataset, request.quiet)
    guard = choose(adapted, name, settings.finetune.guard, before.get("val"), work.dataset.val, digit)
    seconds = round(time.perf_counter() - started, 2)
    if guard["strength"] is None:
        return {"kept": False, "name": name, "digit": digit, "guard": guard, "seconds": seconds}
    facts = {
        "weakest_on_val": settings.finetune.digit == "weakest",
        "seed": settings.seed,
        "seconds": seconds,
        "guard": guard,
        "on_top_of": stack,
    }
    chosen = {**settings.finetune.model_dump(mode="json"), "digit": digit, "name": name}
    made = Made("lora", name, digit, chosen, facts, losses, settings.finetune)
    if twin:
        made = replace(made, twin=_train_twin(work, start, before, name, digit, settings, request.quiet))
    return keep_adapter(work, adapted, made, used)


@dataclass(frozen=True)
class Made:
    """How an adapter came about.

    Attributes:
        method, name, digit, settings: as in finetune.json.
        facts: further entries of that document.
        losses, recipe: of its training, if it was trained.
        twin: if there is one.
    """

    method: str
    name: str
    digit: int
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    losses: Sequence[float] = ()
    recipe: TrainingSettings | None = None
    twin: Twin | None = None


def keep_adapter(
    work: Workspace, adapted: MLP, made: Made, on_top_of: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Prove the adapters in `adapted`, evaluate the one that is new, and save it; the result of a stage.

    Args:
        on_top_of: the adapters in `adapted` that are not new, as evaluation.json has them.

    Raises:
        ProofError: the proof failed; nothing is saved.
        UsageError: the logits are not finite; nor here.
    """
    findings, logits = prove(work.base, work.sealed, adapted, work.images, held_out_logits(work.base, work.dataset))
    require_finite(logits, "Choose a lower --learning-rate." if made.losses else "Check the network it is made from.")
    if not findings["passed"]:
        raise ProofError(f"The adapter was not kept: {failures(findings)[0]}.", "This is a bug; please report it.")
    table = parameter_table(adapted, made.name)
    environs = {**made.facts, **environment(work.device)}
    document = record_of_tuning(made.method, made.name, made.digit, made.settings, table, findings, **environs)
    used = [*on_top_of, {"name": made.name, "strength": 1.0}]
    evaluation = evaluation_of(work.dataset, work.sealed, used, logits)
    before = work.logits_of_stack([one["name"] for one in on_top_of])
    analysis = analysis_of(before, logits, work.labels, made.digit, made.twin)
    rates = learning_rates(made.recipe, len(made.losses)) if made.recipe else []
    documents = {"finetune.json": document, "analysis.json": analysis}
    outcome = Outcome(evaluation, logits, made.losses, rates, documents)
    work.run.save_adapter(made.name, lambda folder: save_adapter(folder, adapted, made.name, work.sealed), outcome)
    return _result(document, analysis, evaluation)


def finetune_full(request: Request) -> dict[str, Any]:
    """Train all weights of a copy of the base as `finetune` would train an adapter, and save it beside the base.

    It is the yardstick for what an adapter reaches: the same batches, the same steps, no limit on the rank, no guard.
    """
    work = open_workspace(request)
    run, settings = work.run, work.settings
    digit = work.target_digit()
    name = settings.finetune.name or f"digit{digit}-full"
    run.require_unused(run.checkpoint(name), request.force)
    run.require_writable()
    run.tidy()
    started = time.perf_counter()
    tuned, losses = train_all_weights(work.base, digit, settings, work.dataset, request.quiet)
    seconds = round(time.perf_counter() - started, 2)
    logits = held_out_logits(tuned, work.dataset)
    require_finite(logits, "Choose a lower --learning-rate.")
    count = sum(parameter.numel() for parameter in tuned.parameters())
    recipe = settings.finetune.model_copy(update={"learning_rate": settings.finetune.full_learning_rate})
    chosen = recipe.model_dump(mode="json", exclude={*OF_ADAPTERS, "full_learning_rate"})
    document = record_of_tuning(
        "full",
        name,
        digit,
        {**chosen, "digit": digit, "name": name},
        {"base": count, "trained": count},
        None,
        weakest_on_val=settings.finetune.digit == "weakest",
        seed=settings.seed,
        seconds=seconds,
        **environment(work.device),
    )
    evaluation = {**evaluation_of(work.dataset, work.sealed, [], logits), "checkpoint": name}
    analysis = analysis_of(run.logits(), logits, work.labels, digit)
    documents = {"finetune.json": document, "analysis.json": analysis}
    rates = learning_rates(recipe, len(losses))
    file = run.save_checkpoint(name, tuned, Outcome(evaluation, logits, losses, rates, documents))
    return {**_result(document, analysis, evaluation), "file": str(file)}


def repair(request: Request, rounds: int) -> list[dict[str, Any]]:
    """Repair the weakest digit, look again with that adapter on, repair the next on top; at most `rounds` times.

    It ends early when a round is not kept. Rounds whose adapter is there already are not done again.

    Raises:
        UsageError: there are several rounds, but one digit or one name is asked for.
    """
    require_rounds(request, rounds)
    results: list[dict[str, Any]] = []
    while len(results) < rounds and all(result["kept"] for result in results):
        results.append(finetune(request, resume=True, on_top_of=[result["name"] for result in results]))
    return results


def require_rounds(request: Request, rounds: int) -> None:
    """Raises UsageError as `repair` does, before anything is trained."""
    if rounds < 1:
        raise UsageError(f"`rounds` (={rounds}) must be a whole number from 1.", "Correct that value.")
    stored = _stored_settings(Run(request.run))
    settings = request.settings(stored, stored["data"]["dataset"] if stored else "mnist")
    if rounds > 1 and (settings.finetune.digit != "weakest" or settings.finetune.name):
        raise UsageError(
            f"`rounds` (={rounds}) looks for the weakest digit anew each time, but a digit or name is set.",
            "Use --digit weakest and no --name.",
        )


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


def _result(document: Mapping[str, Any], analysis: Mapping[str, Any], evaluation: Any) -> dict[str, Any]:
    rest = {key: value for key, value in analysis.items() if key not in ("schema_version", "splits")}
    return {"kept": True, **document, "comparison": analysis["splits"], **rest, "evaluation": evaluation}


def _free_name(run: Run, name: str, digit: int, stack: Sequence[str]) -> str:
    """`name`; on top of others, where a digit may be repaired again, with the first number that makes it new or that
    belongs to this very round of an earlier run."""
    if not stack:
        return name
    there = run.adapter_names()
    for free in (name, *(f"{name}-{i}" for i in range(2, len(there) + 3))):
        if free not in there:
            return free
        made = run.document(run.adapter(free), "finetune.json")
        if made["on_top_of"] == list(stack) and made["digit"] == digit:
            return free
    raise AssertionError("one of them is always free")


def _train_twin(
    work: Workspace,
    start: MLP,
    before: Mapping[str, torch.Tensor],
    name: str,
    digit: int,
    settings: Settings,
    quiet: bool,
) -> Twin:
    """An adapter that differs in one thing: the digit has its natural share of every batch."""
    share = float((work.dataset.train.labels == digit).float().mean())
    natural = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"focus": share})})
    twin, _ = train_adapter(start, name, digit, natural, work.dataset, quiet)
    guard = choose(twin, name, settings.finetune.guard, before.get("val"), work.dataset.val, digit)
    logits = before if guard["strength"] is None else held_out_logits(twin, work.dataset)
    require_finite(logits, "Choose a lower --learning-rate.")
    return Twin(guard["strength"], logits)


def _finished_adapter(run: Run, name: str, digit: int, on_top_of: Sequence[str], request: Request) -> dict[str, Any]:
    run.require_adapter(name)
    place = run.adapter(name)
    document = run.document(place, "finetune.json")
    if document["digit"] != digit:
        raise UsageError(f"{place} repairs {document['digit']}, not {digit}.", "Give another --name, or use --force.")
    if document["on_top_of"] != list(on_top_of):
        found, wanted = (", ".join(names) or "the base" for names in (document["on_top_of"], on_top_of))
        raise UsageError(f"{place} was trained on top of {found}, not of {wanted}.", "Choose another --run.")
    stored = {"seed": document["seed"], "finetune": document["settings"]}
    request.refuse_contradictions(stored, ("seed", "finetune"), run.record()["dataset"]["name"], place)
    log.info("%s is finished: skipped.", place)
    return _result(document, run.document(place, "analysis.json"), run.evaluation(place))


def _stored_settings(run: Run) -> Layer | None:
    try:
        run.require_base()
        return run.record()["settings"]
    except RunError:
        return None  # no run yet, or one that --force is about to replace because it is damaged


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
