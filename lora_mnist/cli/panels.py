"""The panels of --help, and how an option is made for one of them."""

from functools import partial
from typing import Any

import typer

from lora_mnist.cli import completion

PANELS = ("Run", "Repair", "LoRA", "Training", "Data", "Output")  # in this order


def option(panel: str, names: str, text: str, metavar: str | None = None, **more: Any) -> Any:
    """An option in `panel`. Of `names`, the first is its parameter's, the others what other tools call it."""
    if metavar and "|" in metavar:
        more.setdefault("autocompletion", completion.words_of(metavar))
    return typer.Option(*names.split(", "), help=text, metavar=metavar, rich_help_panel=panel, **more)


in_run, in_repair, in_lora, in_training, in_data, in_output = (partial(option, panel) for panel in PANELS)
