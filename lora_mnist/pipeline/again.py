"""What every document of a run should say, derived again from weights, logits and labels by what made it.

What cannot be derived stands in `runs.told`, and is taken as it is stored.
"""

import copy
import json
from collections.abc import Mapping

import torch

from lora_mnist import SCHEMA
from lora_mnist.errors import LoRAError
from lora_mnist.evaluation.analysis import analyse, pictures, wrong_images
from lora_mnist.evaluation.metrics import weakest_digit
from lora_mnist.evaluation.proof import TOLERANCE
from lora_mnist.evaluation.results import Analysis, GuardDecision, Proof
from lora_mnist.files import read_json, read_regular, to_json
from lora_mnist.lora.adapters import updates_of
from lora_mnist.lora.lowrank import extract
from lora_mnist.lora.peft import CONFIG, stored_config
from lora_mnist.lora.targets import linear_layers
from lora_mnist.pipeline.convert import extraction_of
from lora_mnist.pipeline.finetune import parameters_of
from lora_mnist.pipeline.strengths import Strengths
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.runs.artifact import (
    ANALYSIS,
    EVALUATION,
    HISTORY,
    PICTURES,
    RECORD,
    TUNING,
    WEIGHTS,
    Artifact,
)
from lora_mnist.runs.checkpoint import load_network
from lora_mnist.runs.likeness import first_difference
from lora_mnist.runs.schemas import (
    AppliedAdapter,
    Extraction,
    ExtractionSettings,
    FinetuneRecord,
    RunRecord,
    facts_of,
)
from lora_mnist.settings.config import AdapterSettings, Settings, TeachSettings
from lora_mnist.training.model import MLP
from lora_mnist.training.train import lora_config

# The base -------------------------------------------------------------------------------------------------------------


def of_base(work: Workspace) -> list[str]:
    """What of the base's documents does not follow from its weights and logits, a clause each."""
    run, base = work.run, work.run.base
    recipe, steps = run.record.settings.pretrain, len(base.losses())
    clauses = [
        first_difference(RECORD, run.record, _run_record(work)),
        first_difference(EVALUATION, base.evaluation, work.evaluation(base.logits())),
        history(steps, recipe.epochs * (len(work.dataset.train) // recipe.batch_size)),
        _copy_at_the_top(work),
    ]
    return [clause for clause in clauses if clause]


def _run_record(work: Workspace) -> RunRecord:
    record = work.run.record
    settings: Settings = record.settings.model_copy(
        update={
            "data": record.settings.data.model_copy(update={"dataset": work.dataset.name}),
            "model": record.settings.model.model_copy(update={"hidden": work.base.hidden}),
        }
    )
    derived = {"schema_version": SCHEMA, "base_fingerprint": work.fingerprint.sha256, "dataset": facts_of(work.dataset)}
    return record.model_copy(update=derived | {"settings": settings})


def _copy_at_the_top(work: Workspace) -> str | None:
    """A command that was killed may have left none, or that of the base before; the next one that writes renews it."""
    path, record = work.run.path / RECORD, work.run.record
    if not path.exists() or read_regular(path) == work.run.base.content(RECORD):
        return None
    copied = read_json(path)
    if (
        record.replaced_fingerprint
        and isinstance(copied, dict)
        and copied.get("base_fingerprint") == record.replaced_fingerprint
    ):
        return None
    return f"{path} is not the copy of base/{RECORD}"


def history(rows: int, steps: int) -> str | None:
    """A clause if a history has another number of rows than there were steps."""
    return None if rows == steps else f"{HISTORY} has {rows} rows, but there were {steps} steps"


# An adapter -----------------------------------------------------------------------------------------------------------


def of_adapter(work: Workspace, saved: Artifact, adapted: MLP, proof: Proof) -> list[str]:
    """What of an adapter's documents does not follow from its weights and logits, a clause each.

    Args:
        adapted: the base with it, at strength 1, on top of what it was trained on.
        proof: what `prove` found just now.
    """
    record, name = saved.tuning, saved.name
    before, after = work.logits_of_stack(record.on_top_of), saved.logits()
    strengths = Strengths(work, adapted, record, name, before, after)
    guard = strengths.guard()
    analysis = analyse(before, after, work.labels, record.digit)
    learnt = strengths.learnt(analysis, saved.analysis.strength_curve, guard)
    own = {"control": saved.analysis.control, "strength_curve": learnt.strength_curve, "layers": learnt.layers}
    analysis = analysis.model_copy(update=own)
    applied = [AppliedAdapter(name=one, strength=1.0) for one in (*record.on_top_of, name)]
    clauses = [
        first_difference(EVALUATION, saved.evaluation, work.evaluation(after, applied)),
        first_difference(TUNING, record, _adapter_record(work, saved, adapted, proof, guard, before)),
        first_difference(ANALYSIS, saved.analysis, analysis),
        first_difference(CONFIG, read_json(saved.file(CONFIG)), json.loads(to_json(stored_config(adapted, name)))),
        _settings_beside_config(saved, adapted),
        _unlike_pictures(work, saved, analysis, learnt.directions),
        None if isinstance(record.settings, AdapterSettings) else history(len(saved.losses()), 0),
    ]
    return [clause for clause in clauses if clause]


def _adapter_record(
    work: Workspace,
    saved: Artifact,
    adapted: MLP,
    proof: Proof,
    guard: GuardDecision | None,
    before: Mapping[str, torch.Tensor],
) -> FinetuneRecord:
    record, settings = saved.tuning, saved.tuning.settings
    derived: dict[str, object] = {
        "schema_version": SCHEMA,
        "name": saved.name,
        "parameters": parameters_of(adapted, saved.name),
        "proof": _up_to_rounding(record.proof, proof),
        "weakest_on_val": record.weakest_on_val and is_weakest(work, record.digit, before),
        "guard": guard,
        "extraction": None,
    }
    if isinstance(settings, ExtractionSettings):
        rank = max(len(update.lora_A) for update in updates_of(adapted, saved.name).values())
        own = {"rank": rank, "alpha": float(rank), "digit": record.digit, "name": saved.name}
        extraction = _extraction(work, record)
        own |= {"checkpoint": extraction.checkpoint if extraction else settings.checkpoint}
        derived |= {"method": "svd", "seed": None, "extraction": extraction}
    else:
        own = {"name": saved.name, "steps": len(saved.losses())}
        own |= {} if isinstance(settings, TeachSettings) else {"digit": record.digit}
        derived |= {"method": "taught" if isinstance(settings, TeachSettings) else "lora"}
    return record.model_copy(update=derived | {"settings": settings.model_copy(update=own)})


def _up_to_rounding(stored: Proof | None, found: Proof) -> Proof:
    """As it was found, but with the stored difference, which is of rounding alone, if it is one."""
    if stored is None or not 0 <= stored.on.largest_difference <= TOLERANCE * found.on.largest_logit:
        return found
    difference = {"largest_difference": stored.on.largest_difference}
    if abs(stored.on.largest_logit - found.on.largest_logit) <= TOLERANCE * found.on.largest_logit:
        difference |= {"largest_logit": stored.on.largest_logit}
    return found.model_copy(update={"on": found.on.model_copy(update=difference)})


def is_weakest(work: Workspace, digit: int, before: Mapping[str, torch.Tensor]) -> bool:
    """Whether `val` has no weaker digit, by logits (N, 10)."""
    return "val" in before and weakest_digit(before["val"], work.labels["val"]) == digit


def _settings_beside_config(saved: Artifact, adapted: MLP) -> str | None:
    """Rank, alpha and the like stand in the settings and in PEFT's config, which the weights fit."""
    settings = saved.tuning.settings
    if not isinstance(settings, AdapterSettings):
        return None
    try:
        config = lora_config(settings)
        wanted = config.of_layers(linear_layers(adapted))
    except LoRAError as error:
        return f"{TUNING}: {error.cause.rstrip('.')}"
    found = {path: update.config for path, update in updates_of(adapted, saved.name).items()}
    if layer := next((one for one in {**wanted, **found} if wanted.get(one) != found.get(one)), None):
        return f"{TUNING}: its settings are not what {CONFIG} says of {layer}"
    return None


def _unlike_pictures(work: Workspace, saved: Artifact, analysis: Analysis, directions: torch.Tensor) -> str | None:
    before = work.logits_of_stack(saved.tuning.on_top_of)["test"]
    wrong = wrong_images(before, saved.logits()["test"], work.labels["test"].cpu())
    derived = {**pictures(analysis, wrong, work.dataset), "directions": directions}
    stored = {name: torch.from_numpy(array.copy()) for name, array in saved.pictures().items()}
    for name in sorted({*stored, *derived}):
        one, other = stored.get(name), derived.get(name)
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            return f"{PICTURES}: {name} is not what follows from the rest"
        if not bool(((one - other).abs() <= 1e-4).all() if one.is_floating_point() else (one == other).all()):
            return f"{PICTURES}: {name} are not the pictures that follow from the rest"
    return None


def _extraction(work: Workspace, record: FinetuneRecord) -> Extraction | None:
    """Made again, if the checkpoint that it was made from is in the run."""
    stored = record.extraction
    if stored is None or not (place := work.run.checkpoint(stored.checkpoint)).is_finished:
        return stored
    tuned, fingerprint = load_network(place.file(WEIGHTS), work.device)
    if fingerprint.sha256 != stored.fingerprint or record.rank is None:
        return stored
    kept = extract(copy.deepcopy(work.base), "again", tuned, record.rank)
    return extraction_of(work, stored.checkpoint, tuned, kept, record.digit)
