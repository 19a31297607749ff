from types import SimpleNamespace

from lora_mnist.report.document import BeforeAfter
from lora_mnist.report.matrices import LEVELS, base_cell, cell_of


def matrix(**cells: int):
    """Ten of every digit right, and errors by true and predicted digit: `e49=3`."""
    rows = [[0] * 10 for _ in range(10)]
    for digit in range(10):
        rows[digit][digit] = 10
    for name, count in cells.items():
        rows[int(name[1])][int(name[2])] = count
    return tuple(map(tuple, rows))


SECTION = SimpleNamespace(confusion=BeforeAfter(before=matrix(e49=6, e94=1), after=matrix(e49=12, e72=3)))


def cell(which, row, column, normalised=False):
    return tuple(cell_of(SECTION, which, (row, column), normalised))


def test_before_and_after_share_one_scale():
    assert cell("before", 4, 9) == ("6", f"b{LEVELS}")
    assert cell("after", 4, 9) == ("12", f"b{LEVELS}")
    assert cell("before", 9, 4) == ("1", "b1")
    assert cell("after", 7, 2) == ("3", "b3")
    assert cell("after", 9, 4) == ("·", "")
    assert cell("after", 4, 4) == ("10", "right")


def test_a_change_is_signed_and_coloured_by_its_sign():
    assert cell("change", 4, 9) == ("+6", f"o{LEVELS}")
    assert cell("change", 9, 4) == ("−1", "p1")
    assert cell("change", 0, 1) == ("·", "")


def test_shares_are_of_the_true_digit():
    assert base_cell(matrix(e49=10), (4, 9), normalised=True).text == "50.0"
    assert cell("change", 4, 9, normalised=True)[0] == "+37.5"  # of the 16 before
