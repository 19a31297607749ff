"""An opened run: what every stage after pretraining starts from."""

import copy
import itertools
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_mnist.datasets.dataset import Dataset, choose_dataset, data_folder, load
from lora_mnist.errors import AlteredError, RunError, UsageError
from lora_mnist.evaluation.metrics import weakest_digit
from lora_mnist.lora import Fingerprint, load_adapter, load_fingerprint, set_strength
from lora_mnist.lora.peft import CONFIG
from lora_mnist.runs.artifact import ADAPTER_WEIGHTS, EVALUATION, LOGITS, RECORD, WEIGHTS, Artifact, load_network
from lora_mnist.runs.atomic import RESTORE
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import AppliedAdapter, Evaluation, evaluation_of, facts_of, rare_digit
from lora_mnist.settings.config import Settings
from lora_mnist.settings.request import Applied, Request
from lora_mnist.training.device import prepare_device
from lora_mnist.training.model import MLP
from lora_mnist.training.progress import Progress

log = logging.getLogger("lora_mnist")

IS_PATH = re.compile(r"[./\\]")  # names in a run hold neither dots nor separators


@dataclass(frozen=True)
class Workspace:
    """A run with its base loaded, its images at hand and the device chosen."""

    request: Request
    run: Run
    settings: Settings  # what the request comes to for this run
    device: torch.device
    dataset: Dataset
    base: MLP  # as it lies in the run; stages work on copies
    fingerprint: Fingerprint

    @property
    def progress(self) -> Progress:
        return Progress(self.request.quiet, self.request.stage)

    @property
    def labels(self) -> dict[str, torch.Tensor]:
        """int64 (N,) by split."""
        return {split: part.labels for split, part in self.dataset.held_out.items()}

    @property
    def images(self) -> dict[str, torch.Tensor]:
        """uint8 (N, 28, 28) by split."""
        return {split: part.images for split, part in self.dataset.held_out.items()}

    def evaluation(
        self, logits: Mapping[str, torch.Tensor], adapters: Sequence[AppliedAdapter] = (), checkpoint: str | None = None
    ) -> Evaluation:
        """What logits (N, 10) by split mean; of the base with `adapters`, or of a network made from it."""
        return evaluation_of(self.dataset, self.fingerprint, logits, adapters, checkpoint)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one that writes to the run (see `Run.writing`).

        Raises RunError if another base has taken the place of this one since it was opened.
        """
        with self.run.writing():
            if self.run.base.evaluation.base_fingerprint != self.fingerprint.sha256:
                raise RunError(f"{self.run.base.folder} changed while it was read.", "Run it again.")
            yield

    def check_can_save(self, saved: Artifact) -> None:
        """Make sure that an adapter or checkpoint can be saved there, before any work is spent on it.

        Raises RunError if it is finished already and not to be replaced, DiskError if the disk refuses.
        """
        self.run.tidy()
        self.run.require_unused(saved, self.request.force)
        self.run.require_writable()

    def require_on_top(self, names: Sequence[str]) -> None:
        """Raises RunError unless each of `names` is an adapter of the run, trained on top of those before it."""
        for i, name in enumerate(names):
            below = self.run.require_adapter(name).finetune.on_top_of
            if below != tuple(names[:i]):
                raise RunError(
                    f"{name!r} was trained on top of {', '.join(below) or 'the base'}, not of what is named before it.",
                    "Name the adapters of one `run --rounds`, in their order.",
                )

    def logits_with(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """(N, 10) fp32 by split, as stored, of the base with adapters trained on top of each other; or of the base.

        Raises AlteredError if there are others than one row for each image.
        """
        saved = self.run.adapter(names[-1]) if names else self.run.base
        stored = saved.logits()
        for split, part in self.dataset.held_out.items():
            if split not in stored or stored[split].shape != (len(part), 10):
                raise AlteredError(
                    f"{saved.folder / LOGITS} does not hold 10 for each of {len(part)} {split} images.", RESTORE
                )
        return stored

    def target_digit(self, on_top_of: Sequence[str] = ()) -> int:
        """The digit to repair: the one in the settings, or the weakest on `val` with the adapters that are there.

        Raises UsageError if the weakest is wanted and there is no `val`.
        """
        digit, val = self.settings.finetune.digit, self.dataset.val
        if digit != "weakest":
            return digit
        if not len(val):
            raise UsageError("The weakest digit is found on `val`, and this run has none.", "Name one with --digit.")
        return weakest_digit(self.logits_with(on_top_of)["val"], val.labels)

    def warn_of_no_miss(self, digit: int, on_top_of: Sequence[str] = ()) -> None:
        """Say, before anything is trained, that `val` holds no wrong image of `digit`."""
        of_digit = self.dataset.val.labels.cpu() == digit
        if len(of_digit) and bool((self.logits_with(on_top_of)["val"].argmax(1)[of_digit] == digit).all()):
            count = int(of_digit.sum())
            log.info("Note: all %d images of %d on val are right already, so val has nothing to repair.", count, digit)

    def adapted(
        self, adapters: Sequence[Applied], allow_unverified: bool = False
    ) -> tuple[MLP, tuple[AppliedAdapter, ...]]:
        """A copy of the base with adapters, and what an evaluation says of them.

        Raises RunError if one is missing, damaged, made on another base, or has no fingerprint and that is not allowed,
        LoRAError if a strength is not finite.
        """
        model, used = copy.deepcopy(self.base), list[AppliedAdapter]()
        for one in adapters:
            folder, name = self.locate(one.reference)
            name = free_name(name, [other.name for other in used])  # folders may have the same name
            verified = load_fingerprint(folder) is not None
            if not verified and not allow_unverified:
                raise RunError(
                    f"{folder / ADAPTER_WEIGHTS} does not say which base it was trained on.",
                    "Use --allow-unverified if you know that it was this one.",
                )
            load_adapter(folder, model, name, self.fingerprint, allow_unverified)
            set_strength(model, name, one.strength)
            if not verified:
                log.warning("%s carries no fingerprint: nothing proves that it was trained on this base.", folder)
            used.append(AppliedAdapter(name=name, strength=one.strength, verified=None if verified else False))
        on = {one.name for one in used}
        for name in sorted(on):
            if missing := [below for below in self.run.on_top_of(name) if below not in on]:
                log.info("Note: %s was trained on top of %s, which is not on.", name, ", ".join(missing))
        return model, tuple(used)

    def checkpoint(self, reference: str | None) -> tuple[MLP, Artifact]:
        """A network made from the base, and where it is saved; None is the latest that `finetune --full` made.

        Raises RunError if it is missing or damaged, or was made from another base.
        """
        if reference is None:
            if not (full := self.run.full_checkpoints()):
                raise RunError(
                    f"{self.run.path} has no fully fine-tuned checkpoint.",
                    f"Run `lora-mnist finetune --full --run {self.run.path}` first.",
                )
            reference = full[-1].name
        if not reference:
            raise RunError("--checkpoint is empty.", "Name a checkpoint.")
        if IS_PATH.search(reference):
            path = Path(reference)
            path = (path / WEIGHTS if path.is_dir() else path).resolve()
            saved = Artifact(path.parent)
        else:
            saved = self.run.require_checkpoint(reference)
            path = saved.file(WEIGHTS)
        self.require_same_base(saved)
        return load_network(path, self.device)[0], saved

    def require_same_base(self, saved: Artifact) -> None:
        """Raises RunError if what lies beside a checkpoint says that it was made from another base."""
        if saved.file(EVALUATION).is_file() and saved.evaluation.base_fingerprint != self.fingerprint.sha256:
            raise RunError(f"{saved.folder} was made from another base.", "Use it with the run it came from.")

    def locate(self, reference: str) -> tuple[Path, str]:
        """The folder of an adapter, which is a name in the run or a path, and a name for it.

        Raises RunError if there is none, or it is not the one that was saved.
        """
        if not reference:
            raise RunError("--adapter is empty.", "Name an adapter.")
        if IS_PATH.search(reference):
            return Path(reference), name_from(Path(reference).resolve().name)
        if reference not in self.run.adapter_names() and (Path(reference) / CONFIG).is_file():
            raise RunError(
                f"There is no adapter {reference!r} in {self.run.path}.", f"For the folder write ./{reference}."
            )
        return self.run.require_adapter(reference).file(""), reference


def open_workspace(request: Request, run: Run | None = None) -> Workspace:
    """Open the run of `request`, or go on with it if it is opened already.

    Raises RunError if it has no base, or a damaged one or one of other images, UsageError if what was asked contradicts
    it.
    """
    run = run or Run(request.run)
    base = run.require_base()
    stored, name = run.record.settings, run.record.dataset.name
    request.refuse_contradictions(stored.model_dump(mode="json"), ("data", "model"), name, base.folder)
    settings = request.settings(stored, name)
    device = prepare_device(request.device, request.threads)
    data = data_folder(request.data, base.provenance.data)
    choose_dataset(name, data, request.quiet, request.offline)
    dataset = load(name, data, settings.data.val_share, settings.data.split_seed, device, settings.data.val_from)
    if dataset.sha256 != run.record.dataset.sha256:
        raise RunError(f"{run.path} was trained on other images of the same name.", "Choose another --run.")
    # a `val_share` changed by hand would put other images into each split
    if (run.record.dataset, run.record.rare) != (facts_of(dataset), rare_digit(stored.pretrain, dataset)):
        cause = f"{base.folder / RECORD} counts other images in a split, or of the rare digit, than its settings give."
        raise AlteredError(cause, RESTORE)
    return workspace_with(request, run, settings, device, dataset)


def workspace_with(request: Request, run: Run, settings: Settings, device: torch.device, dataset: Dataset) -> Workspace:
    """The last step of `open_workspace`, for who has settings and images already: read the base from its file."""
    network, fingerprint = load_network(run.base.file(WEIGHTS), device)
    return Workspace(request, run, settings, device, dataset, network, fingerprint)


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or the first of `name-2`, `name-3`, … that is not in `taken`."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)


def name_from(folder: str) -> str:
    """A folder's name as an adapter's, which has fewer letters."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", folder)
