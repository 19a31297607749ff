"""What `doctor` found → text for a terminal, a line for each check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from lora_mnist.cli.text import Paragraph

if TYPE_CHECKING:  # it imports torch
    from lora_mnist.pipeline.doctor import Check, Diagnosis


def diagnosis(document: Diagnosis) -> RenderableType:
    """What is good and what is not, and what to do about that."""
    failed = sum(not check.passed for check in document.checks)
    end = "All is well." if not failed else f"{failed} of {len(document.checks)} are not good."
    return Group(*map(_line, document.checks), Paragraph(end, style="bold"))


def _line(check: Check) -> Paragraph:
    mark, style = ("good", "green") if check.passed else ("BAD", "bold red")
    way_out = "" if check.way_out is None else f". {check.way_out}"
    return Paragraph(f"{check.name}: {check.finding}{way_out}", f"{mark:<6}", label_style=style)
