"""The whole sweep: its bases, its jobs, an engine, and a row a job, kept as soon as it is known; plan and keep."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lora_mnist.datasets.dataset import Dataset, Split, choose_dataset, data_folder
from lora_mnist.errors import ProofError, RunError, UsageError, shown
from lora_mnist.evaluation.metrics import held_out_logits, weakest_digit
from lora_mnist.evaluation.results import COUNTS, Counts
from lora_mnist.pipeline.finetune import finetune
from lora_mnist.pipeline.pretrain import pretrain
from lora_mnist.pipeline.verify import verify
from lora_mnist.pipeline.workspace import open_workspace
from lora_mnist.runs.run import Run
from lora_mnist.settings.config import Count, Document, Many, Maybe, Settings, resolve
from lora_mnist.settings.layers import overlay
from lora_mnist.settings.request import Request
from lora_mnist.sweep.engines import Engine
from lora_mnist.sweep.grid import MOST_JOBS, OF_BASE, Axes, Job, make_jobs
from lora_mnist.sweep.jobs import Base, SweepContext
from lora_mnist.sweep.rows import Failure, Row, Store
from lora_mnist.sweep.summary import Summary
from lora_mnist.training.progress import Progress
from lora_mnist.training.train import least_confidence

BASES = "bases"  # in the folder of a sweep: the runs of the bases that it made
HELD_OUT = " held out"  # after the hash of images that were halved


@dataclass(frozen=True)
class SweepRequest:
    """What a sweep was asked for."""

    request: Request  # settings for all jobs, the machine, progress; its `run` and `force` mean nothing
    axes: Axes  # the settings that are varied
    out: Path  # the folder of the sweep
    base: Path | None = None  # the run from whose base all jobs start; None makes one base for every seed
    full: bool = False  # what is compared with the adapters (see `make_jobs`)
    control: bool = False
    rounds: int = 0
    hold_out: bool = False  # count on half of the held-out training images in place of `test`

    @property
    def label(self) -> str:
        """What an adapter is called if only digits and seeds are varied: by what is set, or else by its config."""
        given = {name.removeprefix("finetune."): values for name, values in self.axes.items() if "finetune." in name}
        parts = [f"{name.replace('_', ' ')} {values[0]}" for name, values in given.items() if name != "digit"]
        return ", ".join(parts) or Path(self.request.config or "default").stem

    def jobs(self) -> list[Job]:
        """As asked: the digit of a job may still be `weakest`. Config files are read once, not once a job.

        Raises:
            UsageError: a setting is unknown or out of its range, or contradicts the base, or nothing is held out.
            RunError: `base` has none.
            DataError: the images cannot be had.
        """
        request, stored = self.request, None
        if self.base is None:
            name = choose_dataset(
                request.wanted_dataset(None), data_folder(request.data), request.quiet, request.offline
            )
        else:
            run = Run(self.base)
            folder, stored, name = run.require_base().folder, run.record.settings, run.record.dataset.name
            known = stored.model_dump(mode="json")
        below, inherited, *asked = request.config_layers(stored, name)

        def resolved(tables: Mapping[str, Any]) -> Settings:
            own = overlay([*asked, tables], name)
            if stored is not None:
                replace(request, config=None, options=own).refuse_contradictions(known, OF_BASE, name, folder)
            return resolve([below, inherited, own, {"data": {"dataset": name}}], name)

        key = None if self.base is None else "run"
        jobs = make_jobs(self.axes, resolved, key, self.full, self.control, self.rounds)
        if self.hold_out and not jobs[0].settings.data.val_share:
            raise UsageError("There are no images to hold out: val_share is 0.", "Use --set data.val_share=0.1667.")
        return jobs

    def run_of(self, key: str) -> Path:
        """Where the base of that key lies, or will."""
        return self.base or self.out / BASES / key


class Plan(Document):
    """What a sweep would do: jobs, how many of them are done already, how many bases it would train first."""

    folder: str
    jobs: Count
    finished: Count
    bases: Count


class SweepResult(Document):
    """What a sweep came to."""

    folder: str
    label: str  # what an adapter is called if nothing is varied
    rows: Many[Row]  # of every job asked for that is done, in the order of the grid
    failures: Many[Failure]  # of this time
    trained: Count  # jobs that were done just now; the others were there before
    seconds: float  # that these took, bases apart


class KeptAdapter(Document):
    """A row whose adapter was kept: its name and run, and its counts on `test`, as the row has them (`in_sweep`) and as
    the adapter that was trained again has them (`found`)."""

    key: str
    name: str
    run: str
    in_sweep: Counts
    found: Counts


class SweepReport(Document):
    """A sweep, what its rows say, on what page (both None if no job is done), and the adapter that was kept."""

    sweep: SweepResult
    answer: Summary | None
    page: Maybe[str]
    kept: Maybe[KeptAdapter]


def plan(request: SweepRequest) -> Plan:
    """Count jobs and bases; write nothing.

    Raises UsageError, RunError, DataError as the sweep would.
    """
    jobs, rows = request.jobs(), Store(request.out).rows
    runs = {job.base: Run(request.run_of(job.base)) for job in jobs}
    there = {key: run for key, run in runs.items() if run.base.is_finished}
    weakest: dict[str, list[int]] = {}
    for key, run in there.items():
        val = None if request.hold_out else run.base.evaluation.splits.get("val")
        counts = zip(val.wrong, val.images, strict=True) if val else ()
        rates = [wrong / max(1, images) for wrong, images in counts]
        # of several with the highest rate, the loss decides, which counts do not tell
        weakest[key] = [digit for digit, rate in enumerate(rates) if rate == max(rates)]
    finished = 0
    for job in (job for job in jobs if job.base in there):
        run, digit = there[job.base], job.settings.finetune.digit
        identity = run.base.evaluation.base_fingerprint, run.record.dataset.sha256 + HELD_OUT * request.hold_out
        digits = weakest[job.base] if digit == "weakest" else [digit]
        finished += any(job.with_finetune(digit=one).key(*identity) in rows for one in digits)
    return Plan(folder=str(request.out), jobs=len(jobs), finished=finished, bases=len(runs) - len(there))


def sweep(request: SweepRequest, engine: Engine) -> SweepResult:
    """Do every job that is not done yet.

    Raises:
        BusyError: another sweep writes to the folder.
        UsageError, RunError, DataError, DiskError: as those of the bases and of the folder.
    """
    for place in (request.out, *request.out.absolute().parents):
        if Run(place).base.is_finished:  # the page of a sweep would replace that of the run
            raise UsageError(f"`out` (={request.out}) is in a run, {place}.", "Give another --out.")
    jobs = request.jobs()
    store, failures = Store(request.out), list[Failure]()
    with store.writing():
        context, jobs = open_context(request, jobs)
        keys = {job.key(context.bases[job.base].fingerprint, context.dataset.sha256): job for job in jobs}
        left = [job for key, job in keys.items() if key not in store.rows]
        if len(store.rows) + len(left) > MOST_JOBS:
            cause = f"With the {len(store.rows):,} rows in {request.out}, these jobs are more than {MOST_JOBS:,}."
            raise UsageError(cause, "Give another --out.")
        started, done = time.perf_counter(), 0
        progress = Progress(request.request.quiet).counting(f"{len(left):,} jobs", len(left))
        with progress as show, closing(engine(context, left, show)) as finished:
            for outcomes in finished if left else ():  # an engine starts processes when it is asked for the first
                store.add([one for one in outcomes if isinstance(one, Row)])
                failures += [one for one in outcomes if isinstance(one, Failure)]
                done += len(outcomes)
                show(done)
        seconds = time.perf_counter() - started
    return SweepResult(
        folder=str(request.out),
        label=request.label,
        rows=tuple(store.rows[key] for key in keys if key in store.rows),
        failures=tuple(failures),
        trained=len(left) - len(failures),
        seconds=round(seconds, 2),
    )


def open_context(request: SweepRequest, jobs: Sequence[Job]) -> tuple[SweepContext, list[Job]]:
    """Every base that `jobs` start from, trained where it is missing, and the jobs with their digit.

    Raises:
        UsageError: the weakest digit is wanted, and there is no `val`; or as `pretrain` does.
        RunError: a base cannot be read.
    """
    settings = {job.base: job.settings for job in jobs}  # which are alike in what a base is made by
    hard = {job.base for job in jobs if job.settings.finetune.hard_examples}
    bases: dict[str, Base] = {}
    dataset: Dataset | None = None
    for number, (key, one) in enumerate(settings.items(), 1):
        opened = replace(request.request, run=request.run_of(key), config=None, options={}, force=False)
        if request.base is not None:
            work = open_workspace(opened)
        else:
            made_by = one.model_dump(mode="json", exclude_none=True, include={"seed", *OF_BASE})
            work, _ = pretrain(replace(opened, options=made_by, stage=f"base {number}/{len(settings)} "), resume=True)
        # the same for all, of which one is enough
        dataset = dataset or (halve_val(work.dataset, one.data.split_seed) if request.hold_out else work.dataset)
        network = work.base.requires_grad_(False).eval()
        uncertainty = least_confidence(network, dataset.train.images) if key in hard else None
        logits = held_out_logits(network, dataset) if request.hold_out else work.logits_with(())
        bases[key] = Base(work.fingerprint.sha256, network, logits, uncertainty)
    assert dataset is not None  # there is a job
    val = dataset.val.labels
    weakest = {key: weakest_digit(base.logits["val"], val) for key, base in bases.items() if len(val)}
    if not weakest and any(job.settings.finetune.digit == "weakest" for job in jobs):
        raise UsageError("The weakest digit is found on `val`, and there is none.", "Name the digits with --digit.")
    settled = [
        job.with_finetune(digit=weakest[job.base]) if job.settings.finetune.digit == "weakest" else job for job in jobs
    ]
    return SweepContext(dataset, bases, request.hold_out), settled


def halve_val(dataset: Dataset, seed: int) -> Dataset:
    """One half of `val` as `val`, the other in place of `test`, which a search must not look at."""
    order = torch.randperm(len(dataset.val), generator=torch.Generator().manual_seed(seed))
    halves = [Split(dataset.val.images[half], dataset.val.labels[half]) for half in order.chunk(2)]
    return Dataset(dataset.name, dataset.sha256 + HELD_OUT, dataset.train, *halves)


def choose_row(wanted: str, rows: Sequence[Row], store: Store) -> Row:
    """The row with the fewest errors on `val` among `rows`, of equals the smallest adapter, or the one with that key.

    Args:
        wanted: `best`, or a key of any row in `store`, or how it begins.

    Raises UsageError if there is none, or no `val` to choose by.
    """
    if wanted == "best":
        found = [row for row in rows if row.scale is not None and row.method == "lora"]
        if not found:
            raise UsageError(
                "No adapter of this sweep is done and met its guard, so there is no best.", "Give a row's key."
            )
        if "val" not in found[0].after:
            raise UsageError("The best is chosen on `val`, and there is none.", "Give a row's key.")
        return min(found, key=lambda row: (row.after["val"].errors, row.parameters))
    found = [row for key, row in store.rows.items() if wanted and key.startswith(wanted)]
    if len(found) != 1:
        cause = f"`keep` (={shown(wanted)}) is the key of {len(found)} rows of {store.folder}."
        raise UsageError(cause, "Give best, or a key of results.csv.")
    (row,) = found
    if row.held_out:
        raise UsageError(f"Row {row.key} was counted on other images than `test`.", "Give one made without --hold-out.")
    if row.method != "lora" or row.scale is None:
        raise UsageError(f"Row {row.key} has no adapter to keep.", "Give the key of one that has.")
    return row


def keep(request: SweepRequest, row: Row) -> KeptAdapter:
    """Fine-tune with the settings of `row` in the run of its base, which saves the adapter, and verify it.

    Raises:
        RunError: the base is not there any more, or an adapter of that name is.
        ProofError: the proof failed, before it was saved or after.
    """
    for run in (*(request.out / BASES).glob(f"seed{row.seed}-*"), *([request.base] if request.base else [])):
        base = Run(run).base
        if base.is_finished and base.evaluation.base_fingerprint == row.base:
            break
    else:
        raise RunError(f"The base of row {row.key} is not in {request.out} any more.", "Run the sweep again.")
    name = f"digit{row.digit}-r{row.rank}-{row.key[:6]}"
    options = {"seed": row.seed, "finetune": row.settings.model_dump(mode="json", exclude_none=True) | {"name": name}}
    alone = replace(request.request, run=run, config=None, options=options, stage="keeping ")
    result = finetune(open_workspace(alone), resume=True)
    if result.analysis is None:
        raise RunError(f"Trained alone, the adapter of row {row.key} meets its guard at no scale.", "Keep another.")
    verified = verify(alone, [name])
    if not verified.passed:
        raise ProofError(f"The adapter in {run} is not what was saved: {verified.failures[0]}.", "Train it again.")
    in_sweep = Counts(**row.after["test"].model_dump(include=set(COUNTS)))
    return KeptAdapter(
        key=row.key, name=name, run=str(run), in_sweep=in_sweep, found=result.analysis.splits["test"].after
    )
