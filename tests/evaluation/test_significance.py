import pytest
from scipy.stats import binomtest

from lora_mnist.evaluation.significance import DIGIT_LEVEL, mcnemar, paired_interval, wilson


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (5, 1), (10, 10), (37, 12), (3, 400), (1, 2)])
def test_mcnemar_is_the_binomial_test_of_a_fair_coin(fixed, broken):
    expected = binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    assert mcnemar(fixed, broken) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (1, 892), (31, 892), (245, 10_000), (5, 9)])
def test_wilson_is_the_interval_of_scipy(count, total):
    expected = binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


PAIRS = [(0, 0), (1, 0), (0, 8), (0, 9), (34, 3), (14, 6), (3, 14), (3, 20), (9, 0), (8, 0), (50, 50)]


@pytest.mark.parametrize(("fixed", "broken"), PAIRS)
def test_the_paired_interval_is_that_of_clopper_and_pearson(fixed, broken):
    changed = fixed + broken
    low, high = 0.0, 0.0
    if changed:
        share = binomtest(broken, changed).proportion_ci(1 - DIGIT_LEVEL, method="exact")
        low, high = (changed * (2 * end - 1) / 1000 for end in (share.low, share.high))
    found = paired_interval(fixed, broken, 1000)
    assert found == pytest.approx((low, high), abs=1e-9)
    assert (found[0] > 0 or found[1] < 0) == (mcnemar(fixed, broken) <= DIGIT_LEVEL)  # it leaves zero out just then
