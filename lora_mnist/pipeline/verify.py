"""Prove everything again from the files. Nothing is written."""

from collections.abc import Mapping, Sequence

import torch

from lora_mnist.errors import AlteredError
from lora_mnist.evaluation.findings import Frozen, Off, On, Proof
from lora_mnist.evaluation.metrics import summarise
from lora_mnist.evaluation.predict import held_out_logits
from lora_mnist.evaluation.proof import TOLERANCE, failures, prove
from lora_mnist.pipeline.workspace import Workspace, open_workspace
from lora_mnist.runs.checkpoint import load_network
from lora_mnist.runs.rundir import Run, of_one_base
from lora_mnist.runs.saved import WEIGHTS, Saved
from lora_mnist.settings.request import Applied, Request
from lora_mnist.settings.strict import Document, Many, Maybe


class BaseFindings(Document):
    """Of the base: its seal and how many tensors that covers, unless it could not be read."""

    passed: bool
    seal: Maybe[str] = None
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
    """Of a checkpoint: its seal, unless it could not be read; and what failed, a clause each."""

    name: str
    seal: Maybe[str] = None
    passed: bool
    failures: Many[str]


class Verification(Document):
    """What `verify` found. `dataset` is known unless the base could not be read."""

    passed: bool
    failures: Many[str]
    dataset: Maybe[str] = None
    base: BaseFindings
    adapters: Many[AdapterFindings]
    checkpoints: Many[CheckpointFindings]


def verify(request: Request, adapters: Sequence[str] = ()) -> Verification:
    """Open the run of `request` and `verify_workspace`; a base that is not the one that was saved is a finding.

    Raises:
        RunError: something is missing altogether, or belongs to another base.
    """
    try:
        return of_one_base(Run(request.run), lambda run: verify_workspace(open_workspace(request, run), adapters))
    except AlteredError as error:  # of the base; those of what was made from it are findings already
        base = BaseFindings(passed=False)
        return Verification(passed=False, failures=(error.cause,), base=base, adapters=(), checkpoints=())


def verify_workspace(work: Workspace, adapters: Sequence[str] = ()) -> Verification:
    """Prove the base and `adapters`; if none is named, all of them and all checkpoints.

    Raises:
        RunError: as `verify` does.
    """
    names = list(dict.fromkeys(adapters)) or work.run.adapter_names()
    plain = held_out_logits(work.base, work.dataset)
    wrong = _unlike_stored(work, work.run.base, plain)
    entries = tuple(_verify_adapter(work, name, plain) for name in names)
    networks = () if adapters else tuple(_verify_checkpoint(work, saved.name) for saved in work.run.checkpoints())
    failed = [f"base: {clause}" for clause in wrong]
    failed += [f"{entry.name}: {clause}" for entry in entries for clause in entry.failures]
    failed += [f"{network.name}: {clause}" for network in networks for clause in network.failures]
    return Verification(
        passed=not failed,
        failures=tuple(failed),
        dataset=work.dataset.name,
        base=BaseFindings(passed=not wrong, seal=work.sealed.sha256, tensors=len(work.sealed.tensors)),
        adapters=entries,
        checkpoints=networks,
    )


def _verify_adapter(work: Workspace, name: str, plain: Mapping[str, torch.Tensor]) -> AdapterFindings:
    try:
        saved = work.run.require_adapter(name)
        below = saved.tuning.on_top_of
        if missing := [one for one in below if one not in work.run.adapter_names()]:
            clause = f"it was trained on top of {', '.join(missing)}, which is not in the run"
            return AdapterFindings(name=name, passed=False, failures=(clause,))
        adapted, _ = work.adapted([Applied(one) for one in (*below, name)])
        proof, logits = prove(work.base, work.sealed, adapted, work.images, plain)
        wrong = failures(proof) + _unlike_stored(work, saved, logits)
    except AlteredError as error:
        return AdapterFindings(name=name, passed=False, failures=(error.cause,))
    return AdapterFindings(
        name=name, passed=not wrong, frozen=proof.frozen, off=proof.off, on=proof.on, failures=tuple(wrong)
    )


def _verify_checkpoint(work: Workspace, name: str) -> CheckpointFindings:
    try:
        saved = work.run.require_checkpoint(name)
        work.require_same_base(saved)
        model, sealed = load_network(saved.file(WEIGHTS), work.device)
        wrong = _unlike_stored(work, saved, held_out_logits(model, work.dataset))
    except AlteredError as error:
        return CheckpointFindings(name=name, passed=False, failures=(error.cause,))
    return CheckpointFindings(name=name, seal=sealed.sha256, passed=not wrong, failures=tuple(wrong))


def _unlike_stored(work: Workspace, saved: Saved, logits: Mapping[str, torch.Tensor]) -> list[str]:
    """What of the stored logits and evaluation does not follow from the weights, a clause each."""
    stored, splits, wrong = saved.logits(), saved.evaluation.splits, []
    for split, part in work.dataset.held_out.items():
        if not _are_close(stored.get(split), logits[split]):
            wrong.append(f"the stored logits of {split} are not those of its weights")
        elif splits.get(split) != summarise(stored[split], part.labels):
            wrong.append(f"the stored evaluation of {split} is not that of its logits")
    return wrong


def _are_close(stored: torch.Tensor | None, logits: torch.Tensor) -> bool:
    """Up to rounding, as they may come from another machine; no NaN is close to anything."""
    if stored is None or stored.shape != logits.shape:
        return False
    return bool(((stored - logits).abs() <= 10 * TOLERANCE * float(logits.abs().max())).all())
