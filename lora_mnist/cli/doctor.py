"""What `doctor` found → text for a terminal, a line for each check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

if TYPE_CHECKING:  # it imports torch
    from lora_mnist.pipeline.doctor import Check, Diagnosis


def diagnosis(document: Diagnosis) -> RenderableType:
    """What is good and what is not, and what to do about that."""
    failed = sum(not check.passed for check in document.checks)
    end = Text("All is well." if not failed else f"{failed} of {len(document.checks)} are not good.", style="bold")
    return Group(*map(_line, document.checks), end)


def _line(check: Check) -> Text:
    mark = Text("good", style="green") if check.passed else Text("BAD ", style="bold red")
    way_out = "" if check.way_out is None else f". {check.way_out}"
    return Text.assemble(mark, f"  {check.name}: {check.finding}{way_out}")
