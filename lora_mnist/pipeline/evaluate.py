"""Look at a network without storing anything: the base, the base with adapters, or a network made from it."""

from collections.abc import Sequence

from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import held_out_logits, require_finite
from lora_mnist.pipeline.workspace import Workspace, name_from
from lora_mnist.runs.schemas import Evaluation
from lora_mnist.settings.request import Applied


def evaluate(
    work: Workspace, adapters: Sequence[Applied] = (), checkpoint: str | None = None, allow_unverified: bool = False
) -> Evaluation:
    """Confusion matrix and errors per digit, of the base with `adapters`, or of a `checkpoint` by name or file.

    Raises:
        UsageError: both are given, or the logits are not finite.
        LoRAError: a strength is not finite.
        RunError: one of them is missing, damaged, or made from another base.
    """
    if adapters and checkpoint is not None:
        raise UsageError("A checkpoint takes no adapters.", "Give --adapter or --checkpoint.")
    if checkpoint is not None:
        model, saved = work.checkpoint(checkpoint)
        logits = held_out_logits(model, work.dataset)
        require_finite(logits, "Its weights are too large, or not numbers.")
        return work.evaluation(logits, checkpoint=name_from(saved.name))
    model, used = work.adapted(adapters, allow_unverified)
    logits = held_out_logits(model, work.dataset)
    require_finite(logits, "Choose a smaller --strength.")
    return work.evaluation(logits, used)
