"""What `extract` and `merge` made → text for a terminal: the answer first, and all the rest for whoever asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from lora_mnist.cli import tables
from lora_mnist.cli.comparisons import accuracies
from lora_mnist.cli.grid import Grid
from lora_mnist.cli.results import answer, next_step, saved
from lora_mnist.cli.text import Paragraph, labelled
from lora_mnist.evaluation.results import Comparison
from lora_mnist.runs.schemas import Evaluation, Extraction, FinetuneRecord

if TYPE_CHECKING:  # they import torch
    from lora_mnist.pipeline import FinetuneResult, Merging


def extracted(tuning: FinetuneResult, run: Path) -> RenderableType:
    """The verdict on an extracted adapter, how much of the change it holds, and what all of the change does."""
    facts, analysis = _facts(tuning), tuning.analysis
    assert analysis is not None  # no guard refuses what is extracted
    kept = sorted(100 * layer.energy for layer in facts.layers.values())
    whole, after = facts.of_checkpoint, analysis.splits["test"].after
    words = ("missed", "false_alarms", "errors in all")
    counts = ", ".join(f"{count:,} {word}" for count, word in zip(whole.numbers, words, strict=True))
    return Group(
        answer(tuning),
        labelled("holds", f"{kept[0]:.3g} to {kept[-1]:.3g} % of the change's energy in each layer; no biases"),
        labelled("all of it", f"{facts.checkpoint}: {counts} on test, where the adapter has {after.errors:,}"),
        *saved(tuning, run),
        next_step("report", run, "--open"),
    )


def extraction(tuning: FinetuneResult) -> RenderableType:
    """What was kept of the change, layer by layer, and what it is worth beside the whole of it."""
    record, analysis, facts = tuning.record, tuning.analysis, _facts(tuning)
    assert analysis is not None
    assert record.proof is not None
    moved = ", ".join(f"{name} {100 * share:.3g} %" for name, share in facts.left_out.items() if share)
    return Group(
        _approximations(facts, record.rank),
        Paragraph(f"Left out, since an adapter holds no biases (moved by, of its norm): {moved or 'nothing'}"),
        _beside_checkpoint(record, facts, analysis.splits["test"]),
        tables.trained(record),
        tables.excuses(record, analysis),
        tables.proof(record.proof),
        tables.verdict(record, analysis),
    )


def _facts(tuning: FinetuneResult) -> Extraction:
    facts = tuning.record.extraction
    assert facts is not None  # `extract` made it
    return facts


def _approximations(facts: Extraction, rank: int | None) -> Grid:
    table = Grid("layer", title=f"{facts.checkpoint} - base, at rank {rank}")
    for heading in ("rank", "energy kept", "largest singular values"):
        table.add_column(heading, justify="left" if heading.startswith("largest") else "right")
    for path, layer in facts.layers.items():
        values = " ".join(f"{value:.3g}" for value in layer.singular_values[:6])
        values += " …" if len(layer.singular_values) > 6 else ""
        table.add_row(path, str(layer.rank), f"{100 * layer.energy:.2f} %", values)
    return table


def _beside_checkpoint(record: FinetuneRecord, facts: Extraction, test: Comparison) -> Grid:
    table = Grid("test images", title=f"Digit {record.digit}: the base, all of the change, the adapter")
    for heading in ("missed", "false_alarms", "all errors"):
        table.add_column(heading, justify="right")
    table.add_row("base", *map(str, test.before.numbers))
    table.add_row(f"{facts.checkpoint} (all of it)", *map(str, facts.of_checkpoint.numbers))
    table.add_row(f"{record.name} (adapter)", *map(str, test.after.numbers))
    return table


def merged(document: Merging, base: Evaluation, run: Path) -> RenderableType:
    """How good the merged network is, of what it was made, how exactly, and where it is."""
    accuracy = accuracies(base, document.evaluation)
    used = " + ".join(map(tables.at_strength, document.merged))
    exact = f"{document.largest_difference:.1e} of {document.largest_logit:.3g}"
    return Group(
        Paragraph(f"{tables.DATASETS[document.evaluation.dataset.name]}: accuracy {accuracy}.", style="bold"),
        labelled("merged", f"the base + {used}"),
        labelled("exact", f"no logit differs from base and adapters apart by more than {exact}"),
        labelled("saved", document.file),
        next_step("evaluate", run, f"--checkpoint {document.name}"),
    )
