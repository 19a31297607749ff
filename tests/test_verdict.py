import pytest

from lora_mnist.verdict import verdict


@pytest.mark.parametrize(
    ("missed", "errors", "words"),
    [
        (-96, 1100, "Fixed one digit and forgot others: 96 fewer missed 9s, 1,100 more errors in all; 7 suffers most"),
        (-20, -5, "Repaired: 20 fewer missed 9s, 5 fewer errors in all."),
        (-20, 0, "Repaired: 20 fewer missed 9s, no more and no fewer errors in all."),
        (0, -3, "Not repaired: no more and no fewer missed 9s, 3 fewer errors in all."),
        (-1, -1, "Repaired: 1 fewer missed 9, 1 fewer error in all."),
        (2, 3, "Not repaired: 2 more missed 9s, 3 more errors in all."),
    ],
)
def test_the_verdict_says_at_whose_expense(missed, errors, words):
    broken = [0] * 10
    broken[7] = 677
    comparison = {
        "before": {"missed": 100, "errors": 400},
        "after": {"missed": 100 + missed, "errors": 400 + errors},
        "fixed": [0] * 10,
        "broken": broken,
    }
    assert verdict(comparison, 9).startswith(words)
