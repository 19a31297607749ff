"""A row of a sweep → an adapter of the run that its base lies in: trained by itself, fingerprint, verified."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lora_mnist.errors import ProofError, RunError, UsageError, shown
from lora_mnist.evaluation.results import Counts
from lora_mnist.pipeline.finetune import finetune
from lora_mnist.pipeline.verify import verify_workspace
from lora_mnist.pipeline.workspace import open_workspace
from lora_mnist.runs.run import Run
from lora_mnist.settings.strict import Document
from lora_mnist.sweep.opening import BASES, Asked
from lora_mnist.sweep.rows import Row, Store

BEST = "best"


class Kept(Document):
    """What was kept.

    Attributes:
        key: of the row; `told` is what it says on `test`, and `found` what the adapter does there.
        name, run: of the adapter.
    """

    key: str
    name: str
    run: str
    told: Counts
    found: Counts


def chosen(wanted: str, rows: Sequence[Row], store: Store) -> Row:
    """The row with the fewest errors on `val` among `rows`, of equals the smallest adapter, or the one with that key.

    Args:
        wanted: `best`, or a key of any row in `store`, or how it begins.

    Raises:
        UsageError: there is none, or no `val` to choose by.
    """
    if wanted != BEST:
        found = [row for key, row in store.rows.items() if wanted and key.startswith(wanted)]
        if len(found) != 1:
            raise UsageError(
                f"`keep` (={shown(wanted)}) is the key of {len(found)} rows of {store.folder}.",
                "Give best, or a key of results.csv.",
            )
        row = found[0]
    else:
        if not rows:
            raise UsageError("No job of this sweep is done, so there is no best.", "See why they failed.")
        there = [row for row in rows if row.strength is not None and row.method == "lora"]
        if not there:
            raise UsageError("No adapter of this sweep met its guard, so there is no best.", "Give a row's key.")
        if "val" not in there[0].after:
            raise UsageError("The best is chosen on `val`, and there is none.", "Give a row's key.")
        row = min(there, key=lambda row: (row.after["val"].errors, row.parameters))
    if row.held_out:
        raise UsageError(f"Row {row.key} was counted on other images than `test`.", "Give one made without --hold-out.")
    if row.method != "lora" or row.strength is None:
        raise UsageError(f"Row {row.key} has no adapter to keep.", "Give the key of one that has.")
    return row


def keep(asked: Asked, row: Row) -> Kept:
    """Train the adapter of `row` alone, prove it and save it in the run of its base; verify it from the files.

    Raises:
        RunError: the base is not there any more, or an adapter of that name is.
        ProofError: the proof failed, before it was saved or after.
    """
    place = next((run for run in _runs(asked) if _fingerprint_of(run) == row.base), None)
    if place is None:
        raise RunError(f"The base of row {row.key} is not in {asked.out} any more.", "Run the sweep again.")
    name = f"digit{row.digit}-r{row.rank}-{row.key[:6]}"
    tuning = row.settings.model_dump(mode="json", exclude_none=True) | {"name": name}
    options = {"seed": row.seed, "finetune": tuning}
    request = replace(asked.request, run=place, config=None, options=options, stage="keeping ")
    work = open_workspace(request)
    provenance = finetune(work, resume=True)
    if provenance.analysis is None:
        raise RunError(f"Trained alone, the adapter of row {row.key} meets its guard at no strength.", "Keep another.")
    verified = verify_workspace(work, [name])
    if not verified.passed:
        raise ProofError(f"The adapter in {place} is not what was saved: {verified.failures[0]}.", "Train it again.")
    counts = Counts(**dict(provenance.analysis.splits["test"].after))
    told = Counts(**{key: row.after["test"].of(key) for key in ("missed", "false_alarms", "errors")})
    return Kept(key=row.key, name=name, run=str(place), told=told, found=counts)


def _runs(asked: Asked) -> Iterator[Path]:
    yield from [asked.base] if asked.base else []
    bases = asked.out / BASES
    yield from sorted(place for place in bases.iterdir() if re.match("seed", place.name)) if bases.is_dir() else []


def _fingerprint_of(run: Path) -> str | None:
    base = Run(run).base
    return base.evaluation.base_fingerprint if base.is_finished else None
