"""An opened run: what every stage after pretraining starts from."""

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_mnist.datasets import dataset as data
from lora_mnist.errors import RunError, UsageError
from lora_mnist.evaluation.metrics import logits_of, weakest_digit
from lora_mnist.files import standing
from lora_mnist.lora.adapters import set_strength
from lora_mnist.lora.peft import CONFIG, load_adapter, load_seal
from lora_mnist.lora.peft import WEIGHTS as ADAPTER
from lora_mnist.lora.seal import Seal
from lora_mnist.runs.checkpoint import load_network
from lora_mnist.runs.rundir import WEIGHTS, Run
from lora_mnist.settings.config import Settings
from lora_mnist.settings.request import Applied, Request
from lora_mnist.training.device import prepare
from lora_mnist.training.model import MLP

log = logging.getLogger("lora_mnist")


@dataclass(frozen=True)
class Workspace:
    """A run with its base loaded, its images at hand and the device chosen."""

    run: Run
    settings: Settings
    device: torch.device
    dataset: data.Dataset
    base: MLP
    sealed: Seal

    @property
    def labels(self) -> dict[str, torch.Tensor]:
        """int64 (N,) by split."""
        return {split: part.labels for split, part in self.dataset.held_out.items()}

    @property
    def images(self) -> dict[str, torch.Tensor]:
        """uint8 (N, 28, 28) by split."""
        return {split: part.images for split, part in self.dataset.held_out.items()}

    def require_stack(self, names: Sequence[str]) -> None:
        """Raises RunError unless each of `names` is an adapter of the run, trained on top of those before it."""
        for i, name in enumerate(names):
            self.run.require_adapter(name)
            below = self.run.on_top_of(name)
            if below != list(names[:i]):
                raise RunError(
                    f"{name!r} was trained on top of {', '.join(below) or 'the base'}, not of what is named before it.",
                    "Name the adapters of one `run --rounds`, in their order.",
                )

    def logits_of_stack(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """(N, 10) fp32 by split, as stored, of the base with adapters trained on top of each other; or of the base."""
        return self.run.logits(self.run.adapter(names[-1]) if names else None)

    def target_digit(self, on_top_of: Sequence[str] = ()) -> int:
        """The digit to repair: the one in the settings, or the weakest on `val` with the adapters that are there.

        Raises:
            UsageError: the weakest is wanted and there is no `val`.
        """
        digit = self.settings.finetune.digit
        if digit != "weakest":
            return digit
        if not len(self.dataset.val):
            raise UsageError("The weakest digit is found on `val`, and this run has none.", "Name one with --digit.")
        digit = weakest_digit(self.logits_of_stack(on_top_of)["val"], self.dataset.val.labels)
        log.info("The weakest digit on val is %d%s.", digit, f" with {', '.join(on_top_of)}" if on_top_of else "")
        return digit

    def adapted(self, adapters: Sequence[Applied], allow_unsealed: bool = False) -> tuple[MLP, list[dict]]:
        """A copy of the base with adapters, and what evaluation.json says of them.

        Raises:
            RunError: one is missing, damaged, or made on another base; or has no seal, unless that is allowed.
            LoRAError: a strength is not finite.
        """
        model, used = copy.deepcopy(self.base), []
        for one in adapters:
            folder, name = self._locate(one.reference)
            names = (name, *(f"{name}-{i}" for i in range(2, len(adapters) + 2)))  # folders may be called the same
            name = next(free for free in names if free not in {other["name"] for other in used})
            sealed = load_seal(folder)
            if sealed is None and not allow_unsealed:
                raise RunError(
                    f"{folder / ADAPTER} does not say which base it was trained on.",
                    "Use --allow-unsealed if you know that it was this one.",
                )
            load_adapter(folder, model, name, self.sealed, allow_unsealed)
            set_strength(model, name, one.strength)
            used.append({"name": name, "strength": one.strength})
            if sealed is None:
                log.warning("%s carries no seal: nothing proves that it was trained on this base.", folder)
                used[-1]["sealed"] = False
        on = {one["name"] for one in used}
        for name in sorted(on):
            if missing := [below for below in self.run.on_top_of(name) if below not in on]:
                log.info("Note: %s was trained on top of %s, which is not on.", name, ", ".join(missing))
        return model, used

    def checkpoint(self, reference: str | None) -> tuple[MLP, str, Path]:
        """A network made from the base, its name and its folder; None is the latest that `finetune --full` made.

        Raises:
            RunError: it is missing or damaged, or was made from another base.
        """
        if reference is None:
            full = self.run.trained_whole()
            if not full:
                raise RunError(
                    f"{self.run.path} has no fully fine-tuned checkpoint.",
                    f"Run `lora-mnist finetune --full --run {self.run.path}` first.",
                )
            reference = full[-1].name
        if _is_path(reference):
            path = Path(reference)
            path = (path / WEIGHTS if path.is_dir() else path).resolve()
            self.require_same_base(path.parent)
            return load_network(path, self.device)[0], _name_from(path.parent.name), path.parent
        if not reference:
            raise RunError("There is no checkpoint without a name.", "Name one, or leave --checkpoint out.")
        self.run.require_checkpoint(reference)
        folder = self.run.checkpoint(reference)
        self.require_same_base(folder)
        return load_network(standing(folder) / WEIGHTS, self.device)[0], reference, folder

    def require_same_base(self, folder: Path) -> None:
        """Raises RunError if what lies beside a checkpoint says that it was made from another base."""
        told = (standing(folder) / "evaluation.json").is_file()
        if told and self.run.evaluation(folder)["base_seal"] != self.sealed.sha256:
            raise RunError(f"{folder} was made from another base.", "Use it with the run it came from.")

    def _locate(self, reference: str) -> tuple[Path, str]:
        if _is_path(reference):
            return Path(reference), _name_from(Path(reference).resolve().name)
        if reference not in self.run.adapter_names() and (Path(reference) / CONFIG).is_file():
            raise RunError(
                f"There is no adapter {reference!r} in {self.run.path}.", f"For the folder write ./{reference}."
            )
        self.run.require_adapter(reference)
        return standing(self.run.adapter(reference)), reference


def open_workspace(request: Request) -> Workspace:
    """Open the run of `request`.

    Raises:
        RunError: it has no base, or one that is damaged or was trained on other images.
        UsageError: what was asked contradicts it.
    """
    run = Run(request.run)
    run.require_base()
    record = run.record()
    name = record["settings"]["data"]["dataset"]
    request.refuse_contradictions(record["settings"], ("data", "model"), name, run.base)
    settings = request.settings(record["settings"], name)
    device = prepare(request.device, request.threads)
    data.choose(name, request.folder, request.quiet)
    dataset = data.load(name, request.folder, settings.data.val_share, settings.data.split_seed, device)
    if dataset.sha256 != record["dataset"]["sha256"]:
        raise RunError(f"{run.path} was trained on other images of the same name.", "Choose another --run.")
    base, sealed = load_network(standing(run.base) / WEIGHTS, device)
    return Workspace(run, settings, device, dataset, base, sealed)


def held_out_logits(model: MLP, dataset: data.Dataset) -> dict[str, torch.Tensor]:
    """(N, 10) fp32 by split."""
    return {split: logits_of(model, part.images) for split, part in dataset.held_out.items()}


def _is_path(reference: str) -> bool:
    """Names in a run hold neither dots nor separators."""
    return re.search(r"[./\\]", reference) is not None


def _name_from(folder: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", folder)
