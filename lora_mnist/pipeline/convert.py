"""Between adapters and checkpoints: merge makes a checkpoint of adapters, extract an adapter of a checkpoint."""

import copy
import time
from collections.abc import Sequence
from pathlib import Path

from lora_mnist import SCHEMA
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import counts_in, held_out_logits, require_finite, summarise
from lora_mnist.evaluation.proof import largest_of
from lora_mnist.lora import changes_left_out, compute_fingerprint, merged_copy
from lora_mnist.lora import extract as extract_update
from lora_mnist.pipeline.finetune import FinetuneResult, prove_and_save, record_of
from lora_mnist.pipeline.state_dict import original_content
from lora_mnist.pipeline.workspace import Workspace, name_from
from lora_mnist.runs.artifact import ADAPTER_WEIGHTS, MERGE, PROVENANCE, WEIGHTS
from lora_mnist.runs.atomic import sha256_of, write_file
from lora_mnist.runs.schemas import (
    CheckpointCounts,
    Evaluation,
    Extraction,
    ExtractionSettings,
    LayerApproximation,
    MergeRecord,
    Provenance,
    record_provenance,
)
from lora_mnist.settings.config import Maybe
from lora_mnist.settings.request import Applied
from lora_mnist.training.model import MLP


class MergeResult(Provenance, MergeRecord):
    """What was merged, how, the file that holds it, and what it does."""

    file: str
    original: Maybe[str] = None  # the same, as the file was that the base was imported from
    evaluation: Evaluation


def merge(work: Workspace, adapters: Sequence[Applied], allow_unverified: bool = False) -> MergeResult:
    """Write the base with `adapters` merged into its weights as a checkpoint of its own, beside the base.

    Raises:
        UsageError: no adapter is given, or the merged logits are not finite.
        LoRAError: the merged weights are not finite.
        RunError: there is a checkpoint of that name already.
    """
    with work.writing():
        if not adapters:
            raise UsageError("There is nothing to merge.", "Name an adapter with --adapter.")
        model, used = work.adapted(adapters, allow_unverified)
        name = work.settings.finetune.name or "-".join([*(adapter.name for adapter in used), "merged"])
        place = work.run.checkpoint(name)
        work.check_can_save(place)
        started = time.perf_counter()
        merged = merged_copy(model)
        assert isinstance(merged, MLP)
        before, logits = held_out_logits(model, work.dataset), held_out_logits(merged, work.dataset)
        require_finite(logits, "Choose a smaller --strength.")
        evaluation = work.evaluation(logits, checkpoint=name)
        files = [work.locate(adapter.reference)[0] / ADAPTER_WEIGHTS for adapter in adapters]
        record = MergeRecord(
            schema_version=SCHEMA,
            name=name,
            merged=used,
            weights={adapter.name: sha256_of(file) for adapter, file in zip(used, files, strict=True)},
            largest_difference=largest_of(before[split] - logits[split] for split in logits),
            largest_logit=largest_of(logits.values()),
        )
        provenance, source = record_provenance(work.device, started), work.run.record.source
        with work.run.new(place) as writer:
            writer.network(merged)
            writer.documents({MERGE: record, PROVENANCE: provenance})
            writer.history(None)
            writer.results(evaluation, logits)
            if source:
                original = f"original{Path(source.file).suffix}"
                write_file(writer.folder / original, original_content(source, merged))
        return MergeResult(
            **dict(record),
            **dict(provenance),
            file=str(place.folder / WEIGHTS),
            original=str(place.folder / original) if source else None,
            evaluation=evaluation,
        )


def extract(work: Workspace, rank: int, checkpoint: str | None = None) -> FinetuneResult:
    """The best adapter of `rank` for what separates a checkpoint from the base; proved and saved like any other.

    Args:
        checkpoint: a checkpoint of the run or a file; None is the latest that `finetune --full` made.

    Raises RunError if there is no such checkpoint or an adapter of that name already, LoRAError if the rank is out of
    its range or the checkpoint is not of the base's shape.
    """
    with work.writing():
        tuned, source = work.checkpoint(checkpoint)
        made_from = name_from(source.name)
        name = work.settings.finetune.name or f"{made_from}-r{rank}"
        work.check_can_save(work.run.adapter(name))
        if source.is_finetuned and "digit" not in work.request.options.get("finetune", {}):
            digit, weakest = source.finetune.digit, source.finetune.weakest_on_val  # the one it was tuned on
        else:
            digit, weakest = work.target_digit(), work.settings.finetune.digit == "weakest"
        started = time.perf_counter()
        adapted = copy.deepcopy(work.base)
        kept = extract_update(adapted, name, tuned, rank)
        provenance = record_provenance(work.device, started)
        theirs = summarise(held_out_logits(tuned, work.dataset)["test"], work.labels["test"])
        extraction = Extraction(
            checkpoint=made_from,
            fingerprint=compute_fingerprint(tuned.state_dict()).sha256,
            layers={path: LayerApproximation.model_validate(one, from_attributes=True) for path, one in kept.items()},
            left_out=changes_left_out(work.base, tuned),
            of_checkpoint=CheckpointCounts(accuracy=theirs.accuracy, **dict(counts_in(theirs.confusion, digit))),
        )
        largest = max(approximation.rank for approximation in kept.values())
        settings = ExtractionSettings(rank=largest, alpha=float(largest), digit=digit, name=name, checkpoint=made_from)
        record = record_of("svd", adapted, name, digit, settings, weakest, seed=None, extraction=extraction)
        return prove_and_save(work, adapted, record, provenance)
