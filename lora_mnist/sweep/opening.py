"""The bases of a sweep, made where they are missing, and its jobs with a key each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_mnist.datasets.dataset import Dataset, choose
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import weakest_digit
from lora_mnist.pipeline.pretrain import pretrain
from lora_mnist.pipeline.workspace import Workspace, open_workspace
from lora_mnist.runs.run import Run
from lora_mnist.settings.config import KnownDataset, Settings
from lora_mnist.settings.layers import Layer, merge
from lora_mnist.settings.request import Request
from lora_mnist.sweep.grid import NOTHING, Axes, Beside, Job, jobs_of
from lora_mnist.sweep.world import Base, SweepContext, base_of, halved

BASES = "bases"  # in the folder of a sweep: the runs of the bases that it made


@dataclass(frozen=True)
class Asked:
    """What a sweep was asked for.

    Attributes:
        request: settings for all jobs, the machine, and how progress is shown; its `run` and `force` mean nothing.
        axes: the settings that are varied.
        out: the folder of the sweep.
        base: the run from whose base all jobs start; None makes one base for every seed.
        beside: what else is trained, to compare with.
        hold_out: count on half of the held-out training images in place of `test`.
    """

    request: Request
    axes: Axes
    out: Path
    base: Path | None = None
    beside: Beside = NOTHING
    hold_out: bool = False

    @property
    def label(self) -> str:
        """What an adapter is called if only digits and seeds are varied: by what is set, or else by its config."""
        given = {name: values for name, values in self.axes.items() if name.startswith("finetune.")}
        parts = [f"{name[9:].replace('_', ' ')} {values[0]}" for name, values in given.items() if name[9:] != "digit"]
        return ", ".join(parts) or Path(self.request.config or "default").stem

    def jobs(self) -> list[Job]:
        """As asked: the digit of a job may still be `weakest`.

        Raises:
            UsageError: a setting is unknown or out of its range, or contradicts the base, or nothing is held out.
            RunError: `base` has none.
            DataError: the images cannot be had.
        """
        jobs = self._jobs()
        if self.hold_out and not jobs[0].settings.data.val_share:
            raise UsageError("There are no images to hold out: val_share is 0.", "Use --set data.val_share=0.1667.")
        return jobs

    def _jobs(self) -> list[Job]:
        if self.base is None:
            wanted = self.request.wanted_dataset(None)
            name = choose(wanted, self.request.data, self.request.quiet, self.request.offline)
            return jobs_of(self.axes, lambda tables: self._with(tables).settings(None, name), beside=self.beside)
        run = Run(self.base)
        folder, record = run.require_base().folder, run.record
        stored = record.settings.model_dump(mode="json")

        def resolved(tables: Layer) -> Settings:
            request = self._with(tables)
            request.refuse_contradictions(stored, ("data", "model", "pretrain"), record.dataset.name, folder)
            return request.settings(record.settings, record.dataset.name)

        return jobs_of(self.axes, resolved, "run", self.beside)

    def run_of(self, key: str) -> Path:
        """Where the base of that key lies, or will."""
        return self.base or self.out / BASES / key

    def _with(self, tables: Layer) -> Request:
        known: KnownDataset = "mnist"  # the tables of an option are for whatever data set it is
        return replace(self.request, options=merge([self.request.options, tables], known))


def open_world(asked: Asked, jobs: Sequence[Job]) -> tuple[SweepContext, list[Job]]:
    """Every base that `jobs` start from, and the jobs with their digit, none twice.

    Raises:
        UsageError: the weakest digit is wanted, and there is no `val`; or as `pretrain` does.
        RunError: a base cannot be read.
    """
    hard = {job.base for job in jobs if job.settings.finetune.hard_examples}
    bases: dict[str, Base] = {}
    dataset: Dataset | None = None
    for key, work in _opened(asked, jobs):
        if dataset is None:  # the same for all, of which one is enough
            dataset = halved(work.dataset, jobs[0].settings.data.split_seed) if asked.hold_out else work.dataset
        bases[key] = base_of(work, key in hard, dataset if asked.hold_out else None)
    assert dataset is not None  # there is a job
    world = SweepContext(dataset, bases, asked.hold_out)
    found = [_with_digit(job, world) for job in jobs]
    return world, list({job.key(bases[job.base].fingerprint, world.dataset.sha256): job for job in found}.values())


def _opened(asked: Asked, jobs: Sequence[Job]) -> Iterator[tuple[str, Workspace]]:
    first = {job.base: job for job in reversed(jobs)}
    keys = list(dict.fromkeys(job.base for job in jobs))
    for number, key in enumerate(keys, 1):
        request = replace(asked.request, run=asked.run_of(key), config=None, options={}, force=False)
        if asked.base is not None:
            yield key, open_workspace(request)
            continue
        settings: Mapping[str, Any] = first[key].settings.model_dump(mode="json", exclude_none=True)
        made_by = {name: settings[name] for name in ("seed", "data", "model", "pretrain")}
        stage = f"base {number}/{len(keys)} "
        yield key, pretrain(replace(request, options=made_by, stage=stage), resume=True)[0]


def _with_digit(job: Job, world: SweepContext) -> Job:
    if job.settings.finetune.digit != "weakest":
        return job
    if not len(world.dataset.val):
        raise UsageError("The weakest digit is found on `val`, and there is none.", "Name the digits with --digit.")
    return job.repairing(weakest_digit(world.bases[job.base].logits["val"], world.dataset.val.labels))
