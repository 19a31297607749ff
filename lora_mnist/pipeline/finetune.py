"""Repairs: train an adapter (or, to compare, all weights) on one digit, judge, prove and keep it; and again on top."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lora_mnist.errors import ProofError, UsageError
from lora_mnist.evaluation.analysis import Twin, analyse, inspect, pictures
from lora_mnist.evaluation.metrics import require_finite
from lora_mnist.evaluation.proof import failures, prove
from lora_mnist.evaluation.strength import choose, require_val
from lora_mnist.lora.adapters import parameter_table
from lora_mnist.lora.peft import save_adapter
from lora_mnist.pipeline.workspace import Workspace, held_out_logits, open_workspace
from lora_mnist.runs.records import environment, evaluation_of, record_of_tuning
from lora_mnist.runs.rundir import Outcome, Run
from lora_mnist.settings.config import OF_ADAPTERS, Settings
from lora_mnist.settings.request import Applied, Request
from lora_mnist.training.loop import History
from lora_mnist.training.model import MLP
from lora_mnist.training.train import train_adapter, train_all_weights

log = logging.getLogger("lora_mnist")


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
    start, _ = work.adapted([Applied(one) for one in stack])
    before = work.logits_of_stack(stack)
    adapted, history = train_adapter(start, name, digit, settings, work.dataset, request.quiet)
    gain = 1 if stack else 0  # one adapter more has to earn its place
    guard = choose(adapted, name, settings.finetune.guard, before.get("val"), work.dataset.val, digit, gain)
    seconds = round(time.perf_counter() - started, 2)
    if guard["strength"] is None:
        return {"kept": False, "name": name, "digit": digit, "guard": guard, "seconds": seconds}
    facts = {
        "weakest_on_val": settings.finetune.digit == "weakest",
        "seed": settings.seed,
        "seconds": seconds,
        "guard": guard,
    }
    chosen = {**settings.finetune.model_dump(mode="json"), "digit": digit, "name": name}
    other = _train_twin(work, start, before, name, digit, settings, gain, request.quiet) if twin else None
    made = Made("lora", name, digit, chosen, facts, history, other, stack)
    return keep_adapter(work, adapted, made)


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
    tuned, history = train_all_weights(work.base, digit, settings, work.dataset, request.quiet)
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
    analysis = analyse(run.logits(), logits, work.labels, digit)
    documents = {"finetune.json": document, "analysis.json": analysis}
    outcome = Outcome(evaluation, logits, history.losses, history.rates, documents)
    file = run.save_checkpoint(name, tuned, outcome)
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
    stored = Run(request.run).stored_settings()
    settings = request.settings(stored, stored["data"]["dataset"] if stored else "mnist")
    if rounds > 1 and (settings.finetune.digit != "weakest" or settings.finetune.name):
        raise UsageError(
            f"`rounds` (={rounds}) looks for the weakest digit anew each time, but a digit or name is set.",
            "Use --digit weakest and no --name.",
        )


@dataclass(frozen=True)
class Made:
    """How an adapter came about.

    Attributes:
        method, name, digit, settings, on_top_of: as in finetune.json.
        facts: further entries of that document.
        history: of its training; empty if it was not trained.
        twin: if there is one.
    """

    method: str
    name: str
    digit: int
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    history: History
    twin: Twin | None = None
    on_top_of: Sequence[str] = ()


def keep_adapter(work: Workspace, adapted: MLP, made: Made) -> dict[str, Any]:
    """Prove the adapters in `adapted`, evaluate the new one on top of the others, and save it; the result of a stage.

    Raises:
        ProofError: the proof failed; nothing is saved.
        UsageError: the logits are not finite; nor here.
    """
    findings, logits = prove(work.base, work.sealed, adapted, work.images, work.logits_of_stack(()))
    trained = bool(made.history.losses)
    require_finite(logits, "Choose a lower --learning-rate." if trained else "Check the network it is made from.")
    if not findings["passed"]:
        raise ProofError(f"The adapter was not kept: {failures(findings)[0]}.", "This is a bug; please report it.")
    table = asdict(parameter_table(adapted, made.name))
    environs = {**made.facts, "on_top_of": list(made.on_top_of), **environment(work.device)}
    document = record_of_tuning(made.method, made.name, made.digit, made.settings, table, findings, **environs)
    used = [{"name": name, "strength": 1.0} for name in (*made.on_top_of, made.name)]
    evaluation = evaluation_of(work.dataset, work.sealed, used, logits)
    analysis = analyse(work.logits_of_stack(made.on_top_of), logits, work.labels, made.digit, made.twin)
    guard = made.facts.get("guard", {})
    tried = guard["tried"] if guard.get("strength") == 1 else []  # those were strengths of what was kept
    learnt, directions = inspect(adapted, made.name, made.digit, work.dataset, analysis, tried)
    analysis |= learnt
    shown = {"examples": pictures(analysis, work.dataset), "directions": directions}
    documents = {"finetune.json": document, "analysis.json": analysis}
    outcome = Outcome(evaluation, logits, made.history.losses, made.history.rates, documents, shown)
    work.run.save_adapter(made.name, lambda folder: save_adapter(folder, adapted, made.name, work.sealed), outcome)
    return _result(document, analysis, evaluation)


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
    gain: int,
    quiet: bool,
) -> Twin:
    """An adapter that differs in one thing: the digit has its natural share of every batch."""
    share = float((work.dataset.train.labels == digit).float().mean())
    natural = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"focus": share})})
    twin, _ = train_adapter(start, name, digit, natural, work.dataset, quiet)
    guard = choose(twin, name, settings.finetune.guard, before.get("val"), work.dataset.val, digit, gain)
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
