"""Tables at any width."""

import io

import pytest
from rich.console import Console

from lora_mnist.cli.grid import Grid, Rows

WIDE = Console(width=500)


def printed(renderable, width) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable, crop=False)
    return console.file.getvalue().splitlines()


def grid() -> Grid:
    table = Grid("what it is", title="A title of several words")
    table.add_column("val before", justify="right")
    table.add_column("after", justify="right")
    table.add_row("images of the digit that are taken for another", "1,135", "45 → 13")
    table.add_row("all", "2", "0.24 %")
    return table


@pytest.mark.parametrize("width", range(10, 90))
def test_a_table_is_as_wide_as_the_terminal_but_loses_nothing(width):
    lines = printed(grid(), width)
    least = grid().least(WIDE, WIDE.options)
    assert least < 40
    assert max(map(len, lines)) <= max(width, least)
    text = "\n".join(lines)
    for whole in ("another", "1,135", "45 → 13", "0.24 %", "before", "after"):
        assert whole in text
    assert "…" not in text
    (line,) = [line for line in lines if "0.24 %" in line]
    assert line.endswith("0.24 % │")  # numbers stand on the right


def test_a_table_takes_no_more_than_it_needs():
    assert len({len(line) for line in printed(grid(), 200)[1:]}) == 1
    assert printed(grid(), 200) == printed(grid(), 100)


ROWS = Rows(("name", "digit", "size"), {"first": [["one", "9", "8 kB"]], "second": [["a-longer-name", "4", "11.2 MB"]]})


def test_rows_of_several_groups_have_the_same_columns():
    lines = printed(ROWS, 80)
    (one,) = [line for line in lines if "8 kB" in line]
    (other,) = [line for line in lines if "11.2 MB" in line]
    assert one.index("8 kB") + len("8 kB") == other.index("11.2 MB") + len("11.2 MB")
    assert lines[0] == "first"


def test_rows_that_do_not_fit_are_paragraphs_in_every_group():
    assert printed(ROWS, 20) == [
        *("first", "one", "  digit 9, size 8 kB", ""),
        *("second", "a-longer-name", "  digit 4,", "  size 11.2 MB"),
    ]
