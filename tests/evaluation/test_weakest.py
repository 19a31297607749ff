"""The weakest digit, and how sure that is."""

import random

from scipy.stats import binomtest

from lora_mnist.evaluation.results import SplitResult
from lora_mnist.evaluation.weakest import how_sure


def result(wrong, images=500):
    """A split in which `wrong` images of each digit are taken for the next one."""
    rows = [[0] * 10 for _ in range(10)]
    for digit, count in enumerate(wrong):
        rows[digit][digit] = images - count if images else 0
        rows[digit][(digit + 1) % 10] += count
    return SplitResult(count=10 * images, accuracy=0.5, wrong=tuple(wrong), confusion=tuple(map(tuple, rows)))


def test_digits_that_chance_may_have_put_behind_are_rivals_the_nearest_first():
    found = how_sure(9, result([0, 1, 2, 4, 20, 2, 3, 4, 25, 26]))
    assert (found.digit, found.wrong, found.images) == (9, 26, 500)
    assert found.rivals == (8, 4)
    interval = binomtest(26, 500).proportion_ci(0.95, method="wilson")
    assert (round(found.low, 9), round(found.high, 9)) == (round(interval.low, 9), round(interval.high, 9))


def test_with_few_images_every_digit_is_a_rival():
    assert how_sure(9, result([0] * 9 + [4], images=36)).rivals == tuple(range(9))


def test_a_digit_that_is_far_behind_has_no_rival():
    assert how_sure(3, result([1, 1, 1, 60, 1, 1, 1, 1, 1, 1])).rivals == ()


def test_it_and_its_rivals_hold_the_truly_weakest_digit_as_often_as_promised():
    draw = random.Random(0)
    rates = [0.03] * 9 + [0.035]  # hard to find: it is seen as the weakest in less than every second trial
    lost = 0
    for _ in range(300):
        wrong = [sum(draw.random() < rate for _ in range(300)) for rate in rates]
        digit = max(range(10), key=lambda one: wrong[one])
        lost += 9 not in (digit, *how_sure(digit, result(wrong, images=300)).rivals)
    assert lost <= 0.05 * 300
