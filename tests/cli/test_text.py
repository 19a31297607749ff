"""Running text wraps at words, and nowhere else."""

import io

import pytest
from rich.console import Console

from lora_mnist.cli.text import Paragraph


def printed(paragraph, width) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(paragraph, crop=False)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", range(12, 100))
@pytest.mark.parametrize(
    "whole",
    ["54 %", "45 → 13", "p = 0.05", "p < 0.0001", "3 more", "missed 9", "W + scaling · B A", "1,200 steps", "871 kB"],
)
def test_what_belongs_together_stays_together(whole, width):
    text = f"It makes so much, and {whole}, and {whole}, more than others do"
    lines = printed(Paragraph(text), width)
    if len(whole) <= width - 2 and "W" not in whole:
        assert " ".join(lines).count(whole) == sum(line.count(whole) for line in lines) == 2
    assert " ".join(lines) == text


def test_further_lines_are_indented_as_far_as_the_label():
    lines = printed(Paragraph("one two three four", "label  "), 16)
    assert lines == ["label  one two", "       three", "       four"]


def test_a_path_is_never_cut_nor_broken():
    path = "/a/very-long/path/" + "x" * 60
    assert path in printed(Paragraph(f"saved in {path}"), 30)
