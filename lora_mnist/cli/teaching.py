"""`teach`: drawings in folders → an adapter and what it learnt, the answer first."""

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

    from lora_mnist.pipeline import TeachResult

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
DryRun = Annotated[bool, in_output("--dry-run", "Test what it would learn, and keep nothing.")]


@command
def teach(
    *,
    folder: Folder,
    place: o.Place,
    common: o.Recipe,
    rank: Annotated[int | None, o.RANK] = None,
    steps: r.Steps = None,
    share: Share = None,
    guard: r.Guard = None,
    name: Name = None,
    dry_run: DryRun = False,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Train an adapter on drawings of your own, test it on drawings it has not seen, and show the side effects.

    Example: lora-mnist teach drawings --run runs/mine
    """
    from lora_mnist import pipeline

    recipe = r.given("teach", rank=rank, steps=steps, share=share, guard=guard, name=name)
    work = pipeline.open_workspace(o.request_of(place, machine, output, common, recipe))
    drawings = pipeline.read_drawings(folder, work.dataset.name)
    taught = pipeline.teach_and_keep(work, drawings, dry_run)
    show(taught, [lambda one: _answer(one, place.run, work.dataset.name)], output, taught.folder)


def _answer(taught: "TeachResult", run: Path, dataset: str) -> "RenderableType":
    """The verdict, drawings and errors before → after, side effects, the proof, where it is: at most 16 lines."""
    from rich.console import Group
    from rich.table import Table

    from lora_mnist.cli.results import PROVED, command_line, labelled
    from lora_mnist.cli.tables import DATASETS
    from lora_mnist.cli.text import Paragraph

    lesson, verdict = taught.lesson, taught.verdict
    table = Table(DATASETS[dataset], box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("before → after", justify="right", no_wrap=True)
    if lesson.unseen:
        unseen = lesson.unseen
        table.add_row(f"drawings right, of {unseen.images}, tested unseen", f"{unseen.before:,} → {unseen.after:,}")
    table.add_row(f"drawings right, of {lesson.count}, seen in training", f"{lesson.before:,} → {lesson.after:,}")
    if lesson.val:
        table.add_row(f"errors on val, of {lesson.val.images:,}", f"{lesson.val.before:,} → {lesson.val.after:,}")
    lines: list[RenderableType] = [Paragraph(verdict.words, style="bold"), table]
    lines += [labelled("digits", verdict.side_effects)] if verdict.side_effects else []
    if taught.folder:
        kept = "" if lesson.scale == 1 else f", at {lesson.scale:g} of the trained update"
        lines += [labelled("proof", PROVED), labelled("saved", f"{taught.folder}{kept}")]
        lines.append(labelled("next", f"{command_line('report', run)} --open"))
    elif lesson.scale is None:
        lines.append(labelled("not kept", "the guard allows no scale; --guard none keeps it as trained"))
    else:
        lines.append(labelled("not kept", "as asked for; leave out --dry-run to keep it"))
    return Group(*lines)
