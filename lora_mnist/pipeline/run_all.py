"""All stages, one after the other: the main job."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from lora_mnist.errors import RunError, UsageError, shown
from lora_mnist.evaluation.metrics import compare
from lora_mnist.evaluation.results import BySplit, Comparison
from lora_mnist.pipeline.finetune import FinetuneResult, finetune
from lora_mnist.pipeline.pretrain import PretrainResult, pretrain
from lora_mnist.pipeline.verify import VerifyResult, verify_workspace
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.runs.run import Run
from lora_mnist.settings.config import Document, Many
from lora_mnist.settings.request import Request

STAGES = ("pretrain", "finetune", "verify", "report")  # the last is for the caller, who knows what it looks like
MOST_ROUNDS = 100  # far beyond use; without a guard each round is kept, and each is one adapter more


@dataclass(frozen=True)
class StageDone:
    """A stage, or one round of `finetune`, and how long it took; `skipped` if it was finished before."""

    result: PretrainResult | FinetuneResult | VerifyResult
    seconds: float
    skipped: bool = False


class RunResult(Document):
    """What every stage came to."""

    pretraining: PretrainResult
    rounds: Many[FinetuneResult]
    overall: BySplit[Comparison]  # from the base to all adapters that were kept, together
    verification: VerifyResult


def run(
    request: Request, rounds: int = 1, control: bool = False, show: Callable[[StageDone], None] = lambda done: None
) -> tuple[Workspace, RunResult]:
    """Pretrain, repair, verify. What is finished is not done again. Returns the run too, for a report.

    Args:
        rounds: repair the weakest digit, look again with that adapter on, repair the next on top; at most so many
            times. It ends early when a round is not kept.
        control: train a control of every adapter (see `finetune`).
        show: called with every stage and round as soon as it is over.

    Raises:
        BusyError: another command writes to the run.
        UsageError: there are several rounds, but one digit or one name is asked for; or as the stages do.
    """
    require_rounds(rounds)
    opened = Run(request.run)
    try:
        stored = opened.record.settings
    except RunError:
        stored = None
    recipe = request.settings(stored, stored.data.dataset if stored else "mnist").finetune
    if rounds > 1 and (recipe.digit != "weakest" or recipe.name):
        raise UsageError(
            f"`rounds` (={rounds}) looks for the weakest digit anew each time, but a digit or name is set.",
            "Use --digit weakest and no --name.",
        )
    with opened.writing():  # from the first stage to the last
        there, started = opened.base.is_finished and not request.force, time.perf_counter()
        work, pretraining = pretrain(replace(request, stage=f"1/{len(STAGES)} "), resume=True, run=opened)
        show(StageDone(pretraining, time.perf_counter() - started, there))
        repairs = repair(work, rounds, control, show)
        started = time.perf_counter()
        with replace(work.progress, stage=f"3/{len(STAGES)} ").waiting("verifying"):
            verification = verify_workspace(work)
        show(StageDone(verification, time.perf_counter() - started))
    kept = [one.record.name for one in repairs if one.kept]
    overall = compare(work.logits_with(()), work.logits_with(kept), work.labels, repairs[0].record.digit)
    return work, RunResult(pretraining=pretraining, rounds=repairs, overall=overall, verification=verification)


def repair(
    work: Workspace, rounds: int, control: bool = False, show: Callable[[StageDone], None] = lambda done: None
) -> tuple[FinetuneResult, ...]:
    """The rounds of `run`; those whose adapter is there already are not done again."""
    repairs: list[FinetuneResult] = []
    there = [] if work.request.force else work.run.adapter_names()
    while len(repairs) < rounds and all(one.kept for one in repairs):
        started, below = time.perf_counter(), [one.record.name for one in repairs]
        stage = f"2/{len(STAGES)} " + (f"round {len(repairs) + 1}: " if rounds > 1 else "")
        staged = replace(work, request=replace(work.request, stage=stage))
        last = finetune(staged, below, control, resume=True)
        repairs.append(last)
        show(StageDone(last, time.perf_counter() - started, last.kept and last.record.name in there))
    return tuple(repairs)


def require_rounds(rounds: int) -> None:
    """Raises UsageError if they are too many, or none."""
    if not 1 <= rounds <= MOST_ROUNDS:
        raise UsageError(
            f"`rounds` (={shown(rounds)}) must be a whole number from 1 to {MOST_ROUNDS}.", "Correct that value."
        )
