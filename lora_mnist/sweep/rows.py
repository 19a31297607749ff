"""What became of every job, and the folder where it is kept: one typed row a job. Imports no torch.

A row is safe the moment its job is done: those of one stack are written as one file, whole or not at all, in `parts/`.
When a sweep ends, they are merged into results.json and results.csv, and the parts go. Killed in between, a row
stands in both, which its key makes harmless; of the two, results.csv follows from results.json.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.evaluation.results import COUNTS, BySplit, Counts, PerDigit
from lora_mnist.evaluation.verdict import Kind
from lora_mnist.files import read_regular
from lora_mnist.report import tables
from lora_mnist.runs import atomic
from lora_mnist.settings.config import (
    Count,
    DataSettings,
    Digit,
    Document,
    FinetuneSettings,
    KnownDataset,
    Many,
    ModelSettings,
    PretrainSettings,
    first_fault,
)
from lora_mnist.sweep.grid import MOST_JOBS, Method, sha256_of_json

JSON, CSV, PARTS = "results.json", "results.csv", "parts"
SCHEMA = 5  # of results.json; raised when it changes
WAY_OUT = "Restore it from a copy, or give another --out."
LARGEST = MOST_JOBS * 8_000  # bytes of a file of rows, each of which takes some 3 thousand, a control more


class SplitCounts(Counts):
    """What a network does on one split; `wrong` and `images` are by true digit."""

    wrong: PerDigit
    images: PerDigit


class Round(Document):
    """One of several repairs on top of each other. If nothing was kept, `after` is `before`, and it is the last."""

    digit: Digit
    scale: float | None
    before: Counts  # of its digit, on `test`
    after: Counts


class Row(Document):
    """A job that is done."""

    key: str  # the job's identity, as `Job.key` makes it
    base: str  # fingerprint of the base
    dataset: KnownDataset
    data: DataSettings
    model: ModelSettings  # how the base was made
    pretrain: PretrainSettings
    held_out: bool  # whether `val` and `test` are halves of the held-out training images
    method: Method
    digit: Digit
    rank: Count | None
    seed: Count
    settings: FinetuneSettings
    scale: float | None  # share of the trained update that the guard kept; None: none, and `after` is `before`
    parameters: Count  # how many numbers were trained
    before: BySplit[SplitCounts]
    after: BySplit[SplitCounts]
    threshold: BySplit[Counts]  # the base with one shifted logit, with which it misses no more images on `val`
    threshold_on_test: Counts  # or no more on `test`
    # of a control, with a threshold of its own: counts on `test` if it may miss no image on `val`, if it may miss one,
    # and so on; the last is without a shift. Empty if there is no `val`
    shifted: Many[Counts]
    rounds: Many[Round]
    verdict: Kind | None  # None if nothing was kept
    seconds: float  # of training and evaluation; of a stack, the job's share
    engine: Literal["alone", "stacked"]

    @property
    def all_settings(self) -> dict[str, object]:
        """By their names: those of the fine-tuning, and of the base as `pretrain.epochs`."""
        found: dict[str, object] = self.settings.model_dump(mode="json")
        for table, settings in (("model", self.model), ("pretrain", self.pretrain)):
            found |= {f"{table}.{name}": value for name, value in settings.model_dump(mode="json").items()}
        return found


class Failure(Document):
    """A job that failed, and why. It is tried again by the next sweep."""

    key: str
    digit: Digit
    rank: Count | None
    seed: Count
    cause: str


class Results(Document):
    """results.json, and each part: every row, in the order of their keys, and the SHA-256 of the rows."""

    schema_version: int
    sha256: str
    rows: Many[Row]


class Store:
    """The folder of a sweep, `sweeps/NAME`.

    Raises RunError if what lies there cannot be read; AlteredError if it is not what a sweep wrote.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = _read_all(folder)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one that writes there; on the way out, however it is left, merge the parts.

        Raises:
            BusyError: another sweep writes there.
            RunError, AlteredError: what lies there, as of the class.
            DiskError: the disk refuses.
        """
        with atomic.one_writer(self.folder):
            atomic.require_writable(self.folder / PARTS)
            for place in (self.folder, self.folder / PARTS):
                atomic.recover(place)
            self.rows = _read_all(self.folder)  # another sweep may have added some since
            try:
                yield
            finally:
                if parts := list((self.folder / PARTS).glob("*.json")):
                    rows = [self.rows[key] for key in sorted(self.rows)]
                    atomic.write_file(self.folder / JSON, _document_of(rows))
                    atomic.write_file(self.folder / CSV, to_csv(rows))
                with atomic.disk_errors(self.folder):
                    for part in parts:
                        part.unlink()
                with suppress(OSError):  # it was never made, or has something of somebody else's in it
                    (self.folder / PARTS).rmdir()

    def add(self, rows: Sequence[Row]) -> None:
        """Keep rows that were finished together. Raises DiskError."""
        if not rows:
            return
        name = sha256_of_json([row.key for row in rows])[:16]
        atomic.write_file(self.folder / PARTS / f"{name}.json", _document_of(rows))
        self.rows |= {row.key: row for row in rows}


def to_csv(rows: Iterable[Row]) -> bytes:
    """A line a row: what it was, every setting, and the counts by split, `test_wrong_3` being wrong threes on test."""
    lines = []
    for row in rows:
        line = {name: value for name, value in row.model_dump().items() if not isinstance(value, dict | tuple)}
        for when, splits in (("", row.after), ("base_", row.before), ("threshold_", row.threshold)):
            for split, counts in splits.items():
                line |= {f"{when}{split}_{name}": counts.of(name) for name in COUNTS}
        for split, after in row.after.items():
            line |= {f"{split}_wrong_{digit}": wrong for digit, wrong in enumerate(after.wrong)}
        settings = {name: v for name, v in row.all_settings.items() if name not in ("digit", "rank", "name")}
        lines.append(line | {name: json.dumps(v) if isinstance(v, dict | list) else v for name, v in settings.items()})
    return tables.to_csv(lines)


def _read_all(folder: Path) -> dict[str, Row]:
    """By key. The parts are read first: if they are merged meanwhile, their rows stand in results.json."""
    rows: dict[str, Row] = {}
    for path in (*sorted((folder / PARTS).glob("*.json")), folder / JSON):
        try:
            document = atomic.parse_json(path, read_regular(path, LARGEST))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}.", WAY_OUT) from error
        if isinstance(document, dict) and document.get("schema_version") != SCHEMA:
            raise RunError(f"{path} was made by another version of lora-mnist.", "Give another --out.")
        try:
            found = Results.model_validate(document)
        except ValidationError as error:
            key, _, _, rule = first_fault(error)
            raise AlteredError(f"{path}: `{key}` {rule}.", WAY_OUT) from error
        atomic.require_same(path, sha256_of_json(document["rows"]), found.sha256)
        rows = {row.key: row for row in found.rows} | rows
    return rows


def _document_of(rows: Sequence[Row]) -> bytes:
    dumped = [row.model_dump(mode="json") for row in rows]
    return atomic.to_json({"schema_version": SCHEMA, "sha256": sha256_of_json(dumped), "rows": dumped})
