"""Lines that wrap, commands to copy, and characters that would move a cursor."""

import shlex
from pathlib import Path

import pytest
from rich.console import Group

from lora_mnist.cli.answers import command_line
from lora_mnist.cli.output import LABEL, Line, labelled, print_all, to_copy

from .conftest import printed


def test_a_line_wraps_at_words_and_goes_on_below_its_first_word():
    line = Line("one two three four-and-a-half", "saved  ")
    assert printed(line, width=17) == ["saved  one two", "       three", "       four-and-a-half"]


def test_a_path_is_longer_than_the_line_rather_than_cut():
    path = 5 * "/a folder".replace(" ", "-")
    line = labelled("saved", f"lies in {path}: 12 numbers")
    assert printed(line, width=30) == ["saved     lies in", f"          {path}:", "          12 numbers"]


@pytest.mark.parametrize("columns", [1, 40, 80])
@pytest.mark.parametrize("group", [Group, lambda alone: alone])
def test_a_command_to_copy_is_one_line_that_a_shell_reads_as_the_same_words(capsys, monkeypatch, columns, group):
    monkeypatch.setenv("COLUMNS", str(columns))
    run = Path("Zoë's runs", *10 * ["a long name"], "$HOME")
    print_all(group(to_copy("next", command_line("report", run, "--open"))))
    (line,) = capsys.readouterr().out.splitlines()
    assert line[:LABEL].strip() == "next"
    assert shlex.split(line[LABEL:]) == ["lora-mnist", "report", "--run", str(run), "--open"]


def test_the_name_of_a_folder_moves_no_cursor(capsys):
    print_all("runs/a\x1b[2J\x1b[31mb\x9bé · nine")
    assert capsys.readouterr().out == "runs/a\\x1b[2J\\x1b[31mb\\x9bé · nine\n"


def test_on_a_terminal_colours_stay_colours(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_all("\x1b[2J\x1b[31mred\x1b[0m")
    assert capsys.readouterr().out == "\\x1b[2J\x1b[31mred\x1b[0m\n"
