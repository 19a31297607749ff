"""Repair one digit: train an adapter (or, to compare, all weights), select its scale, evaluate, prove and save it."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from lora_mnist import SCHEMA
from lora_mnist.datasets.drawings import Drawings
from lora_mnist.errors import ProofError, UsageError
from lora_mnist.evaluation.analysis import (
    analyse,
    first_directions,
    layer_effects,
    pictures,
    strength_curve,
    wrong_images,
)
from lora_mnist.evaluation.baselines import Control, Logits
from lora_mnist.evaluation.guard import Guard, require_val, select_scale
from lora_mnist.evaluation.metrics import held_out_logits, require_finite
from lora_mnist.evaluation.proof import failures, prove
from lora_mnist.evaluation.results import Analysis
from lora_mnist.evaluation.verdict import Verdict, verdict_of
from lora_mnist.lora import parameter_table, save_adapter, scale_alpha, updates_of
from lora_mnist.pipeline.card import CARD, base_name, model_card
from lora_mnist.pipeline.workspace import Workspace, free_name
from lora_mnist.runs.artifact import ANALYSIS, FINETUNE, PICTURES, PROVENANCE, WEIGHTS
from lora_mnist.runs.atomic import write_file
from lora_mnist.runs.schemas import (
    AdapterParameters,
    AppliedAdapter,
    Evaluation,
    FinetuneRecord,
    FullParameters,
    FullSettings,
    MadeWith,
    Method,
    Provenance,
    record_provenance,
)
from lora_mnist.settings.config import Document
from lora_mnist.settings.request import Applied
from lora_mnist.training.loop import History
from lora_mnist.training.model import MLP
from lora_mnist.training.train import train_on_digit

log = logging.getLogger("lora_mnist")


class FinetuneResult(Document):
    """What a fine-tuning, or an extraction, did.

    As JSON it is one flat table: record, provenance, analysis, `comparison` by split, `verdict`, `evaluation`.
    """

    record: FinetuneRecord
    provenance: Provenance
    analysis: Analysis | None = None  # like the evaluation, None if no scale met the guard
    evaluation: Evaluation | None = None
    file: str | None = None  # of a checkpoint

    @property
    def kept(self) -> bool:
        """Whether there is something in the run now."""
        return self.analysis is not None

    @property
    def verdict(self) -> Verdict | None:
        """Whether it is a repair; None if nothing was kept."""
        return None if self.analysis is None else verdict_of(self.analysis, self.record.digit)

    @model_serializer(mode="wrap")
    def _flat(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        parts = serialise(self)
        flat = {"kept": self.kept, **parts["record"], **parts["provenance"]}
        if self.verdict:
            flat["comparison"] = parts["analysis"].pop("splits")
            flat |= {**parts["analysis"], "verdict": self.verdict.model_dump(), "evaluation": parts["evaluation"]}
        return flat | ({"file": self.file} if self.file else {})


def finetune(
    work: Workspace, on_top_of: Sequence[str] = (), control: bool = False, resume: bool = False
) -> FinetuneResult:
    """Inject LoRA, train it on one digit, select its scale, evaluate, prove that the base is untouched, save.

    Args:
        on_top_of: adapters of the run that are on, frozen, while this one trains; it is compared with them.
        control: also train a control on uniformly sampled images, and compare the two on the same images.
        resume: return a finished adapter as it is; say so if one is added to others.

    Raises:
        ProofError: the proof failed. The adapter is then not kept.
        BusyError: another command writes to the run.
        RunError: `on_top_of` are not adapters of the run, trained on top of each other in that order.
        UsageError: there is a guard, but no `val` to judge by.
    """
    with work.writing():
        # which digit, on top of what, under what name
        recipe, below = work.settings.finetune, tuple(dict.fromkeys(on_top_of))
        work.require_on_top(below)
        digit = work.target_digit(below)
        name = recipe.name or _name_of_round(work, f"digit{digit}-r{recipe.rank}", digit, below)
        if resume and work.run.adapter(name).is_finished and not work.request.force:
            return _finished(work, name, digit, below, control)

        # refuse what cannot end well before any time is spent
        work.check_can_save(work.run.adapter(name))
        require_val(recipe.guard, work.dataset.val)
        others = [other for other in work.run.adapter_names() if other not in (name, *below)]
        if resume and others:  # a second `run` with another rank or digit
            log.info("Note: %s is added to this run, beside %s.", name, ", ".join(others))
        work.warn_of_no_miss(digit, below)

        # train, and select the scale on `val`; the time that is recorded is that of both
        started = time.perf_counter()
        before = work.logits_with(below)  # logits by split
        start, _ = work.adapted([Applied(one) for one in below])
        adapted, history = train_on_digit(start, name, digit, work.settings, work.dataset, work.progress)
        guard = Guard(recipe.guard, gain=1 if below else 0)  # one more adapter has to save at least one image
        decision = select_scale(adapted, name, guard, before.get("val"), work.dataset.val, digit)
        settings = recipe.model_copy(update={"digit": digit, "name": name})
        details = {"seed": work.settings.seed, "guard": decision, "on_top_of": below}
        record = record_of("lora", adapted, name, digit, settings, recipe.digit == "weakest", **details)
        provenance = record_provenance(work.device, started)
        if decision.scale is None:
            return FinetuneResult(record=record, provenance=provenance)
        scale_alpha(adapted, name, decision.scale)  # A and B stay what training made of them

        # evaluate, prove, save
        beside = _train_control(work, start, name, digit, guard, before) if control else None
        return prove_and_save(work, adapted, record, provenance, history, beside)


def prove_and_save(
    work: Workspace,
    adapted: MLP,
    record: FinetuneRecord,
    provenance: Provenance,
    history: History | None = None,
    control: Control | None = None,
    drawings: Drawings | None = None,
) -> FinetuneResult:
    """Prove the adapters in `adapted`, evaluate the new one on top of the others, and save it.

    Args:
        record: of the new one, without a proof.
        history: of its training, if it was trained.
        drawings: that it was taught, to be saved with it.

    Raises ProofError if the proof failed, UsageError if the logits are not finite; then nothing is saved.
    """
    name, digit, below = record.name, record.digit, record.on_top_of
    proof, logits = prove(work.base, work.images, work.logits_with(()), work.fingerprint, adapted)
    require_finite(logits, "Choose a lower --learning-rate." if history else "Check the network it is made from.")
    if not proof.passed:
        raise ProofError(f"The adapter was not kept: {failures(proof)[0]}.", "This is a bug; please report it.")
    record = record.model_copy(update={"proof": proof})

    before = work.logits_with(below)
    evaluation = work.evaluation(logits, [AppliedAdapter(name=one, strength=1.0) for one in (*below, name)])
    analysis = analyse(before, logits, work.labels, digit, control)
    known = {0.0: work.evaluation(before).splits, 1.0: evaluation.splits}
    curve = strength_curve(adapted, name, work.dataset.held_out, digit, known)
    of_digit = work.dataset.test.images[work.dataset.test.labels == digit]
    layers = layer_effects(adapted, name, of_digit, digit)
    analysis = analysis.model_copy(update={"strength_curve": curve, "layers": layers})
    wrong = wrong_images(before["test"], logits["test"], work.labels["test"].cpu())
    shown = {**pictures(analysis, wrong, work.dataset), "directions": first_directions(adapted, name)}

    for update in updates_of(adapted, name).values():  # what PEFT's config says of the base
        about = {"base_model_name_or_path": base_name(work.fingerprint)}
        update.config = replace(update.config, about=about)
    with work.run.new(work.run.adapter(name)) as writer:  # the run's lock is held already, and may be taken again
        save_adapter(writer.folder, adapted, name, work.fingerprint)
        writer.documents({FINETUNE: record, PROVENANCE: provenance, ANALYSIS: analysis})
        writer.history(history)
        writer.results(evaluation, logits, control.logits if control else None)
        writer.tensors(PICTURES, shown)
        card = model_card(record, analysis, work.fingerprint, work.dataset.name)
        write_file(writer.folder / CARD, card.encode())
        if drawings:
            writer.drawings(drawings)
    return FinetuneResult(record=record, provenance=provenance, analysis=analysis, evaluation=evaluation)


def finetune_full(work: Workspace) -> FinetuneResult:
    """Train all weights of a copy of the base as `finetune` would train an adapter, and save it beside the base.

    It shows what an adapter could reach at best: the same batches, the same steps, no limit on the rank, no guard.
    """
    with work.writing():
        recipe, digit = work.settings.finetune, work.target_digit()
        name = recipe.name or f"digit{digit}-full"
        checkpoint = work.run.checkpoint(name)
        work.check_can_save(checkpoint)
        work.warn_of_no_miss(digit)

        started = time.perf_counter()
        tuned, history = train_on_digit(work.base, None, digit, work.settings, work.dataset, work.progress)
        provenance = record_provenance(work.device, started)
        logits = held_out_logits(tuned, work.dataset)
        require_finite(logits, "Choose a lower --learning-rate.")

        settings = {field: getattr(recipe, field) for field in FullSettings.model_fields}
        settings |= {"digit": digit, "name": name, "learning_rate": recipe.full_learning_rate}
        weakest, seed = recipe.digit == "weakest", work.settings.seed
        record = record_of("full", tuned, name, digit, FullSettings(**settings), weakest, seed=seed)
        evaluation = work.evaluation(logits, checkpoint=name)
        analysis = analyse(work.logits_with(()), logits, work.labels, digit)
        with work.run.new(checkpoint) as writer:
            writer.network(tuned)
            writer.documents({FINETUNE: record, PROVENANCE: provenance, ANALYSIS: analysis})
            writer.history(history)
            writer.results(evaluation, logits)
    file = str(checkpoint.folder / WEIGHTS)
    return FinetuneResult(record=record, provenance=provenance, analysis=analysis, evaluation=evaluation, file=file)


def record_of(
    method: Method, network: MLP, name: str, digit: int, settings: MadeWith, weakest: bool, **details: Any
) -> FinetuneRecord:
    """How adapter `name` of `network`, or all of it, was made, not proved yet; `details` are what some methods have."""
    if method == "full":
        count = sum(parameter.numel() for parameter in network.parameters())
        parameters: AdapterParameters | FullParameters = FullParameters(base=count, trained=count)
    else:
        parameters = AdapterParameters.model_validate(parameter_table(network, name), from_attributes=True)
    return FinetuneRecord(
        schema_version=SCHEMA,
        method=method,
        name=name,
        digit=digit,
        settings=settings,
        parameters=parameters,
        proof=None,
        weakest_on_val=weakest,
        **details,
    )


def _train_control(work: Workspace, start: MLP, name: str, digit: int, guard: Guard, before: Logits) -> Control:
    """An adapter trained as long on uniformly sampled images: no focus, no hard-example sampling."""
    share = float((work.dataset.train.labels == digit).float().mean())
    recipe = work.settings.finetune.model_copy(update={"focus": share, "hard_examples": 0.0})
    settings = work.settings.model_copy(update={"finetune": recipe})
    progress = replace(work.progress, stage=f"{work.progress.stage}control: ")
    control, _ = train_on_digit(start, name, digit, settings, work.dataset, progress)
    scale = select_scale(control, name, guard, before.get("val"), work.dataset.val, digit).scale
    logits = before
    if scale:
        scale_alpha(control, name, scale)
        logits = held_out_logits(control, work.dataset)
    require_finite(logits, "Choose a lower --learning-rate.")
    return Control(scale, logits)


def _name_of_round(work: Workspace, name: str, digit: int, below: tuple[str, ...]) -> str:
    """`name`; or on top of others, where a digit may be repaired twice, the first that no other round has."""
    named = [other for other in work.run.adapters() if below and other.name.startswith(name)]
    taken = [one.name for one in named if (one.finetune.on_top_of, one.finetune.digit) != (below, digit)]
    return free_name(name, taken)


def _finished(work: Workspace, name: str, digit: int, below: tuple[str, ...], control: bool) -> FinetuneResult:
    """The adapter of an earlier run. Raises UsageError if it is not what is asked for."""
    saved = work.run.require_adapter(name)
    record, folder, analysis = saved.finetune, saved.folder, saved.analysis
    if record.digit != digit:
        raise UsageError(f"{folder} repairs {record.digit}, not {digit}.", "Give another --name, or use --force.")
    if record.on_top_of != below:
        found, wanted = (", ".join(names) or "the base" for names in (record.on_top_of, below))
        raise UsageError(f"{folder} was trained on top of {found}, not of {wanted}.", "Choose another --run.")
    stored = {"seed": record.seed, "finetune": record.settings.model_dump(mode="json")}
    work.request.refuse_contradictions(stored, ("seed", "finetune"), work.dataset.name, folder)
    if control and analysis.control is None:
        raise UsageError(f"{folder} was trained without a control.", "Give another --name, or use --force.")
    return FinetuneResult(record=record, provenance=saved.provenance, analysis=analysis, evaluation=saved.evaluation)
