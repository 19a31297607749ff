"""`teach`: drawings in folders → an adapter and its price, the answer first."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_mnist.cli import options as o
from lora_mnist.cli import recipe as r
from lora_mnist.cli.app import command
from lora_mnist.cli.output import show
from lora_mnist.cli.panels import in_data, in_output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lora_mnist.pipeline import Teaching

Folder = Annotated[
    Path,
    typer.Argument(
        help="Folder with the drawings, each below its digit: 0/*.png to 9/*.png.",
        metavar="FOLDER",
        rich_help_panel="Data",
    ),
]
Share = Annotated[float | None, in_data("--share", "Share of every batch that is drawings.", "SHARE")]
Name = Annotated[
    str | None, in_output("--name", "Name under which it is saved in the run.", "NAME", show_default="taught")
]
DryRun = Annotated[bool, in_output("--dry-run", "Say what it would cost, and keep nothing.")]


@command
def teach(
    *,
    folder: Folder,
    place: o.Place,
    making: o.Provenance,
    rank: Annotated[int | None, o.RANK] = None,
    steps: r.Steps = None,
    share: Share = None,
    guard: r.Guard = None,
    name: Name = None,
    dry_run: DryRun = False,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Train an adapter on drawings of your own, and say what it gained and what the data set's digits paid.

    Example: lora-mnist teach drawings --run runs/mine
    """
    from lora_mnist import pipeline

    recipe = r.given("teach", rank=rank, steps=steps, share=share, guard=guard, name=name)
    work = pipeline.open_workspace(o.request_of(place, machine, output, making, recipe))
    drawings = pipeline.read_drawings(folder, work.dataset.name)
    taught = pipeline.teach_and_keep(work, drawings, dry_run)
    show(taught, [lambda one: _answer(one, place.run, work.dataset.name)], output, taught.folder)


def _answer(taught: "Teaching", run: Path, dataset: str) -> "RenderableType":
    """The verdict, drawings and errors before → after, who paid, the proof, where it is: at most 16 lines."""
    from rich.console import Group
    from rich.table import Table

    from lora_mnist.cli.results import PROVED, command_line, labelled
    from lora_mnist.cli.tables import DATASETS
    from lora_mnist.cli.text import Paragraph

    price, verdict = taught.price, taught.verdict
    table = Table(DATASETS[dataset], box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("before → after", justify="right", no_wrap=True)
    if price.judged:
        judged = price.judged
        table.add_row(f"drawings right, of {judged.images}, judged unseen", f"{judged.before:,} → {judged.after:,}")
    table.add_row(f"drawings right, of {price.count}, trained on", f"{price.before:,} → {price.after:,}")
    if price.val:
        table.add_row(f"errors on val, of {price.val.images:,}", f"{price.val.before:,} → {price.val.after:,}")
    lines: list[RenderableType] = [Paragraph(verdict.words, style="bold"), table]
    lines += [labelled("who paid", verdict.paid)] if verdict.paid else []
    if taught.folder:
        kept = "" if price.strength == 1 else f", kept at {price.strength:g} of the trained update"
        lines += [labelled("proof", PROVED), labelled("saved", f"{taught.folder}{kept}")]
        lines.append(labelled("next", f"{command_line('report', run)} --open"))
    elif price.strength is None:
        lines.append(labelled("not kept", "the guard allows no strength; --guard none keeps it as trained"))
    else:
        lines.append(labelled("not kept", "as asked for; leave out --dry-run to keep it"))
    return Group(*lines)
