"""What is in a run and which runs are in a folder, read from their JSON alone; and how many numbers LoRA trains."""

import os
import re
from collections.abc import Sequence
from itertools import compress, pairwise
from pathlib import Path
from typing import Any

from lora_mnist import SCHEMA
from lora_mnist.errors import RunError, UsageError
from lora_mnist.evaluation.results import Counts
from lora_mnist.runs.artifact import Artifact
from lora_mnist.runs.atomic import is_finished
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import BaseDocuments, FinetunedDocuments, Method, RareDigit, RunDocuments
from lora_mnist.settings.config import Count, Digit, Document, KnownDataset, Many, Maybe


class AdapterLine(Document):
    """One adapter, or checkpoint with all weights trained, in short."""

    name: str
    method: Method
    digit: Digit | None  # None where it was taught drawings, of all digits
    rank: int | None  # None where all weights were trained
    parameters: Count  # how many numbers were trained
    on_top_of: Many[str]
    before: Counts  # on `test`
    after: Counts
    proof: bool | None  # None where all weights were trained: there is nothing to prove
    bytes: Count  # of the file that holds its weights
    drawings: Count | None = None  # how many it was taught, if any


class Listing(Document):
    """Every adapter of a run, oldest first, then every checkpoint with all weights trained; and the run's `digest`."""

    run: str
    dataset: KnownDataset
    base_fingerprint: str
    digest: str
    adapters: Many[AdapterLine]
    rare: Maybe[RareDigit] = None  # a digit of which the base saw only a share
    imported: Maybe[str] = None  # the file that the base was imported from


def list_adapters(run: Run) -> Listing:
    """What each adapter did on `test`.

    Raises RunError if there is no base, or an adapter, a checkpoint or a file is missing or damaged.
    """
    base = run.require_base().evaluation
    return Listing(
        run=str(run.path),
        dataset=base.dataset.name,
        base_fingerprint=base.base_fingerprint,
        digest=run.digest(),
        adapters=tuple(adapter_lines(run)),
        rare=run.record.rare,
        imported=run.record.source.file if run.record.source else None,
    )


def adapter_lines(run: Run) -> list[AdapterLine]:
    """The lines of `list_adapters`. Raises RunError as it does."""
    lines = []
    for saved in (*run.adapters(), *run.full_checkpoints()):
        saved.require_whole()
        record, test = saved.finetune, saved.analysis.splits["test"]
        line = AdapterLine(
            name=saved.name,
            method=record.method,
            digit=None if record.lesson else record.digit,
            rank=record.rank,
            parameters=record.trained,
            on_top_of=record.on_top_of,
            before=test.before,
            after=test.after,
            proof=None if record.proof is None else record.proof.passed,
            bytes=saved.file(saved.weights).stat().st_size,
            drawings=record.lesson.count if record.lesson else None,
        )
        lines.append(line)
    return lines


def documents_of(run: Run) -> RunDocuments:
    """Every document that a run stores, as report.json holds them.

    Raises RunError if there is no base, or a document cannot be read or belongs to another base.
    """
    base = run.require_base()

    def stored(one: Artifact) -> dict[str, Any]:
        if one.evaluation.base_fingerprint != base.evaluation.base_fingerprint:
            raise RunError(f"{one.name!r} was trained on another base.", f"Remove {one.folder}, or train it again.")
        return {"sha256": one.hashes[one.weights], "evaluation": one.evaluation, "provenance": one.provenance}

    def finetuned(one: Artifact) -> FinetunedDocuments:
        return FinetunedDocuments(name=one.name, finetune=one.finetune, analysis=one.analysis, **stored(one))

    return RunDocuments(
        schema_version=SCHEMA,
        run_digest=run.digest(),
        run=run.record,
        base=BaseDocuments(**stored(base)),
        adapters=tuple(map(finetuned, reversed(run.adapters()))),
        checkpoints=tuple(map(finetuned, run.full_checkpoints())),
    )


class RunLine(Document):
    """One run in short; if there is a `fault`, it cannot be read and nothing else is known but its size."""

    run: str
    bytes: Count  # of all its files
    fault: Maybe[str] = None
    dataset: Maybe[KnownDataset] = None
    images: Maybe[Count] = None  # of `test`
    errors: Maybe[Count] = None  # of the base on them
    adapters: Maybe[Count] = None  # with the checkpoints that have all weights trained
    rare: Maybe[RareDigit] = None  # a digit of which the base saw only a share
    imported: Maybe[str] = None  # the file that the base was imported from
    best: Maybe[AdapterLine] = None  # the one of them with the fewest errors in all, if these are fewer than the base's
    digest: Maybe[str] = None

    @property
    def accuracy(self) -> float | None:
        """Of the base."""
        return 1 - self.errors / self.images if self.images and self.errors is not None else None


class Overview(Document):
    """Every run below a folder, by its path."""

    folder: str
    runs: Many[RunLine]


def list_runs(folder: Path) -> Overview:
    """One line for each run in `folder` or below it; a damaged one says what is wrong. Raises RunError: no folder."""
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder}.", "Name the one that has the runs.")
    lines = []
    for run in map(Run, find_runs(folder)):
        files = [os.path.join(place, name) for place, _, names in os.walk(run.path) for name in names]
        size = sum(os.lstat(file).st_size for file in files if os.path.lexists(file))
        try:
            found, test = list_adapters(run), run.base.evaluation.splits["test"]
            better = [line for line in found.adapters if line.after.errors < test.errors]
            line = RunLine(
                run=found.run,
                bytes=size,
                dataset=found.dataset,
                images=test.count,
                errors=test.errors,
                adapters=len(found.adapters),
                rare=found.rare,
                imported=found.imported,
                best=min(better, key=lambda line: line.after.errors, default=None),
                digest=found.digest,
            )
        except RunError as error:
            line = RunLine(run=str(run.path), bytes=size, fault=error.cause)
        lines.append(line)
    return Overview(folder=str(folder), runs=tuple(lines))


def find_runs(folder: Path) -> list[Path]:
    """Every run in `folder` or below it, finished or not, by its path; links are not followed."""
    found = []
    for place, below, files in os.walk(folder):
        path = Path(place)
        if is_finished(path / "base") or ("base" in below and ("adapters" in below or "run.json" in files)):
            found.append(path)
            below.clear()  # a run has no runs in it
        below[:] = [name for name in below if not name.startswith(".")]
    return sorted(found)


class Size(Document):
    """What LoRA trains at one rank; `share` = lora / full."""

    rank: Count
    lora: Count
    share: float


class SizeTable(Document):
    """What full fine-tuning and LoRA train."""

    layers: dict[str, tuple[int, int]]  # (out, in) of every adapted layer
    biases: bool  # whether full fine-tuning has biases (out) in them too
    full: Count
    ranks: Many[Size]


def count_parameters(run: Run, ranks: str, shapes: Sequence[str] | None = None) -> SizeTable:
    """What LoRA trains of the network of `run`, or of layers without biases that have the given `shapes`.

    rank · (in + out) numbers for each W (out, in): A (rank, in) and B (out, rank).

    Raises UsageError if the ranks are not `1,2,4` or a shape is not `4096x4096`, RunError if there is no base or shape.
    """
    if not re.fullmatch(r"0*[1-9]\d{0,6}(,0*[1-9]\d{0,6})*", ranks):
        raise UsageError(f"`rank` (={ranks!r}) is not a list of whole numbers from 1.", "Write it as 1,2,4,8.")
    layers, biases = {}, tuple[bool, ...]()
    for i, shape in enumerate(shapes or ()):
        match = re.fullmatch(r"0*([1-9]\d{0,8})[x×]0*([1-9]\d{0,8})", shape)
        if not match:
            raise UsageError(f"`shape` (={shape!r}) is not the shape of a matrix.", "Write it as 4096x4096.")
        layers[f"{i}"] = int(match[1]), int(match[2])
    if not shapes:
        run.require_base()
        model = run.record.settings.model
        sizes = (28 * 28, *model.hidden, 10)
        layers = {f"linear{i}": (fan_out, fan_in) for i, (fan_in, fan_out) in enumerate(pairwise(sizes), 1)}
        biases = model.biases
    full = sum(rows * columns for rows, columns in layers.values())
    full += sum(rows for rows, _ in compress(layers.values(), biases))
    sides = sum(rows + columns for rows, columns in layers.values())
    counts = [int(rank) for rank in ranks.split(",")]
    table = tuple(Size(rank=rank, lora=rank * sides, share=rank * sides / full) for rank in counts)
    return SizeTable(layers=layers, biases=any(biases), full=full, ranks=table)
