"""All stages, one after the other: the main job."""

from collections.abc import Callable

from lora_mnist.errors import RunError, UsageError, shown
from lora_mnist.pipeline.finetune import Tuning, finetune
from lora_mnist.pipeline.pretrain import Pretraining, pretrain
from lora_mnist.pipeline.verify import Verification, verify_workspace
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.runs.rundir import Run
from lora_mnist.settings.request import Request
from lora_mnist.settings.strict import Document, Many

MOST_ROUNDS = 100  # far beyond use; without a guard each round is kept, and each is one adapter more

Stage = Pretraining | tuple[Tuning, ...] | Verification


class WholeRun(Document):
    """What every stage came to; a tuning for each round."""

    pretraining: Pretraining
    rounds: Many[Tuning]
    verification: Verification


def run(
    request: Request, rounds: int = 1, show: Callable[[Stage], None] = lambda stage: None
) -> tuple[Workspace, WholeRun]:
    """Pretrain, repair, verify. What is finished is not done again. Returns the run too, for a report.

    Args:
        rounds: repair the weakest digit, look again with that adapter on, repair the next on top; at most so many
            times. It ends early when a round is not kept.
        show: called with what each stage came to, as soon as it is known.

    Raises:
        BusyError: another command writes to the run.
        UsageError: there are several rounds, but one digit or one name is asked for; or as the stages do.
    """
    opened = Run(request.run)
    _require_rounds(request, opened, rounds)
    with opened.writing():  # from the first stage to the last
        work, pretraining = pretrain(request, resume=True, run=opened)
        show(pretraining)
        tunings = repair(work, rounds)
        show(tunings)
        verification = verify_workspace(work)
        show(verification)
    return work, WholeRun(pretraining=pretraining, rounds=tunings, verification=verification)


def repair(work: Workspace, rounds: int) -> tuple[Tuning, ...]:
    """The rounds of `run`; those whose adapter is there already are not done again."""
    tunings: list[Tuning] = []
    while len(tunings) < rounds and all(tuning.kept for tuning in tunings):
        stack = [tuning.record.name for tuning in tunings]
        tunings.append(finetune(work, on_top_of=stack, resume=True))
    return tuple(tunings)


def _require_rounds(request: Request, opened: Run, rounds: int) -> None:
    """Before anything is trained."""
    if not 1 <= rounds <= MOST_ROUNDS:
        raise UsageError(
            f"`rounds` (={shown(rounds)}) must be a whole number from 1 to {MOST_ROUNDS}.", "Correct that value."
        )
    try:
        stored = opened.record.settings
    except RunError:
        stored = None
    settings = request.settings(stored, stored.data.dataset if stored else "mnist")
    if rounds > 1 and (settings.finetune.digit != "weakest" or settings.finetune.name):
        raise UsageError(
            f"`rounds` (={rounds}) looks for the weakest digit anew each time, but a digit or name is set.",
            "Use --digit weakest and no --name.",
        )
