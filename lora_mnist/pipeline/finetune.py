"""Repair one digit: train an adapter (or, to compare, all weights), judge, prove and keep it."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pydantic import SerializerFunctionWrapHandler, model_serializer

from lora_mnist import SCHEMA
from lora_mnist.datasets.drawings import Drawings
from lora_mnist.errors import ProofError, UsageError
from lora_mnist.evaluation.analysis import Control, analyse, inspect, pictures, wrong_images
from lora_mnist.evaluation.predict import held_out_logits, require_finite
from lora_mnist.evaluation.proof import Plain, failures, prove
from lora_mnist.evaluation.results import Analysis, GuardDecision
from lora_mnist.evaluation.strength import Guard, choose, require_val
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.lora.peft import save_adapter
from lora_mnist.lora.table import parameter_table
from lora_mnist.pipeline.workspace import Workspace, sole_writer
from lora_mnist.runs.artifact import ANALYSIS, PROVENANCE, TUNING, WEIGHTS
from lora_mnist.runs.drawings import save_drawings
from lora_mnist.runs.refusals import Refusal, refusals, remember_refusal
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import (
    AdapterParameters,
    AppliedAdapter,
    Evaluation,
    FinetuneRecord,
    FullParameters,
    FullSettings,
    Provenance,
    record_provenance,
)
from lora_mnist.settings.config import AdapterSettings, FinetuneSettings, TeachSettings
from lora_mnist.settings.request import Applied
from lora_mnist.settings.strict import Document
from lora_mnist.training.loop import History
from lora_mnist.training.model import MLP
from lora_mnist.training.progress import Progress
from lora_mnist.training.train import train_adapter, train_all_weights

log = logging.getLogger("lora_mnist")


class FinetuneResult(Document):
    """What a fine-tuning, or an extraction, came to.

    Attributes:
        analysis, evaluation: None if nothing was kept, as no strength met the guard.
        file: of a checkpoint.

    As JSON it is one flat table: the record, what the analysis found, `comparison` by split, `verdict`, `evaluation`.
    """

    record: FinetuneRecord
    made: Provenance
    analysis: Analysis | None = None
    evaluation: Evaluation | None = None
    file: str | None = None

    @property
    def kept(self) -> bool:
        """Whether there is something in the run now."""
        return self.analysis is not None

    @model_serializer(mode="wrap")
    def _flat(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        parts = serialise(self)
        flat = {"kept": self.kept, **parts["record"], **parts["made"]}
        if analysis := parts["analysis"]:
            flat["comparison"] = analysis.pop("splits")
            flat |= {key: value for key, value in analysis.items() if key != "schema_version"}
            assert self.analysis is not None  # it is what was serialised
            flat["verdict"] = verdict_of(self.analysis, self.record.digit).model_dump()
            flat["evaluation"] = parts["evaluation"]
        return flat | ({"file": self.file} if self.file else {})


@dataclass(frozen=True)
class _Task:
    """Which adapter is to be trained: its name, its digit, and what it is trained on top of."""

    name: str
    digit: int
    stack: tuple[str, ...]


@sole_writer
def finetune(
    work: Workspace, on_top_of: Sequence[str] = (), control: bool = False, resume: bool = False
) -> FinetuneResult:
    """Inject LoRA, train it on one digit, prove that the base is untouched, evaluate, save.

    Args:
        on_top_of: adapters of the run that are on, frozen, while this one trains; it is compared with them.
        control: train a second one on every image alike, and compare the two on the same images.
        resume: return a finished adapter as it is, or what the guard refused before; say so if one is added to others.

    Raises:
        ProofError: the proof failed. The adapter is then not kept.
        BusyError: another command writes to the run.
        RunError: `on_top_of` are not adapters of the run, trained on top of each other in that order.
        UsageError: there is a guard, but no `val` to judge by.
    """
    task = _task(work, tuple(dict.fromkeys(on_top_of)))
    place, tuning = work.run.adapter(task.name), work.settings.finetune
    if resume and place.is_finished and not work.request.force:
        return _finished(work, task, control)
    if resume and not work.request.force and (refused := _refused(work, task)):
        return FinetuneResult(record=refused.record, made=refused.made)
    _prepare(work, task, resume)
    started = time.perf_counter()
    adapted, history, guard = _train(work, task, tuning, work.progress)
    made = record_provenance(work.device, started)
    record = FinetuneRecord(
        schema_version=SCHEMA,
        method="lora",
        name=task.name,
        digit=task.digit,
        settings=_settings(work, task),
        parameters=parameters_of(adapted, task.name),
        proof=None,
        weakest_on_val=tuning.digit == "weakest",
        seed=work.settings.seed,
        guard=guard,
        on_top_of=task.stack,
    )
    if guard.strength is None:
        if resume:
            remember_refusal(work.run, work.fingerprint.sha256, Refusal(record=record, made=made))
        return FinetuneResult(record=record, made=made)
    return keep(work, adapted, record, made, history, _train_control(work, task) if control else None)


@sole_writer
def finetune_full(work: Workspace) -> FinetuneResult:
    """Train all weights of a copy of the base as `finetune` would train an adapter, and save it beside the base.

    It is the yardstick for what an adapter reaches: the same batches, the same steps, no limit on the rank, no guard.
    """
    tuning, digit = work.settings.finetune, work.target_digit()
    name = tuning.name or f"digit{digit}-full"
    place = work.run.checkpoint(name)
    work.claim(place)
    work.warn_of_no_miss(digit)
    started = time.perf_counter()
    tuned, history = train_all_weights(work.base, digit, work.settings, work.dataset, work.progress)
    made = record_provenance(work.device, started)
    logits = held_out_logits(tuned, work.dataset)
    require_finite(logits, "Choose a lower --learning-rate.")
    count = sum(parameter.numel() for parameter in tuned.parameters())
    made_with = {field: getattr(tuning, field) for field in FullSettings.model_fields}
    own = {"digit": digit, "name": name, "learning_rate": tuning.full_learning_rate}
    record = FinetuneRecord(
        schema_version=SCHEMA,
        method="full",
        name=name,
        digit=digit,
        settings=FullSettings(**made_with | own),
        parameters=FullParameters(base=count, trained=count),
        proof=None,
        weakest_on_val=tuning.digit == "weakest",
        seed=work.settings.seed,
    )
    evaluation = work.evaluation(logits, checkpoint=name)
    analysis = analyse(work.logits_of_stack(()), logits, work.labels, digit)
    with work.run.new(place) as draft:
        draft.network(tuned)
        draft.document(TUNING, record)
        draft.document(PROVENANCE, made)
        draft.document(ANALYSIS, analysis)
        draft.history(history)
        draft.results(evaluation, logits)
    file = str(place.folder / WEIGHTS)
    return FinetuneResult(record=record, made=made, analysis=analysis, evaluation=evaluation, file=file)


def parameters_of(adapted: MLP, name: str) -> AdapterParameters:
    """What adapter `name` adds to the base."""
    return AdapterParameters.model_validate(asdict(parameter_table(adapted, name)))


def keep(
    work: Workspace,
    adapted: MLP,
    record: FinetuneRecord,
    made: Provenance,
    history: History | None = None,
    control: Control | None = None,
    drawings: Drawings | None = None,
) -> FinetuneResult:
    """Prove the adapters in `adapted`, evaluate the new one on top of the others, and save it.

    Args:
        record: of the new one, without a proof; and how it was `made`.
        history: of its training, if it was trained.
        drawings: that it was trained on, to be saved with it.

    Raises:
        ProofError: the proof failed; nothing is saved.
        UsageError: the logits are not finite; nothing is saved.
    """
    name, digit, stack = record.name, record.digit, record.on_top_of
    proof, logits = prove(Plain(work.base, work.images, work.logits_of_stack(())), work.fingerprint, adapted)
    require_finite(logits, "Choose a lower --learning-rate." if history else "Check the network it is made from.")
    if not proof.passed:
        raise ProofError(f"The adapter was not kept: {failures(proof)[0]}.", "This is a bug; please report it.")
    record = record.model_copy(update={"proof": proof})
    evaluation = work.evaluation(logits, [AppliedAdapter(name=one, strength=1.0) for one in (*stack, name)])
    before = work.logits_of_stack(stack)
    analysis = analyse(before, logits, work.labels, digit, control)
    as_trained = record.guard is not None and record.guard.strength == 1  # then what was tried were its strengths
    tried = [one.point for one in record.guard.tried] if record.guard and as_trained else []
    learnt = inspect(adapted, name, digit, work.dataset, analysis.splits, tried)
    analysis = analysis.model_copy(update={"strength_curve": learnt.strength_curve, "layers": learnt.layers})
    wrong = wrong_images(before["test"], logits["test"], work.labels["test"].cpu())
    with work.run.new(work.run.adapter(name)) as draft:
        save_adapter(draft.folder, adapted, name, work.fingerprint)
        draft.document(TUNING, record)
        draft.document(PROVENANCE, made)
        draft.document(ANALYSIS, analysis)
        draft.history(history)
        draft.results(evaluation, logits)
        draft.pictures({**pictures(analysis, wrong, work.dataset), "directions": learnt.directions})
        if drawings is not None:
            save_drawings(draft, drawings)
    return FinetuneResult(record=record, made=made, analysis=analysis, evaluation=evaluation)


def _task(work: Workspace, stack: tuple[str, ...]) -> _Task:
    work.require_stack(stack)
    digit, tuning = work.target_digit(stack), work.settings.finetune
    return _Task(tuning.name or _free_name(work.run, f"digit{digit}-r{tuning.rank}", digit, stack), digit, stack)


def _settings(work: Workspace, task: _Task) -> FinetuneSettings:
    return work.settings.finetune.model_copy(update={"digit": task.digit, "name": task.name})


def _refused(work: Workspace, task: _Task) -> Refusal | None:
    """The same training, if it was done before and nothing of it was kept."""
    same = (_settings(work, task), work.settings.seed, task.stack)
    for one in refusals(work.run, work.fingerprint.sha256):
        if (one.record.settings, one.record.seed, one.record.on_top_of) == same:
            return one
    return None


def _free_name(run: Run, name: str, digit: int, stack: tuple[str, ...]) -> str:
    """`name`; on top of others, where a digit may be repaired again, with the first number that makes it new or that
    belongs to this very round of an earlier run."""
    if not stack:
        return name
    there = run.adapter_names()
    for free in (name, *(f"{name}-{i}" for i in range(2, len(there) + 3))):
        if free not in there:
            return free
        made = run.adapter(free).tuning
        if made.on_top_of == stack and made.digit == digit:
            return free
    raise AssertionError("one of them is always free")


def _prepare(work: Workspace, task: _Task, resume: bool) -> None:
    """Refuse what cannot end well, and say what may not be expected, before any time is spent."""
    work.claim(work.run.adapter(task.name))
    require_val(work.settings.finetune.guard, work.dataset.val)
    others = [name for name in work.run.adapter_names() if name not in (task.name, *task.stack)]
    if resume and others:  # a second `run` with another rank or digit
        log.info("Note: %s is added to this run, beside %s.", task.name, ", ".join(others))
    work.warn_of_no_miss(task.digit, task.stack)


def _train(
    work: Workspace, task: _Task, tuning: FinetuneSettings, progress: Progress
) -> tuple[MLP, History, GuardDecision]:
    """A network with the new adapter, scaled as its guard decided."""
    start, _ = work.adapted([Applied(one) for one in task.stack])
    settings = work.settings.model_copy(update={"finetune": tuning})
    adapted, history = train_adapter(start, task.name, task.digit, settings, work.dataset, progress)
    before, val = work.logits_of_stack(task.stack).get("val"), work.dataset.val
    return adapted, history, choose(adapted, task.name, guard_of(tuning, task.stack), before, val, task.digit)


def guard_of(recipe: AdapterSettings, stack: Sequence[str]) -> Guard:
    """What an adapter on top of `stack` has to meet: one adapter more has to earn its place by an image at least.

    Of what is allowed, one that is taught drawings is the strongest: what it is for is not in `val`.
    """
    return Guard(recipe.guard, gain=1 if stack else 0, strongest=isinstance(recipe, TeachSettings))


def _train_control(work: Workspace, task: _Task) -> Control:
    """An adapter trained as long on all images alike: the digit at its natural share, hard ones no more often."""
    share = float((work.dataset.train.labels == task.digit).float().mean())
    tuning = work.settings.finetune.model_copy(update={"focus": share, "hard_examples": 0.0})
    control, _, guard = _train(work, task, tuning, replace(work.progress, stage=f"{work.progress.stage}control: "))
    kept = guard.strength is not None
    logits = held_out_logits(control, work.dataset) if kept else work.logits_of_stack(task.stack)
    require_finite(logits, "Choose a lower --learning-rate.")
    return Control(guard.strength, logits)


def _finished(work: Workspace, task: _Task, control: bool) -> FinetuneResult:
    saved = work.run.require_adapter(task.name)
    record, folder = saved.tuning, saved.folder
    if record.digit != task.digit:
        raise UsageError(f"{folder} repairs {record.digit}, not {task.digit}.", "Give another --name, or use --force.")
    if record.on_top_of != task.stack:
        found, wanted = (", ".join(names) or "the base" for names in (record.on_top_of, task.stack))
        raise UsageError(f"{folder} was trained on top of {found}, not of {wanted}.", "Choose another --run.")
    stored = {"seed": record.seed, "finetune": record.settings.model_dump(mode="json")}
    work.request.refuse_contradictions(stored, ("seed", "finetune"), work.dataset.name, folder)
    if control and saved.analysis.control is None:
        raise UsageError(f"{folder} was trained without a control.", "Give another --name, or use --force.")
    return FinetuneResult(record=record, made=saved.made, analysis=saved.analysis, evaluation=saved.evaluation)
