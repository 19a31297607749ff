"""What became of every job, and the folder where it is kept: one typed row a job. Imports no torch.

A row is safe the moment its job is done: those of one stack are written as one file, whole or not at all, in `parts/`.
When a sweep ends, they are put together as results.json and results.csv, and the parts go. Killed in between, a row
stands in both, which its key makes harmless.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.evaluation.findings import BySplit, Counts, PerDigit
from lora_mnist.evaluation.verdict import Kind
from lora_mnist.files import read_json, require_writable, to_json, write_file, write_files
from lora_mnist.runs.lock import holding
from lora_mnist.settings.config import DataSettings, FinetuneSettings, KnownDataset
from lora_mnist.settings.strict import Count, Digit, Document, Many, first_fault
from lora_mnist.sweep.grid import Method

T = TypeVar("T")

JSON, CSV, PARTS = "results.json", "results.csv", "parts"
WAY_OUT = "Restore it from a copy, or give another --out."


class SplitCounts(Counts):
    """What a network does on one split; `wrong` and `images` are by true digit."""

    wrong: PerDigit
    images: PerDigit


class Round(Document):
    """One of several repairs on top of each other; `after` is `before` if nothing was kept, and then it is the last.

    Attributes:
        before, after: of its digit, on `test`.
    """

    digit: Digit
    strength: float | None
    before: Counts
    after: Counts


class Row(Document):
    """A job that is done.

    Attributes:
        key: the job's identity, as `Job.key` makes it.
        base: seal of the base.
        held_out: whether `val` and `test` are halves of the held-out training images.
        method: an adapter, or what it is compared with; all weights have no rank.
        strength: share of the trained update that the guard kept; None: none was allowed, and `after` is `before`.
        parameters: how many numbers were trained.
        threshold: the base with one number added to its logit of the digit, with which it misses no more images on
            `val`; `threshold_on_test`: on `test`.
        shifted: of a twin, with such a number on its own logit: counts on `test` if it may miss no image on `val`, if
            it may miss one, and so on; the last is without a number. Empty if there is no `val`.
        rounds: of repairs on top of each other, each of them.
        verdict: None if nothing was kept.
        seconds: of training and judging; of a stack, the job's share.
        engine: what trained it: alone, or in a stack.
    """

    key: str
    base: str
    dataset: KnownDataset
    data: DataSettings
    held_out: bool
    method: Method
    digit: Digit
    rank: Count | None
    seed: Count
    settings: FinetuneSettings
    strength: float | None
    parameters: Count
    before: BySplit[SplitCounts]
    after: BySplit[SplitCounts]
    threshold: BySplit[Counts]
    threshold_on_test: Counts
    shifted: Many[Counts]
    rounds: Many[Round]
    verdict: Kind | None
    seconds: float
    engine: Literal["alone", "stacked"]


class Failure(Document):
    """A job that failed, and why. It is tried again by the next sweep."""

    key: str
    digit: Digit
    rank: Count | None
    seed: Count
    cause: str


class Results(Document):
    """results.json: every row, in the order of their keys."""

    schema_version: int
    rows: Many[Row]


_PART = TypeAdapter(list[Row])
SCHEMA = 2  # of results.json; raised when it changes


class Store:
    """The folder of a sweep, `sweeps/NAME`.

    Raises:
        RunError: what lies there cannot be read.
        AlteredError: it is not what a sweep wrote.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: dict[str, Row] = {}
        if (folder / JSON).is_file():
            document = read_json(folder / JSON)
            if isinstance(document, dict) and document.get("schema_version") != SCHEMA:
                raise RunError(f"{folder} was made by another version of lora-mnist.", "Give another --out.")
            self.rows = {row.key: row for row in _checked(document, folder / JSON, TypeAdapter(Results)).rows}
        for part in sorted((folder / PARTS).glob("*.json")):
            self.rows |= {row.key: row for row in _checked(read_json(part), part, _PART)}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one that writes there; on the way out, however it is left, put the parts together.

        Raises:
            BusyError: another sweep writes there.
            DiskError: the disk refuses.
        """
        with holding(self.folder):
            require_writable(self.folder / PARTS)
            try:
                yield
            finally:
                self._put_together()

    def add(self, rows: Sequence[Row]) -> None:
        """Keep rows that were finished together. Raises DiskError."""
        if not rows:
            return
        name = hashlib.sha256(" ".join(row.key for row in rows).encode()).hexdigest()[:16]
        write_file(self.folder / PARTS / f"{name}.json", _PART.dump_json(list(rows), indent=1))
        self.rows |= {row.key: row for row in rows}

    def _put_together(self) -> None:
        parts = list((self.folder / PARTS).glob("*.json"))
        if parts:
            rows = [self.rows[key] for key in sorted(self.rows)]
            document = Results(schema_version=SCHEMA, rows=tuple(rows)).model_dump(mode="json")
            write_files(self.folder, {JSON: to_json(document), CSV: to_csv(rows).encode()})
        for part in parts:
            part.unlink()
        (self.folder / PARTS).rmdir()


def to_csv(rows: Iterable[Row]) -> str:
    """A line a row: what it was, every setting, and the counts by split, `test_wrong_3` being wrong threes on test."""
    lines = [_flat(row) for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(row: Row) -> dict[str, object]:
    plain = ("key", "base", "dataset", "held_out", "method", "digit", "rank", "seed", "strength", "parameters")
    line: dict[str, object] = {name: getattr(row, name) for name in (*plain, "verdict", "seconds", "engine")}
    for when, splits in (("", row.after), ("base_", row.before), ("threshold_", row.threshold)):
        for split, counts in splits.items():
            line |= {f"{when}{split}_{name}": counts.of(name) for name in ("missed", "claimed", "errors")}
    for split, after in row.after.items():
        line |= {f"{split}_wrong_{digit}": wrong for digit, wrong in enumerate(after.wrong)}
    settings = row.settings.model_dump(mode="json", exclude={"digit", "rank", "name"})
    return line | {name: json.dumps(v) if isinstance(v, dict | list) else v for name, v in settings.items()}


def _checked(document: object, path: Path, kind: TypeAdapter[T]) -> T:
    try:
        return kind.validate_python(document)
    except ValidationError as error:
        key, _, _, rule = first_fault(error)
        raise AlteredError(f"{path}: `{key}` {rule}.", WAY_OUT) from error
