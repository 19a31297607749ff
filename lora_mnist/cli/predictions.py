"""What pictures are taken for → text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table

from lora_mnist.cli.tables import DATASETS, at_strength
from lora_mnist.cli.text import Paragraph

if TYPE_CHECKING:  # it imports torch
    from lora_mnist.pipeline import Export, Prediction, Predictions
    from lora_mnist.pipeline.predict import Guess


def predictions(document: Predictions) -> RenderableType:
    """Of one picture all probabilities, of several a line each."""
    title = f"{DATASETS[document.dataset]}: what the networks see"
    pictures, stacks = document.predictions, _stacks(document.predictions[0].guesses)
    if len(pictures) == 1:
        note = Paragraph(f"Probabilities in per cent; trained on {DATASETS[document.dataset]}.")
        return Group(Paragraph(_named(pictures[0])), _probabilities(pictures[0]), note, *stacks)
    return Group(_Lines(title, pictures), *stacks)


def _probabilities(prediction: Prediction) -> Table:
    """A row for each network, per cent of every digit; less than half of one is a dot."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("", overflow="fold")
    table.add_column("sees", justify="right", style="bold")
    for digit in range(10):
        table.add_column(str(digit), justify="right", min_width=4)
    for guess in prediction.guesses:
        shares = [round(100 * share) for share in guess.probabilities]
        table.add_row(_network(guess), str(guess.digit), *(str(share) if share else "·" for share in shares))
    return table


def exported(document: Export) -> RenderableType:
    """Where it lies, how it is called, and how far its logits are from ours."""
    about, kind = document.provenance, f"ONNX, opset {document.opset}" if document.opset else "torch.export"
    used = "".join(f" + {at_strength(adapter)}" for adapter in about.adapters)
    return Group(
        Paragraph(f"base{used}, on {DATASETS[about.dataset.name]}", "network   "),
        Paragraph(f"{about.input}; normalised inside", "input     "),
        Paragraph(about.output, "output    "),
        Paragraph(
            f"on {document.images:,} held-out images the logits differ from ours by {document.largest_difference:.1e} "
            f"at most; the largest is {document.largest_logit:.3g}",
            "checked   ",
        ),
        Paragraph(f"{document.file}: {kind}, {document.bytes / 1e6:.1f} MB", "saved     "),
    )


class _Lines:
    """A row for each picture, a column for each network; where that is too wide, a paragraph for each picture."""

    def __init__(self, title: str, pictures: Sequence[Prediction]):
        self.title, self.pictures = title, pictures

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        table = Table("picture", box=box.SIMPLE_HEAD, title=self.title, padding=(0, 1))
        for guess in self.pictures[0].guesses:
            table.add_column(_network(guess), justify="right")
        for picture in self.pictures:
            table.add_row(_named(picture), *map(_short, picture.guesses))
        if Measurement.get(console, options.update(width=10_000), table).maximum <= options.max_width:
            yield table
            return
        yield Paragraph(self.title)
        for picture in self.pictures:
            yield Paragraph(_named(picture))
            yield Paragraph("; ".join(f"{_network(one)}: {_short(one)}" for one in picture.guesses), label="  ")


def _named(prediction: Prediction) -> str:
    return prediction.file or f"test image {prediction.index}, a {prediction.label}"


def _network(guess: Guess) -> str:
    if guess.adapter is None:
        return "base"
    strength = guess.adapter.strength
    return guess.adapter.name if strength == 1 else f"{guess.adapter.name} at {strength:g}"


def _short(guess: Guess) -> str:
    return f"{guess.digit} ({100 * max(guess.probabilities):.0f} %)"


def _stacks(guesses: Sequence[Guess]) -> list[Paragraph]:
    """What is on beside the adapter that is named."""
    return [
        Paragraph(f"{guess.adapter.name} is shown on top of {', '.join(guess.on_top_of)}, as it was trained.")
        for guess in guesses
        if guess.adapter and guess.on_top_of
    ]
