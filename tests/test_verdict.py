import pytest

from lora_mnist.verdict import verdict

SHIFTED = {"missed": 80, "claimed": 50, "errors": 400}


@pytest.mark.parametrize(
    ("missed", "errors", "words"),
    [
        (-96, 1100, "Fixed one digit and forgot others: 96 fewer missed 9s, 1,100 more errors in all; 7 suffers most"),
        (-20, -50, "A repair: 20 fewer missed 9s, 50 fewer errors in all. It makes 12 % fewer errors than a shifted"),
        (-20, -50, "threshold, which misses as many."),
        (-22, -50, "threshold, which misses 80."),
        (
            -20,
            0,
            "No better than a shifted threshold: 20 fewer missed 9s, no more and no fewer errors in all.",
        ),
        (-20, 0, "just as many errors as a shifted threshold"),
        (0, -3, "Not repaired: no more and no fewer missed 9s, 3 fewer errors in all."),
        (-1, -1, "A repair: 1 fewer missed 9, 1 fewer error in all."),
        (2, 3, "Not repaired: 2 more missed 9s, 3 more errors in all."),
    ],
)
def test_the_verdict_says_at_whose_expense_and_beside_what(missed, errors, words):
    broken = [0] * 10
    broken[7] = 677
    comparison = {
        "before": {"missed": 100, "errors": 400},
        "after": {"missed": 100 + missed, "errors": 400 + errors},
        "fixed": [0] * 10,
        "broken": broken,
    }
    assert words in verdict(comparison, 9, SHIFTED)


def test_fewer_errors_than_before_are_no_repair_if_one_number_does_as_well():
    counts = {"before": {"missed": 100, "errors": 400}, "after": {"missed": 63, "errors": 372}}
    comparison = {**counts, "fixed": [0] * 10, "broken": [0] * 10}
    words = verdict(comparison, 9, {"missed": 63, "claimed": 24, "errors": 371})
    assert words.startswith("No better than a shifted threshold: 37 fewer missed 9s, 28 fewer errors in all.")
