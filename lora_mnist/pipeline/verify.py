"""Prove everything again from the files, and derive all that follows from them. Nothing is written."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from lora_mnist.errors import AlteredError, UsageError, shown
from lora_mnist.evaluation.predict import held_out_logits
from lora_mnist.evaluation.proof import TOLERANCE, Plain, failures, prove
from lora_mnist.evaluation.results import Frozen, Off, On, Proof
from lora_mnist.pipeline.again import of_adapter, of_base
from lora_mnist.pipeline.again_whole import of_checkpoint
from lora_mnist.pipeline.price import unlike_price
from lora_mnist.pipeline.workspace import Workspace, read_workspace
from lora_mnist.runs.artifact import WEIGHTS, Artifact
from lora_mnist.runs.checkpoint import load_network
from lora_mnist.settings.request import Applied, Request
from lora_mnist.settings.strict import Document, Many, Maybe


class BaseFindings(Document):
    """Of the base: its fingerprint and how many tensors that covers, unless it could not be read."""

    passed: bool
    fingerprint: Maybe[str] = None
    tensors: Maybe[int] = None


class AdapterFindings(Document):
    """Of an adapter: the three claims, unless it could not be read; and what failed, a clause each."""

    name: str
    passed: bool
    frozen: Maybe[Frozen] = None
    off: Maybe[Off] = None
    on: Maybe[On] = None
    failures: Many[str]

    @property
    def proof(self) -> Proof | None:
        """The claims together."""
        if self.frozen is None or self.off is None or self.on is None:
            return None
        passed = self.frozen.passed and self.off.passed and self.on.passed
        return Proof(passed=passed, frozen=self.frozen, off=self.off, on=self.on)


class CheckpointFindings(Document):
    """Of a checkpoint: its fingerprint, unless it could not be read; and what failed, a clause each."""

    name: str
    fingerprint: Maybe[str] = None
    passed: bool
    failures: Many[str]


class Verification(Document):
    """What `verify` found.

    Attributes:
        notes: what could not be looked at, and is no fault.
        digest: of the run; like `dataset` it is known unless the base could not be read.
        report: whether the report says what the run does; None if there is none, or it was not looked at.
    """

    passed: bool
    failures: Many[str]
    notes: Many[str] = ()
    digest: Maybe[str] = None
    dataset: Maybe[str] = None
    base: BaseFindings
    adapters: Many[AdapterFindings]
    checkpoints: Many[CheckpointFindings]
    report: Maybe[bool] = None

    def with_report(self, failures: Sequence[str], notes: Sequence[str]) -> "Verification":
        """With what was found in the report."""
        told = tuple(f"report: {clause}" for clause in failures)
        looked = {} if notes else {"report": not failures}
        failed = {"passed": self.passed and not told, "failures": (*self.failures, *told)}
        return self.model_copy(update=looked | failed | {"notes": (*self.notes, *notes)})

    def beside(self, digest: str | None) -> "Verification":
        """With a failure if the run's digest does not begin with `digest`."""
        if digest is None or (self.digest or "").startswith(digest):
            return self
        clause = f"the run digest is {self.digest or 'not known'}, not {digest}"
        return self.model_copy(update={"passed": False, "failures": (*self.failures, clause)})


def verify(request: Request, adapters: Sequence[str] = (), digest: str | None = None) -> Verification:
    """Open the run of `request` and `verify_workspace`; a base that is not the one that was saved is a finding.

    Args:
        digest: that the run should have (see `Run.digest`), or its first 16 characters or more.

    Raises:
        RunError: something is missing altogether, or belongs to another base.
        UsageError: `digest` is none.
    """
    if digest is not None and not re.fullmatch("[0-9a-f]{16,64}", digest := digest.lower()):
        raise UsageError(
            f"`digest` (={shown(digest)}) is not a run digest.",
            "Give its 64 hexadecimal digits, or the first 16 or more.",
        )
    try:
        return read_workspace(request, lambda work: verify_workspace(work, adapters)).beside(digest)
    except AlteredError as error:  # of the base; those of what was made from it are findings already
        base = BaseFindings(passed=False)
        return Verification(passed=False, failures=(error.cause,), base=base, adapters=(), checkpoints=())


def verify_workspace(work: Workspace, adapters: Sequence[str] = ()) -> Verification:
    """Prove the base and `adapters`; if none is named, all of them and all checkpoints.

    Raises:
        RunError: as `verify` does.
    """
    if not adapters:
        work.run.require_complete()
    names = list(dict.fromkeys(adapters)) or work.run.adapter_names()
    base = _Base(work)
    entries = tuple(_verify_adapter(work, name, base) for name in names)
    networks = () if adapters else tuple(_verify_checkpoint(work, one.name, base) for one in work.run.checkpoints())
    failed = [f"base: {clause}" for clause in base.failures]
    failed += [f"{entry.name}: {clause}" for entry in entries for clause in entry.failures]
    failed += [f"{network.name}: {clause}" for network in networks for clause in network.failures]
    return Verification(
        passed=not failed,
        failures=tuple(failed),
        digest=work.run.digest(),
        dataset=work.dataset.name,
        base=BaseFindings(
            passed=base.is_sound, fingerprint=work.fingerprint.sha256, tensors=len(work.fingerprint.tensors)
        ),
        adapters=entries,
        checkpoints=networks,
    )


class _Base:
    """The base of a run. What is asked of it waits for the proof of an adapter, which may have shown it by the way."""

    def __init__(self, work: Workspace):
        self.work = work
        self.plain = Plain(work.base, work.images, work.run.base.logits())

    @cached_property
    def failures(self) -> list[str]:
        """What of its files does not follow from its weights, a clause each."""
        return _unlike_stored(self.work.run.base, self.plain.logits) or of_base(self.work)

    @property
    def is_sound(self) -> bool:
        """Else nothing that is compared with it can be derived."""
        return not self.failures


def _verify_adapter(work: Workspace, name: str, base: _Base) -> AdapterFindings:
    try:
        saved = work.run.require_adapter(name)
        below = saved.tuning.on_top_of
        if missing := [one for one in below if one not in work.run.adapter_names()]:
            clause = f"it was trained on top of {', '.join(missing)}, which is not in the run"
            return AdapterFindings(name=name, passed=False, failures=(clause,))
        adapted, _ = work.adapted([Applied(one) for one in (*below, name)])
        proof, logits = prove(base.plain, work.fingerprint, adapted)
        wrong = failures(proof) + _unlike_stored(saved, logits)
        if base.is_sound and not wrong:
            wrong = [*of_adapter(work, saved, adapted, proof), *unlike_price(work, saved, adapted)]
    except AlteredError as error:
        return AdapterFindings(name=name, passed=False, failures=(error.cause,))
    return AdapterFindings(
        name=name, passed=not wrong, frozen=proof.frozen, off=proof.off, on=proof.on, failures=tuple(wrong)
    )


def _verify_checkpoint(work: Workspace, name: str, base: _Base) -> CheckpointFindings:
    try:
        saved = work.run.require_checkpoint(name)
        work.require_same_base(saved)
        model, fingerprint = load_network(saved.file(WEIGHTS), work.device)
        logits = held_out_logits(model, work.dataset)
        wrong = _unlike_stored(saved, logits)
        if base.is_sound and not wrong:
            wrong = of_checkpoint(work, saved, model, logits)
    except AlteredError as error:
        return CheckpointFindings(name=name, passed=False, failures=(error.cause,))
    return CheckpointFindings(name=name, fingerprint=fingerprint.sha256, passed=not wrong, failures=tuple(wrong))


def _unlike_stored(saved: Artifact, logits: Mapping[str, torch.Tensor]) -> list[str]:
    """The splits whose stored logits do not follow from the weights, a clause each."""
    stored = saved.logits()
    wrong = [split for split in logits if not _are_close(stored.get(split), logits[split])]
    wrong = wrong or sorted(stored.keys() - logits.keys())
    return [f"the stored logits of {split} are not those of its weights" for split in wrong]


def _are_close(stored: torch.Tensor | None, logits: torch.Tensor) -> bool:
    """Up to rounding, as they may come from another machine; no NaN is close to anything."""
    if stored is None or stored.shape != logits.shape:
        return False
    return bool(((stored - logits).abs() <= 10 * TOLERANCE * float(logits.abs().max())).all())
