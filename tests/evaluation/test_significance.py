import pytest
from scipy.stats import binomtest

from lora_mnist.evaluation.significance import mcnemar, wilson


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (5, 1), (10, 10), (37, 12), (3, 400), (1, 2)])
def test_mcnemar_is_the_binomial_test_of_a_fair_coin(fixed, broken):
    expected = binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    assert mcnemar(fixed, broken) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (1, 892), (31, 892), (245, 10_000), (5, 9)])
def test_wilson_is_the_interval_of_scipy(count, total):
    expected = binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-12)
