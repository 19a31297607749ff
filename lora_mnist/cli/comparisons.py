"""Networks beside each other → text for a terminal of 80 columns: before and after, or all that were compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.text import Text

from lora_mnist.cli.grid import Grid, Rows
from lora_mnist.cli.tables import DATASETS, change, confusion, named
from lora_mnist.cli.text import Paragraph, unbroken
from lora_mnist.evaluation.significance import LEVEL
from lora_mnist.evaluation.verdict import Tested
from lora_mnist.runs.schemas import Evaluation

if TYPE_CHECKING:  # it imports torch
    from lora_mnist.pipeline.compare import Network, PairOfNetworks, SideBySide

COLUMNS = ("network", "digit", "rank", "numbers", "missed", "false alarms", "errors")
PAIRS = 15  # so many at most are printed, which are all of six networks


def before_and_after(base: Evaluation, document: Evaluation) -> RenderableType:
    """Errors per digit of the base beside those of what was made from it, and the latter's confusion matrix."""
    title = f"{DATASETS[document.dataset.name]}: errors of the base (before) and of {named(document)} (after)"
    table = Grid("digit", title=title)
    for split in document.splits:
        for heading in (f"{split} images", "before", "after", "change"):
            table.add_column(heading, justify="right")
    splits = [(base.splits[split], after) for split, after in document.splits.items()]
    for digit in range(10):
        cells = [_cells(after.images[digit], before.wrong[digit], after.wrong[digit]) for before, after in splits]
        table.add_row(str(digit), *(cell for group in cells for cell in group))
    table.add_section()
    cells = [_cells(after.count, before.errors, after.errors) for before, after in splits]
    table.add_row("all", *(cell for group in cells for cell in group))
    return Group(
        table, Paragraph(f"Accuracy {accuracies(base, document)}."), confusion(document.splits["test"].confusion)
    )


def _cells(images: int, before: int, after: int) -> tuple[str, str, str, Text]:
    return str(images), str(before), str(after), change(after - before)


def accuracies(base: Evaluation, document: Evaluation) -> str:
    """Before and after, on every split."""
    pairs = [(base.splits[split].accuracy, after.accuracy, split) for split, after in document.splits.items()]
    return ", ".join(f"{100 * before:.2f} → {100 * after:.2f} % on {split}" for before, after, split in pairs)


def side_by_side(document: SideBySide, every_pair: bool = False) -> RenderableType:
    """What each network does on `test`, and each pair on the same images: if they are many, those with the best one."""
    shown = list(document.pairs) if every_pair else _shown_pairs(document)
    parts: list[RenderableType] = [_networks(document), *([_pairs(shown)] if shown else [])]
    return Group(*parts, *map(Paragraph, _notes(document, len(shown))))


def _networks(document: SideBySide) -> Rows:
    """A group for each run."""
    groups: dict[str, list[list[str]]] = {}
    for network in document.networks:
        title = f"{network.run}: {DATASETS[network.dataset.name]}, {network.images:,} test images"
        groups.setdefault(title, []).append([f"{network.number} {network.name}", *_figures(network)])
    return Rows(COLUMNS, groups)


def _figures(network: Network) -> list[str]:
    line = network.adapter
    if line is None:
        return ["-", "-", "-", "-", "-", str(network.errors)]
    counts = zip(line.before.numbers, line.after.numbers, strict=True)
    provenance = [str(line.digit), "-" if line.rank is None else str(line.rank), f"{line.parameters:,}"]
    return [*provenance, *(f"{before}→{after}" for before, after in counts)]


def _shown_pairs(document: SideBySide) -> list[PairOfNetworks]:
    """All, or where they are too many those with the best network of each data set."""
    if len(document.pairs) <= PAIRS:
        return list(document.pairs)
    best = {min(same, key=lambda one: one.errors).number for same in document.datasets.values()}
    return [pair for pair in document.pairs if best & {pair.first, pair.second}]


def _pairs(pairs: list[PairOfNetworks]) -> Grid:
    table = Grid(box=box.SIMPLE_HEAD, title="Images that one of two alone gets right", padding=(0, 1))
    for heading in ("pair", "images", "first only", "second only", "p", ""):
        table.add_column(heading, justify="left" if heading in ("images", "") else "right")
    for pair in pairs:
        name = unbroken(f"{pair.first} and {pair.second}")
        table.add_row(name, "all", *_tested(pair, pair.errors))
        if pair.missed is not None:
            table.add_row("", f"the {pair.digit}s", *_tested(pair, pair.missed))
    return table


def _tested(pair: PairOfNetworks, test: Tested) -> tuple[str, str, str, str]:
    p = f"{test.p:.2g}" if test.p >= 1e-4 else "<0.0001"
    if test.p <= LEVEL:
        found = f"{pair.second if test.fixed > test.broken else pair.first} is better"
    else:
        found = "may be chance" if test.change else "as good"
    return str(test.broken), str(test.fixed), p, found


def _notes(document: SideBySide, shown: int) -> Iterator[str]:
    for network in document.networks:
        if network.adapter and network.adapter.on_top_of:
            yield f"{network.number} is with {', '.join(network.adapter.on_top_of)} on, before and after."
    if document.pairs:
        yield "p: McNemar's exact test, of each pair by itself."
    if shown < len(document.pairs):
        yield f"Of {len(document.pairs)} pairs, those with the network of fewest errors are shown; --verbose shows all."
    if len(document.datasets) > 1:
        groups = [
            f"{', '.join(str(one.number) for one in same)} ({same[0].dataset.name})"
            for same in document.datasets.values()
        ]
        yield f"No test between networks whose test images differ: {' and '.join(groups)}."
