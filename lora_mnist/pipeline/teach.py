"""Teach a network drawings of one's own: train an adapter on them, test it, and keep it if that is wanted."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lora_mnist.datasets.drawings import Drawings
from lora_mnist.errors import RunError, UsageError
from lora_mnist.evaluation.guard import Guard, require_val, select_scale
from lora_mnist.evaluation.metrics import compare_split
from lora_mnist.evaluation.results import GuardDecision
from lora_mnist.evaluation.verdict import LessonErrors, LessonResult, LessonVerdict, UnseenDrawings
from lora_mnist.lora import scale_alpha, updates_of
from lora_mnist.pipeline.finetune import prove_and_save, record_of
from lora_mnist.pipeline.workspace import Workspace, free_name
from lora_mnist.runs.schemas import Provenance, record_provenance
from lora_mnist.settings.config import Document, TeachSettings, require_name
from lora_mnist.training.loop import History
from lora_mnist.training.model import MLP, logits_of
from lora_mnist.training.progress import SILENT, CallbackProgress, Step
from lora_mnist.training.train import least_confidence, train_on_drawings, with_adapter

NAME = "taught"


@dataclass(frozen=True)
class TaughtAdapter:
    """An adapter that was trained on drawings and is not saved yet. It can be pickled."""

    digit: int  # the one that it is judged by
    settings: TeachSettings
    seed: int
    guard: GuardDecision
    lesson: LessonResult  # what it learnt, and the side effects
    provenance: Provenance
    drawings: Drawings
    weights: dict[str, dict[str, torch.Tensor]]  # lora_A (rank, in) and lora_B (out, rank) of every layer
    history: History
    base_fingerprint: str

    def on(self, base: MLP, name: str = NAME) -> MLP:
        """A copy of `base` with the adapter on, under that name, at the scale its guard selected."""
        adapted = with_adapter(base, name, self.settings, seed=0)
        for path, update in updates_of(adapted, name).items():
            update.load_state_dict(self.weights[path])
        scale_alpha(adapted, name, self.guard.scale or 1.0)
        return adapted.eval()


class TeachResult(Document):
    """What `lora-mnist teach` did. `folder`: of the adapter; None if nothing was kept."""

    kept: bool
    lesson: LessonResult
    verdict: LessonVerdict
    seconds: float
    folder: str | None


def teach(work: Workspace, drawings: Drawings, report: Callable[[Step], None] | None = None) -> TaughtAdapter:
    """Train an adapter on `drawings` beside training images, and test it. Nothing is written.

    The settings are those of `work`, `[teach]`. Where there are enough drawings, adapters that have not seen them judge
    them.

    Args:
        report: called after every step; what it raises ends the training. None shows a bar where the workspace does.

    Raises UsageError if there is a guard, but no `val` to judge by, or if the loss is not a number any more.
    """
    recipe, drawings, val = work.settings.teach, drawings.by_digit(), work.dataset.val
    require_val(recipe.guard, val)
    parts = folds_of(drawings, recipe.folds)
    # half as long, since somebody is waiting: on handwriting made of val, 45 % fewer errors in place of 52 %
    brief = recipe.model_copy(update={"steps": -(-recipe.steps // 2)})
    reported = CallbackProgress(tell=report, steps=recipe.steps + len(parts) * brief.steps) if report else None
    started, seed = time.perf_counter(), work.settings.seed
    uncertainty = least_confidence(work.base, work.dataset.train.images) if recipe.hard_examples else None

    def train(on: Drawings, how: TeachSettings, done: int = 0) -> tuple[MLP, History]:
        settings = work.settings.model_copy(update={"teach": how})
        progress = replace(reported, before=done) if reported else SILENT if done else work.progress
        return train_on_drawings(work.base, NAME, on, settings, work.dataset, progress, uncertainty)

    adapted, history = train(drawings, recipe)
    was_right = is_right(work.base, drawings)
    # it is judged by the digit with the most wrong drawings; of equals, the most drawings; of those, the smallest
    wrong = torch.bincount(drawings.labels.cpu()[~was_right], minlength=10).tolist()
    digit = max(range(10), key=lambda one: (wrong[one], drawings.counts[one], -one))
    guard = Guard(recipe.guard, strongest=True)  # what the adapter is for is not in `val`
    decision = select_scale(adapted, NAME, guard, work.logits_with(()).get("val"), val, digit)
    scale_alpha(adapted, NAME, decision.scale or 1.0)

    unseen = None
    if parts:  # cross-validation: every part is tested with an adapter that was trained on the others
        now_right = torch.zeros_like(was_right)
        with work.progress.waiting("testing each drawing with an adapter that has not seen it"):
            for number, part in enumerate(parts):
                others = Drawings(drawings.images[~part], drawings.labels[~part])
                tester, _ = train(others, brief, recipe.steps + number * brief.steps)
                scale_alpha(tester, NAME, decision.scale or 1.0)
                now_right[part] = is_right(tester, drawings)[part]
        unseen = UnseenDrawings(
            images=len(was_right),
            before=int(was_right.sum()),
            after=int(now_right.sum()),
            fixed=int((~was_right & now_right).sum()),
            broken=int((was_right & ~now_right).sum()),
            folds=len(parts),
            steps=brief.steps,
        )
    lesson = LessonResult(
        drawings=drawings.counts,
        before=int(was_right.sum()),
        after=int(is_right(adapted, drawings).sum()),
        unseen=unseen,
        val=_on_val(work, adapted, digit) if len(val) else None,
        scale=decision.scale,
    )
    provenance, fingerprint = record_provenance(work.device, started), work.fingerprint.sha256
    weights = {path: update.state_dict() for path, update in updates_of(adapted, NAME).items()}
    return TaughtAdapter(digit, recipe, seed, decision, lesson, provenance, drawings, weights, history, fingerprint)


def keep(work: Workspace, taught: TaughtAdapter, name: str | None = None) -> Path:
    """Make `taught` an adapter of the run: proved, evaluated, its drawings beside it. Returns its folder.

    Args:
        name: None takes `taught`, or the first of `taught-2`, `taught-3`, … that is free.

    Raises:
        UsageError: the guard allows no scale, or it cannot have that name.
        ProofError: the proof failed; nothing is saved.
        RunError: there is one of that name, or it was trained on another base.
        DiskError: the disk refuses; the run is as before.
    """
    if taught.guard.scale is None:
        raise UsageError(taught.lesson.verdict.words, "--guard none keeps it as trained.")
    with work.writing():
        if taught.base_fingerprint != work.fingerprint.sha256:
            raise RunError("The adapter was trained on another base than the run has now.", "Teach it again.")
        name = _claim_name(work, name)
        adapted = taught.on(work.base, name)
        settings = taught.settings.model_copy(update={"name": name})
        details = {"seed": taught.seed, "guard": taught.guard, "lesson": taught.lesson}
        record = record_of("taught", adapted, name, taught.digit, settings, weakest=False, **details)
        prove_and_save(work, adapted, record, taught.provenance, taught.history, drawings=taught.drawings)
        return work.run.adapter(name).folder


def teach_and_keep(work: Workspace, drawings: Drawings, dry_run: bool = False) -> TeachResult:
    """`teach` and, unless the guard refuses or it is a dry run, `keep`; the name is that of the settings.

    Raises as both do; what hinders keeping, before anything is trained.
    """
    name, folder = work.settings.teach.name, None
    with nullcontext() if dry_run else work.writing():
        if not dry_run:
            _claim_name(work, name)
        taught = teach(work, drawings)
        if not dry_run and taught.guard.scale is not None:
            folder = str(keep(work, taught, name))
    lesson, seconds = taught.lesson, taught.provenance.seconds
    return TeachResult(kept=folder is not None, lesson=lesson, verdict=lesson.verdict, seconds=seconds, folder=folder)


def is_right(model: MLP, drawings: Drawings) -> torch.Tensor:
    """bool (K,): which of `drawings` the network recognises."""
    images = drawings.images.to(next(model.parameters()).device)
    return logits_of(model, images).argmax(1) == drawings.labels.cpu()


def folds_of(drawings: Drawings, folds: int) -> list[torch.Tensor]:
    """bool (K,) masks of as many parts, with about as many drawings of each digit; none for fewer than two a part.

    Equal drawings are in one part, so that no adapter is tested on what it was trained on.
    """
    rows = torch.cat([drawings.labels[:, None].cpu(), drawings.images.cpu().flatten(1)], 1)
    different, which = rows.unique(dim=0, return_inverse=True)  # sorted by digit
    if len(different) < 2 * folds:
        return []
    return [which % folds == part for part in range(folds)]


def _on_val(work: Workspace, adapted: MLP, digit: int) -> LessonErrors:
    val = work.dataset.val
    before, after = work.logits_with(())["val"], logits_of(adapted, val.images)
    found = compare_split(before, after, val.labels, digit)
    errors = {"before": found.before.errors, "after": found.after.errors}
    return LessonErrors(images=len(val), **errors, fixed=found.fixed, broken=found.broken)


def _claim_name(work: Workspace, name: str | None) -> str:
    """`name`, or else one that no adapter has; it can be saved there."""
    if name is None:
        name = free_name(NAME, [] if work.request.force else work.run.adapter_names())
    work.check_can_save(work.run.adapter(require_name(name)))
    return name
