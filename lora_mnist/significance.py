"""How sure a comparison of two classifiers on the same images is."""

import math


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided p of McNemar's test, exact: were the two equally good, a changed image would be fixed or broken like
    a coin falls (Q. McNemar 1947, "Note on the sampling error of the difference between correlated proportions").

    Args:
        fixed, broken: images that only the second, only the first classifier gets right.
    """
    changed = fixed + broken
    tail = sum(math.comb(changed, count) for count in range(min(fixed, broken) + 1))
    return min(1.0, 2 * tail / 2**changed)
