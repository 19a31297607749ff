"""The runs below a folder, a line each: read from their JSON alone, without torch."""

import os
from collections.abc import Iterator
from pathlib import Path

from lora_mnist.errors import RunError
from lora_mnist.runs.folders import is_finished
from lora_mnist.runs.listing import AdapterLine, lines_of
from lora_mnist.runs.moment import of_one_moment
from lora_mnist.runs.run import Run
from lora_mnist.settings.config import KnownDataset
from lora_mnist.settings.strict import Count, Document, Many, Maybe


class RunLine(Document):
    """One run in short.

    Attributes:
        fault: why it cannot be read; then there is nothing else.
        images, errors: of `test`, and how many of them the base has wrong.
        adapters: how many there are, with the checkpoints that have all weights trained.
        best: the one of them with the fewest errors in all.
        bytes: of all its files.
        digest: changes with every byte of what was made (see `Run.digest`).
    """

    run: str
    bytes: Count
    fault: Maybe[str] = None
    dataset: Maybe[KnownDataset] = None
    images: Maybe[Count] = None
    errors: Maybe[Count] = None
    adapters: Maybe[Count] = None
    best: Maybe[AdapterLine] = None
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
        raise RunError(f"There is no folder {folder}.", "Name the one below which the runs lie.")
    return Overview(folder=str(folder), runs=tuple(_line(path) for path in find_runs(folder)))


def find_runs(folder: Path) -> list[Path]:
    """Every run in `folder` or below it, finished or not, by its path; links are not followed."""
    return sorted(_find(folder))


def _find(folder: Path) -> Iterator[Path]:
    for place, below, files in os.walk(folder):
        path = Path(place)
        if is_finished(path / "base") or ("base" in below and ("adapters" in below or "run.json" in files)):
            yield path
            below.clear()  # a run holds none
        below[:] = [name for name in below if not name.startswith(".")]


def _line(path: Path) -> RunLine:
    try:
        return of_one_moment(Run(path), _read)
    except RunError as error:
        return RunLine(run=str(path), bytes=_size(path), fault=error.cause)


def _read(run: Run) -> RunLine:
    base, lines = run.require_base().evaluation, lines_of(run)
    test = base.splits["test"]
    return RunLine(
        run=str(run.path),
        bytes=_size(run.path),
        dataset=base.dataset.name,
        images=test.count,
        errors=test.errors,
        adapters=len(lines),
        best=min(lines, key=lambda line: line.after.errors, default=None),
        digest=run.digest(),
    )


def _size(folder: Path) -> int:
    files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(file).st_size for file in files if os.path.lexists(file))
