"""What the documents of a checkpoint should say, derived again (see `pipeline.again`)."""

from collections.abc import Mapping

import torch

from lora_mnist import SCHEMA
from lora_mnist.evaluation.analysis import analyse
from lora_mnist.evaluation.predict import held_out_logits
from lora_mnist.evaluation.proof import TOLERANCE, largest_of
from lora_mnist.lora.merging import merged_copy
from lora_mnist.pipeline.again import history, is_weakest
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.runs.artifact import (
    ADAPTER_WEIGHTS,
    ANALYSIS,
    EVALUATION,
    MERGE,
    TUNING,
    Artifact,
)
from lora_mnist.runs.likeness import first_difference
from lora_mnist.runs.schemas import (
    FinetuneRecord,
    FullParameters,
    FullSettings,
    MergeRecord,
)
from lora_mnist.settings.request import Applied
from lora_mnist.training.model import MLP


def of_checkpoint(work: Workspace, saved: Artifact, model: MLP, logits: Mapping[str, torch.Tensor]) -> list[str]:
    """What of a checkpoint's documents does not follow from its weights, a clause each.

    Args:
        model: the checkpoint; `logits` (N, 10) by split are its own.
    """
    stored = saved.logits()
    clauses = [first_difference(EVALUATION, saved.evaluation, work.evaluation(stored, checkpoint=saved.name))]
    if saved.is_tuned:
        record = saved.tuning
        analysis = analyse(work.logits_of_stack(()), stored, work.labels, record.digit)
        clauses += [
            first_difference(TUNING, record, _full_record(work, saved, model)),
            first_difference(ANALYSIS, saved.analysis, analysis),
        ]
    else:
        clauses += [*_of_merged(work, saved, model, logits), history(len(saved.losses()), 0)]
    return [clause for clause in clauses if clause]


def _full_record(work: Workspace, saved: Artifact, model: MLP) -> FinetuneRecord:
    record, count = saved.tuning, sum(parameter.numel() for parameter in model.parameters())
    own = {"digit": record.digit, "name": saved.name, "steps": len(saved.losses())}
    if not isinstance(record.settings, FullSettings):
        own = {}
    weakest = record.weakest_on_val and is_weakest(work, record.digit, work.logits_of_stack(()))
    return FinetuneRecord(
        schema_version=SCHEMA,
        method="full",
        name=saved.name,
        digit=record.digit,
        settings=record.settings.model_copy(update=own),
        parameters=FullParameters(base=count, trained=count),
        proof=None,
        weakest_on_val=weakest,
        seed=record.seed,
    )


def _of_merged(work: Workspace, saved: Artifact, model: MLP, logits: Mapping[str, torch.Tensor]) -> list[str | None]:
    stored = saved.document(MERGE, MergeRecord)
    derived = {"schema_version": SCHEMA, "name": saved.name}
    names = [one.name for one in stored.merged]
    if sorted(names) != sorted(stored.weights):
        return [f"{MERGE}: `weights` are of others than what was merged"]
    if not all(_is_in_the_run(work, name, stored.weights[name]) for name in names):
        return [first_difference(MERGE, stored, stored.model_copy(update=derived))]
    adapted, used = work.adapted([Applied(one.name, one.strength) for one in stored.merged])
    before, largest = held_out_logits(adapted, work.dataset), largest_of(logits.values())
    difference = largest_of(before[split] - logits[split] for split in logits)
    if 0 <= stored.largest_difference <= TOLERANCE * largest:
        difference = stored.largest_difference  # rounding alone
    facts = {"merged": used, "largest_difference": difference, "largest_logit": largest}
    own = model.state_dict()
    far = [
        name
        for name, tensor in merged_copy(adapted).state_dict().items()
        if float((tensor - own[name]).abs().max()) > TOLERANCE * float(own[name].abs().max())
    ]
    clause = f"its {far[0]} is not that of the base with what was merged" if far else None
    return [clause, first_difference(MERGE, stored, stored.model_copy(update=derived | facts))]


def _is_in_the_run(work: Workspace, name: str, weights: str | None) -> bool:
    saved = work.run.adapter(name)
    return saved.is_finished and saved.hashes.get(ADAPTER_WEIGHTS) == weights
