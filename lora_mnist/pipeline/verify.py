"""Prove a run from its files: the three claims, the logits, and what was counted from them. Nothing is written."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_mnist.errors import AlteredError, RunError, UsageError, shown
from lora_mnist.evaluation.analysis import analyse
from lora_mnist.evaluation.baselines import Control, Logits
from lora_mnist.evaluation.metrics import held_out_logits
from lora_mnist.evaluation.proof import TOLERANCE, failures, prove
from lora_mnist.evaluation.results import FrozenClaim, OffClaim, OnClaim, Proof
from lora_mnist.pipeline.workspace import Workspace, open_workspace
from lora_mnist.runs.artifact import ANALYSIS, EVALUATION, FINETUNE, WEIGHTS, Artifact, load_network
from lora_mnist.runs.atomic import to_json
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import AppliedAdapter
from lora_mnist.settings.config import Document, Many, Maybe
from lora_mnist.settings.request import Applied, Request

ROUNDING = 1e-6  # relative: another machine adds in another order
NOT_RECOMPUTED = {"strength_curve", "layers"}  # of analysis.json: they take a forward pass for every strength


class BaseCheck(Document):
    """The base: its fingerprint and how many tensors that covers, unless it could not be read."""

    passed: bool
    fingerprint: Maybe[str] = None
    tensors: Maybe[int] = None


class AdapterCheck(Document):
    """An adapter: the three claims, unless it could not be read; and what failed, a clause each."""

    name: str
    passed: bool
    frozen: Maybe[FrozenClaim] = None
    off: Maybe[OffClaim] = None
    on: Maybe[OnClaim] = None
    failures: Many[str]

    @property
    def proof(self) -> Proof | None:
        if self.frozen is None or self.off is None or self.on is None:
            return None
        passed = self.frozen.passed and self.off.passed and self.on.passed
        return Proof(passed=passed, frozen=self.frozen, off=self.off, on=self.on)


class CheckpointCheck(Document):
    """A checkpoint: its fingerprint, unless it could not be read; and what failed, a clause each."""

    name: str
    fingerprint: Maybe[str] = None
    passed: bool
    failures: Many[str]


class VerifyResult(Document):
    """What `verify` found."""

    passed: bool
    failures: Many[str]
    notes: Many[str] = ()  # what could not be checked and is not a failure
    digest: Maybe[str] = None  # of the run; like `dataset` it is known unless the base could not be read
    dataset: Maybe[str] = None
    base: BaseCheck
    adapters: Many[AdapterCheck]
    checkpoints: Many[CheckpointCheck]
    report: Maybe[bool] = None  # is it whole and of this run? None if there is none, or of an older state


def verify(request: Request, adapters: Sequence[str] = (), digest: str | None = None) -> VerifyResult:
    """Open the run of `request` and `verify_workspace`; a damaged base is a failure that is found, not an error.

    Args:
        digest: that the run should have (see `Run.digest`), or its first 16 characters or more.

    Raises RunError if something is missing altogether or belongs to another base, UsageError if `digest` is none.
    """
    if digest is not None and not re.fullmatch("[0-9a-f]{16,64}", digest := digest.lower()):
        raise UsageError(
            f"`digest` (={shown(digest)}) is not a run digest.",
            "Give its 64 hexadecimal digits, or the first 16 or more.",
        )
    try:
        return verify_workspace(open_workspace(request), adapters, digest)
    except AlteredError as error:  # of the base; damaged adapters and checkpoints are failures already
        clauses = [error.cause] if digest is None else [error.cause, f"the run digest is not known, not {digest}"]
        unread = BaseCheck(passed=False)
        return VerifyResult(passed=False, failures=tuple(clauses), base=unread, adapters=(), checkpoints=())


def verify_workspace(work: Workspace, adapters: Sequence[str] = (), digest: str | None = None) -> VerifyResult:
    """Prove the base and `adapters`; if none is named, all of them, all checkpoints, and the report's files.

    Raises RunError as `verify` does.
    """
    run = work.run
    plain = held_out_logits(work.base, work.dataset)
    base_failures = _unlike_stored(run.base, plain) or _unlike_logits(work, run.base)
    names = list(dict.fromkeys(adapters)) or run.adapter_names()
    adapter_checks = [_check_adapter(work, name, plain, not base_failures) for name in names]
    checkpoint_checks = [] if adapters else [_check_checkpoint(work, one.name) for one in run.checkpoints()]
    failed = [f"base: {clause}" for clause in base_failures]
    failed += [f"{one.name}: {clause}" for one in adapter_checks for clause in one.failures]
    failed += [f"{one.name}: {clause}" for one in checkpoint_checks for clause in one.failures]
    report, notes = None, list[str]()
    if not adapters:
        failed += [f"{folder} has no manifest" for folder in run.unfinished()]
        report, clauses, notes = _check_report(run)
        failed += clauses
    if failed:
        run.require_unchanged()  # else another command may have replaced the run half-way through
    found = run.digest()
    if digest is not None and not found.startswith(digest):
        failed.append(f"the run digest is {found}, not {digest}")
    fingerprint = work.fingerprint
    return VerifyResult(
        passed=not failed,
        failures=tuple(failed),
        notes=tuple(notes),
        digest=found,
        dataset=work.dataset.name,
        base=BaseCheck(passed=not base_failures, fingerprint=fingerprint.sha256, tensors=len(fingerprint.tensors)),
        adapters=tuple(adapter_checks),
        checkpoints=tuple(checkpoint_checks),
        report=report,
    )


def _check_adapter(work: Workspace, name: str, plain: Logits, base_is_right: bool) -> AdapterCheck:
    try:
        artifact = work.run.require_adapter(name)
        record = artifact.finetune
        if missing := [one for one in record.on_top_of if one not in work.run.adapter_names()]:
            clause = f"it was trained on top of {', '.join(missing)}, which is not in the run"
            return AdapterCheck(name=name, passed=False, failures=(clause,))
        below = (*record.on_top_of, name)
        adapted, _ = work.adapted([Applied(one) for one in below])
        proof, logits = prove(work.base, work.images, plain, work.fingerprint, adapted)
        clauses = failures(proof) + _unlike_stored(artifact, logits)
        if (record.name, record.proof and record.proof.passed) != (name, True):
            clauses.append(f"{FINETUNE} is not of a proved adapter of this name")
        if base_is_right and not clauses:  # else there is nothing to compare with
            clauses = _unlike_logits(work, artifact, below)
    except AlteredError as error:
        return AdapterCheck(name=name, passed=False, failures=(error.cause,))
    return AdapterCheck(
        name=name, passed=not clauses, frozen=proof.frozen, off=proof.off, on=proof.on, failures=tuple(clauses)
    )


def _check_checkpoint(work: Workspace, name: str) -> CheckpointCheck:
    try:
        artifact = work.run.require_checkpoint(name)
        work.require_same_base(artifact)
        model, fingerprint = load_network(artifact.file(WEIGHTS), work.device)
        logits = held_out_logits(model, work.dataset)
        clauses = _unlike_stored(artifact, logits) or _unlike_logits(work, artifact, checkpoint=name)
    except AlteredError as error:
        return CheckpointCheck(name=name, passed=False, failures=(error.cause,))
    return CheckpointCheck(name=name, fingerprint=fingerprint.sha256, passed=not clauses, failures=tuple(clauses))


def _check_report(run: Run) -> tuple[bool | None, list[str], list[str]]:
    """Whether the report's files are the saved ones and hold the run's documents as they are now; failures; notes."""
    from lora_mnist.runs.listing import documents_of  # which the commands that print a VerifyResult do without

    report = Artifact(run.report)
    if not report.is_finished:
        return None, [], []
    try:
        report.require_whole()
        documents = documents_of(run)
    except RunError as error:
        return False, [f"report: {error.cause.rstrip('.')}"], []
    if report.content("report.json") != to_json(documents.model_dump(mode="json")):
        return None, [], [f"{run.report} is older than the run; write it again with `lora-mnist report`"]
    return True, [], []


def _unlike_stored(artifact: Artifact, logits: Mapping[str, torch.Tensor]) -> list[str]:
    """The splits whose stored logits do not follow from the weights, a clause each.

    Equal is up to rounding, as they may come from another machine; no NaN is close to anything.
    """
    stored, wrong = artifact.logits(), []
    for split, found in logits.items():
        one = stored.get(split)
        limit = 10 * TOLERANCE * float(found.abs().max())
        if one is None or one.shape != found.shape or not bool(((one - found).abs() <= limit).all()):
            wrong.append(split)
    wrong = wrong or sorted(stored.keys() - logits.keys())
    return [f"the stored logits of {split} are not those of its weights" for split in wrong]


def _unlike_logits(
    work: Workspace, artifact: Artifact, adapters: Sequence[str] = (), checkpoint: str | None = None
) -> list[str]:
    """The documents that do not follow from the stored logits, a clause each; of the base, unless others are named."""
    logits, applied = artifact.logits(), [AppliedAdapter(name=one, strength=1.0) for one in adapters]
    wrong = [] if _same(artifact.evaluation, work.evaluation(logits, applied, checkpoint)) else [EVALUATION]
    if artifact.is_finetuned:
        kept = artifact.analysis.control if adapters else None  # a checkpoint has none
        control = Control(kept.scale, artifact.logits(control=True)) if kept else None
        found = analyse(work.logits_with(adapters[:-1]), logits, work.labels, artifact.finetune.digit, control)
        wrong += [] if _same(artifact.analysis, found, NOT_RECOMPUTED if adapters else None) else [ANALYSIS]
    return [f"{name} does not follow from its logits" for name in wrong]


def _same(stored: Document, found: Document, exclude: set[str] | None = None) -> bool:
    """Whether two documents are equal: floats to a relative 1e-6, everything else exactly."""
    return _equal(stored.model_dump(mode="json", exclude=exclude), found.model_dump(mode="json", exclude=exclude))


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING**2)
    return bool(one == other)
