"""Teach a network drawings of one's own: train an adapter on them, say what it costs, and keep it if that is wanted."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lora_mnist import SCHEMA
from lora_mnist.datasets.drawings import Drawings
from lora_mnist.errors import RunError, UsageError
from lora_mnist.evaluation.price import Price, PriceVerdict
from lora_mnist.evaluation.results import GuardDecision
from lora_mnist.evaluation.strength import choose, require_val
from lora_mnist.lora.adapters import updates_of
from lora_mnist.lora.switching import set_strength
from lora_mnist.pipeline.finetune import guard_of, parameters_of
from lora_mnist.pipeline.finetune import keep as keep_adapter
from lora_mnist.pipeline.price import judged, most_wrong, parts_of, price_of, right
from lora_mnist.pipeline.workspace import Workspace, sole_writer
from lora_mnist.runs.schemas import FinetuneRecord, Provenance, record_provenance
from lora_mnist.settings.config import TeachSettings, require_name
from lora_mnist.settings.strict import Document
from lora_mnist.training.loop import History
from lora_mnist.training.model import MLP
from lora_mnist.training.progress import SILENT, Progress, Step, Told
from lora_mnist.training.train import train_on_drawings, uncertainty_of, with_adapter

NAME = "taught"


@dataclass(frozen=True)
class Taught:
    """An adapter that was trained on drawings and lies nowhere yet. It can be pickled.

    Attributes:
        record: what it is, with its `price`; without a proof, which is made when it is kept. And how it was `made`.
        weights: lora_A (rank, in) and lora_B (out, rank) of every target layer, by the layer's name.
        base_fingerprint: of the base that it was trained on.
    """

    record: FinetuneRecord
    made: Provenance
    drawings: Drawings
    weights: dict[str, tuple[torch.Tensor, torch.Tensor]]
    history: History
    base_fingerprint: str

    @property
    def price(self) -> Price:
        """What it gained and cost."""
        assert self.record.price is not None  # `teach` has made it
        return self.record.price

    @property
    def settings(self) -> TeachSettings:
        """What it was trained with."""
        assert isinstance(self.record.settings, TeachSettings)
        return self.record.settings

    @property
    def is_allowed(self) -> bool:
        """Whether the guard lets it be kept."""
        return self.price.strength is not None

    def on(self, base: MLP, name: str = NAME) -> MLP:
        """A copy of `base` with the adapter on, under that name."""
        adapted = with_adapter(base, name, self.settings, seed=0)
        with torch.no_grad():
            for path, update in updates_of(adapted, name).items():
                for factor, value in zip((update.lora_A, update.lora_B), self.weights[path], strict=True):
                    factor.copy_(value)
        return adapted.eval()


class Teaching(Document):
    """What `lora-mnist teach` came to. `folder`: of the adapter; None if nothing was kept."""

    kept: bool
    price: Price
    verdict: PriceVerdict
    seconds: float
    folder: str | None


def teach(work: Workspace, drawings: Drawings, report: Callable[[Step], None] | None = None) -> Taught:
    """Train an adapter on `drawings` beside training images, and find its price. Nothing is written.

    The settings are those of `work`, `[teach]`. Of what the guard allows, it is the strongest.

    Args:
        report: called after every step; what it raises ends the training. None shows a bar where the workspace does.

    Raises:
        UsageError: there is a guard, but no `val` to judge by; or the loss is no number any more.
    """
    recipe, drawings = _recipe(work), drawings.by_digit()  # in whatever order they were drawn
    parts = parts_of(drawings, recipe.folds)
    # half as long, since somebody is waiting: on hands made of val, that left 45 % fewer errors in place of 52 %
    brief = recipe.model_copy(update={"steps": -(-recipe.steps // 2)})
    told = Told(tell=report, steps=recipe.steps + len(parts) * brief.steps) if report else None
    started = time.perf_counter()
    uncertainty = uncertainty_of(work.base, work.dataset.train.images) if recipe.hard_examples else None

    def train(on: Drawings, how: TeachSettings, progress: Progress) -> tuple[MLP, History]:
        return train_on_drawings(work.base, NAME, on, how, work.settings.seed, work.dataset, uncertainty, progress)

    adapted, history = train(drawings, recipe, told or work.progress)
    before = right(work.base, drawings)
    digit = most_wrong(drawings, before)
    on_val = work.logits_of_stack(()).get("val")
    guard = choose(adapted, NAME, guard_of(recipe, ()), on_val, work.dataset.val, digit)

    def train_without(part: int, others: Drawings) -> MLP:
        done = recipe.steps + part * brief.steps
        fellow, _ = train(others, brief, replace(told, before=done) if told else SILENT)
        set_strength(fellow, NAME, guard.strength or 1.0)
        return fellow

    with work.progress.waiting("judging each drawing by an adapter trained without it"):
        unseen = judged(drawings, parts, before, train_without, brief.steps)
    price = price_of(work, drawings, adapted, digit, guard.strength, unseen)
    record, made = _record(work, adapted, digit, guard, price), record_provenance(work.device, started)
    updates = updates_of(adapted, NAME)
    weights_of = {path: (one.lora_A.detach().cpu(), one.lora_B.detach().cpu()) for path, one in updates.items()}
    return Taught(record, made, drawings, weights_of, history, work.fingerprint.sha256)


@sole_writer
def keep(work: Workspace, taught: Taught, name: str | None = None) -> Path:
    """Make `taught` an adapter of the run: proved, evaluated, fingerprint, its drawings beside it. Returns its folder.

    Args:
        name: None takes `taught`, or the first of `taught-2`, `taught-3`, … that is free.

    Raises:
        UsageError: the guard allows no strength, or it can not be called so.
        ProofError: the proof failed; nothing is saved.
        RunError: there is one of that name, or it was trained on another base.
        DiskError: the disk refuses; the run is as before.
    """
    if not taught.is_allowed:
        raise UsageError(f"{taught.price.verdict.words}", "--guard none keeps it as trained.")
    if taught.base_fingerprint != work.fingerprint.sha256:
        raise RunError("The adapter was trained on another base than the run has now.", "Teach it again.")
    name = _free_name(work, name)
    work.claim(work.run.adapter(name))
    settings = taught.settings.model_copy(update={"name": name})
    record = taught.record.model_copy(update={"name": name, "settings": settings})
    keep_adapter(work, taught.on(work.base, name), record, taught.made, taught.history, drawings=taught.drawings)
    return work.run.adapter(name).folder


def teach_and_keep(work: Workspace, drawings: Drawings, dry_run: bool = False) -> Teaching:
    """`teach` and, unless the guard refuses or it is a dry run, `keep`; the name is that of the settings.

    Raises:
        As both do; what hinders keeping, before anything is trained.
    """
    name = _recipe(work).name
    if dry_run:
        return _told(teach(work, drawings), None)
    with work.writing():
        work.claim(work.run.adapter(_free_name(work, name)))
        taught = teach(work, drawings)
        return _told(taught, keep(work, taught, name) if taught.is_allowed else None)


def _recipe(work: Workspace) -> TeachSettings:
    recipe = work.settings.teach
    require_val(recipe.guard, work.dataset.val)
    return recipe


def _record(work: Workspace, adapted: MLP, digit: int, guard: GuardDecision, price: Price) -> FinetuneRecord:
    return FinetuneRecord(
        schema_version=SCHEMA,
        method="taught",
        name=NAME,
        digit=digit,
        settings=_recipe(work),
        parameters=parameters_of(adapted, NAME),
        proof=None,
        weakest_on_val=False,
        seed=work.settings.seed,
        guard=guard,
        price=price,
    )


def _free_name(work: Workspace, name: str | None) -> str:
    """`name`, or else one that no adapter has, unless what is finished may be replaced."""
    if name is not None:
        return require_name(name)
    there = [] if work.request.force else work.run.adapter_names()
    numbered = (f"{NAME}-{i}" for i in range(2, len(there) + 3))
    return next(free for free in (NAME, *numbered) if free not in there)


def _told(taught: Taught, folder: Path | None) -> Teaching:
    price = taught.price
    return Teaching(
        kept=folder is not None,
        price=price,
        verdict=price.verdict,
        seconds=taught.made.seconds,
        folder=None if folder is None else str(folder),
    )
