"""Running text wraps at words, and nowhere else."""

import io
import shlex
import subprocess

import pytest
from rich.console import Console

from lora_mnist.cli.text import Paragraph, to_copy


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
    lines = printed(Paragraph("one two three four five", "label  "), 21)
    assert lines == ["label  one two three", "       four five"]


def test_a_narrow_terminal_is_not_wasted_on_indents():
    lines = printed(Paragraph("one two three four", "a long label  "), 21)
    assert lines == ["a long label  one two", "       three four"]


@pytest.mark.parametrize("width", [40, 60, 200])
def test_a_command_can_be_copied_from_its_lines(width):
    command = ["lora-mnist", "merge", "--run", "a run", "--adapter", "one", "--adapter", "it's-two", "--open"]
    lines = printed(to_copy("to use it", shlex.join(command)), width)
    assert max(map(len, lines)) <= width
    lines[0] = lines[0].removeprefix("to use it ")
    shell = subprocess.run(["sh", "-c", "\n".join(["printf '%s|' \\", *lines])], capture_output=True, text=True)
    assert shell.stdout.split("|")[:-1] == command


def test_a_path_is_never_cut_nor_broken():
    path = "/a/very-long/path/" + "x" * 60
    assert path in printed(Paragraph(f"saved in {path}"), 30)
