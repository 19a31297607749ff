import pytest

from lora_mnist.evaluation.findings import Comparison, Counts, Pair, Pairs
from lora_mnist.evaluation.verdict import verdict


def counts(missed, claimed, errors):
    return Counts(missed=missed, claimed=claimed, errors=errors)


SHIFTED = counts(80, 50, 400)
NOBODY = Pair(fixed=0, broken=0)  # the verdict does not look at pairs


def compared(missed, claimed, errors):
    """100 missed, 10 claimed, 400 errors before, and so many more after; the sevens are worst off."""
    broken = [0] * 10
    broken[7] = 677
    return Comparison(
        before=counts(100, 10, 400),
        after=counts(100 + missed, 10 + claimed, 400 + errors),
        fixed=(0,) * 10,
        broken=broken,
        pairs=Pairs(missed=NOBODY, claimed=NOBODY, errors=NOBODY),
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((-96, 1000, 1100), "Fixed one digit and forgot others: 96 fewer missed 9s, 1,000 more claimed, 1,100 more"),
        ((-96, 1000, 1100), "errors in all; 7 suffers most (677 more wrong)."),
        ((-20, 5, -50), "A repair: 20 fewer missed 9s, 5 more claimed, 50 fewer errors in all."),
        ((-20, 5, -50), "It makes 12 % fewer errors than a shifted threshold, which misses as many."),
        ((-22, 5, -50), "threshold, which misses 80."),
        (
            (-20, 0, 0),
            "No better than a shifted threshold: 20 fewer missed 9s, as many claimed, as many errors in all.",
        ),
        ((-20, 0, 0), "It makes just as many errors as a shifted threshold"),
        ((0, 1, -3), "Not repaired: as many missed 9s, 1 more claimed, 3 fewer errors in all."),
        ((-1, -1, -1), "A repair: 1 fewer missed 9, 1 fewer claimed, 1 fewer error in all."),
        ((2, 3, 3), "Not repaired: 2 more missed 9s, 3 more claimed, 3 more errors in all."),
    ],
)
def test_the_verdict_says_at_whose_expense_and_beside_what(change, words):
    assert words in verdict(compared(*change), 9, SHIFTED)


def test_fewer_errors_than_before_are_no_repair_if_one_number_does_as_well():
    words = verdict(compared(-37, 12, -28), 9, counts(63, 24, 371))
    assert words.startswith("No better than a shifted threshold: 37 fewer missed 9s")


def test_a_threshold_without_any_error_is_no_trouble():
    assert "It makes 350 more errors than" in verdict(compared(-1, 0, -50), 9, counts(0, 0, 0))
