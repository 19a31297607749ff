"""How sure a share of wrong images is, a comparison of two classifiers on the same images, or a mean over seeds."""

import math
import statistics
from collections.abc import Sequence

LEVEL = 0.05  # a p of no more than this is more than chance
DIGIT_LEVEL = LEVEL / 10  # of ten intervals that are to hold together (O. J. Dunn 1961, "Multiple comparisons among
# means")


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided p of McNemar's test, exact: were the two equally good, a changed image would be fixed or broken as
    if by a coin toss (Q. McNemar 1947, "Note on the sampling error of the difference between correlated proportions").

    Args:
        fixed, broken: images that only the second, only the first classifier gets right.
    """
    changed = fixed + broken
    tail = sum(math.comb(changed, count) for count in range(min(fixed, broken) + 1))
    return min(1.0, float(2 * tail / 2**changed))


def holm(ps: Sequence[float]) -> list[float]:
    """p of several tests that are asked together, corrected so that one in twenty such families errs at `LEVEL`
    (S. Holm 1979, "A simple sequentially rejective multiple test procedure"): the smallest times their number, the
    next times one less, and none smaller than the one before."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def format_p(p: float) -> str:
    """For a sentence."""
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def wilson(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a share that was seen as `count` of `total` (E. B. Wilson 1927, "Probable inference, the law of
    succession, and statistical inference"). It stays within 0 and 1, and has a width even at 0 of `total`."""
    z, share = 1.959963984540054, count / total  # the normal distribution's 97.5 % point
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low, high = ((middle + side) / (1 + z * z / total) for side in (-half, half))
    return (low if count else 0.0), (high if count < total else 1.0)


def paired_interval(fixed: int, broken: int, total: int) -> tuple[float, float]:
    """Interval of the change of a share of wrong images, (broken - fixed) / total, at 1 - `DIGIT_LEVEL`.

    Given how many images changed, the share of broken ones among them has the exact interval of C. J. Clopper and E. S.
    Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the binomial". So it leaves 0 out
    exactly where `mcnemar` of the same images is no more than `DIGIT_LEVEL`.
    """
    from scipy.special import betaincinv  # takes 0.9 s to import, and only the report asks

    changed = fixed + broken
    if not changed:
        return 0.0, 0.0
    low = betaincinv(broken, fixed + 1, DIGIT_LEVEL / 2) if broken else 0.0
    high = betaincinv(broken + 1, fixed, 1 - DIGIT_LEVEL / 2) if fixed else 1.0
    low, high = (float(changed * (2 * share - 1) / total) for share in (low, high))
    return low, high


def mean_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of a mean (Student 1908, "The probable error of a mean"); None for one value.

    The values are taken as independent draws of a normal distribution.
    """
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # takes a while to import, and scipy.stats much longer

    return float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))


def paired_t_test(differences: Sequence[float]) -> float | None:
    """One-sided p, by the same distribution, of their mean being above 0; None where there is no telling."""
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    if not deviation:  # the test cannot tell, but from itself a thing is no different
        return None if mean else 1.0
    from scipy.special import stdtr

    return float(stdtr(len(differences) - 1, -mean / (deviation / math.sqrt(len(differences)))))
