"""Between adapters and whole networks: merge writes a network without adapters, extract makes an adapter of one."""

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_mnist import SCHEMA
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import missed_claimed_errors, require_finite, summarise
from lora_mnist.files import standing
from lora_mnist.lora.lowrank import Approximation, extract, left_out
from lora_mnist.lora.merging import merged_copy
from lora_mnist.pipeline.finetune import Made, keep_adapter
from lora_mnist.pipeline.workspace import Workspace, held_out_logits, open_workspace
from lora_mnist.runs.records import environment, evaluation_of
from lora_mnist.runs.rundir import Outcome
from lora_mnist.settings.request import Applied, Request
from lora_mnist.training.loop import History


def merge_adapters(request: Request, adapters: Sequence[Applied], allow_unsealed: bool = False) -> dict[str, Any]:
    """Write the base with `adapters` merged into its weights as a network of its own, beside the base.

    Returns:
        What was merged, where it lies, its evaluation, and `largest_difference` of any logit from the unmerged model.

    Raises:
        UsageError: no adapter is given, or the merged weights or logits are not finite.
        RunError: there is a checkpoint of that name already.
    """
    if not adapters:
        raise UsageError("There is nothing to merge.", "Name an adapter with --adapter.")
    work = open_workspace(request)
    model, used = work.adapted(adapters, allow_unsealed)
    name = work.settings.finetune.name or "-".join([*(adapter["name"] for adapter in used), "merged"])
    work.run.require_unused(work.run.checkpoint(name), request.force)
    work.run.require_writable()
    work.run.tidy()
    plain = merged_copy(model)
    before, logits = held_out_logits(model, work.dataset), held_out_logits(plain, work.dataset)
    require_finite(logits, "Choose a smaller --strength.")
    evaluation = {**evaluation_of(work.dataset, work.sealed, [], logits), "checkpoint": name}
    document = {
        "schema_version": SCHEMA,
        "name": name,
        "merged": used,
        "largest_difference": max(float((before[split] - logits[split]).abs().max()) for split in logits),
        "largest_logit": max(float(part.abs().max()) for part in logits.values()),
        **environment(work.device),
    }
    file = work.run.save_checkpoint(name, plain, Outcome(evaluation, logits, documents={"merge.json": document}))
    return {**document, "file": str(file), "evaluation": evaluation}


def extract_adapter(request: Request, rank: int, checkpoint: str | None = None) -> dict[str, Any]:
    """The best adapter of `rank` for what separates a network from the base; proved, evaluated, saved like any other.

    Args:
        checkpoint: a checkpoint of the run or a file; None is the latest that `finetune --full` made.

    Returns:
        The document of the adapter with `extraction`: the singular values of each layer's change and the energy kept,
        how far every tensor moved that an adapter cannot hold, and the errors of both beside those of the base.

    Raises:
        RunError: there is no such checkpoint, or an adapter of that name already.
        UsageError: the rank is out of its range, or the network is not one of the same shape.
    """
    work = open_workspace(request)
    tuned, source, folder = work.checkpoint(checkpoint)
    name = work.settings.finetune.name or f"{source}-r{rank}"
    work.run.require_unused(work.run.adapter(name), request.force)
    work.run.require_writable()
    work.run.tidy()
    digit, weakest = _digit_of(request, work, folder)
    started = time.perf_counter()
    adapted = copy.deepcopy(work.base)
    kept = extract(adapted, name, tuned, rank)
    seconds = round(time.perf_counter() - started, 2)
    theirs = summarise(held_out_logits(tuned, work.dataset)["test"], work.labels["test"])
    extraction = {
        "checkpoint": source,
        "layers": {path: _row(approximation) for path, approximation in kept.items()},
        "left_out": left_out(work.base, tuned),
        "of_checkpoint": {
            "accuracy": theirs["accuracy"],
            **missed_claimed_errors(theirs["confusion"], digit),
        },
    }
    largest = max(approximation.rank for approximation in kept.values())
    settings = {"rank": largest, "alpha": float(largest), "digit": digit, "name": name, "checkpoint": source}
    facts = {"weakest_on_val": weakest, "seed": None, "seconds": seconds, "extraction": extraction}
    return keep_adapter(work, adapted, Made("svd", name, digit, settings, facts, History((), ())))


def _digit_of(request: Request, work: Workspace, folder: Path) -> tuple[int, bool]:
    """The digit to compare by, as asked for or else the one that the checkpoint was tuned on; is it the weakest?"""
    if "digit" not in request.options.get("finetune", {}) and (standing(folder) / "finetune.json").is_file():
        document = work.run.document(folder, "finetune.json")
        return document["digit"], document["weakest_on_val"]
    return work.target_digit(), work.settings.finetune.digit == "weakest"


def _row(approximation: Approximation) -> dict[str, Any]:
    return {
        "rank": approximation.rank,
        "energy": approximation.energy,
        "error": approximation.error,
        "singular_values": list(approximation.singular_values),
    }
