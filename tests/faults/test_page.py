"""What docs/trust.md says was tried is what was tried."""

import json

import pytest

from .tally import BEGIN, END, PAGE, RESULTS, Tally, table


@pytest.fixture
def rows():
    return json.loads(RESULTS.read_text())


def test_the_table_is_that_of_the_kept_results(rows):
    assert BEGIN + table(rows) + END in PAGE.read_text()


def test_every_attack_was_survived(rows):
    assert {
        name for name, parts in rows.items() if any(tried != survived for tried, survived in parts.values())
    } == set()


def test_what_is_not_survived_is_counted_and_told():
    def survive(case: int) -> None:
        assert case != 2, "two is lost"

    tally = Tally()
    with pytest.raises(AssertionError, match=r"1 of 4:\n2: two is lost"):
        tally.attack("numbers", "all", range(4), survive)
    assert tally.rows == {"numbers": {"all": [4, 3]}}
    assert "| numbers |  | 4 | 3 | 1 |" in table(tally.rows)
