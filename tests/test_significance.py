import pytest
from scipy.stats import binomtest

from lora_mnist.significance import mcnemar


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (5, 1), (10, 10), (37, 12), (3, 400), (1, 2)])
def test_mcnemar_is_the_binomial_test_of_a_fair_coin(fixed, broken):
    expected = binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    assert mcnemar(fixed, broken) == pytest.approx(expected, rel=1e-9)
