import math

import pytest

from lora_mnist.evaluation.results import (
    Analysis,
    Comparison,
    ControlCounts,
    ControlResult,
    Counts,
    Pair,
    PairedControl,
    Pairs,
    ShiftedLogit,
    Threshold,
)
from lora_mnist.evaluation.verdict import listed, verdict_of

DIGIT = 9
NOTHING = ((0,) * 10,) * 10  # no verdict looks at who was taken for whom


def pair(fixed, broken):
    return Pair(fixed=fixed, broken=broken)


def moved(count, change):
    return count + change.broken - change.fixed


def shifted(errors, missed, better=(100, 10)):
    counts = Counts(missed=missed, false_alarms=50, errors=errors)
    return ShiftedLogit(shift=1.0, chosen_on="val", splits={"test": counts}, pairs={"test": pair(*better)})


def analysis(missed, false_alarms, others=(), threshold=None, control=None):
    """100 missed nines, 30 false_alarms and 400 errors before; then so many images fixed and broken.

    Args:
        others: by digit, the fixed and broken images of the other digits.
    """
    digits = {digit: pair(0, 0) for digit in range(10)} | {d: pair(*p) for d, p in dict(others).items()}
    digits[DIGIT] = pair(*missed)
    errors = pair(sum(p.fixed for p in digits.values()), sum(p.broken for p in digits.values()))
    pairs = Pairs(missed=digits[DIGIT], false_alarms=pair(*false_alarms), errors=errors)
    before = {"missed": 100, "false_alarms": 30, "errors": 400}
    after = {key: moved(count, getattr(pairs, key)) for key, count in before.items()}
    compared = Comparison(
        before=Counts(**before),
        after=Counts(**after),
        fixed=tuple(digits[d].fixed for d in range(10)),
        broken=tuple(digits[d].broken for d in range(10)),
        pairs=pairs,
        came=NOTHING,
        went=NOTHING,
    )
    threshold = threshold or shifted(500, after["missed"])
    return Analysis(
        schema_version=3,
        splits={"test": compared},
        threshold=Threshold(**dict(threshold), curve=()),
        examples=(),
        control=control and ControlResult(scale=1.0, splits={"test": beside(after)}, threshold=control),
    )


def beside(after):
    same = PairedControl(only_adapter_right=0, only_control_right=0, p=1.0)
    return ControlCounts(**after, all=same, digit=same)


REPAIRED = (60, 5)  # 55 fewer missed
GAINS = {0: (20, 2), 4: (10, 6), 7: (12, 9)}


@pytest.mark.parametrize(
    ("kind", "title", "found"),
    [
        ("repair", "A repair: 55 fewer missed 9s, 5 fewer false alarms, 80 fewer", analysis(REPAIRED, (10, 5), GAINS)),
        # p = 0.013 for the fours, which are one of ten digits
        ("repair", "false alarms, 44 fewer errors", analysis(REPAIRED, (10, 5), {4: (3, 14)})),
        ("side effect", "A repair with a side effect: 55 fewer", analysis(REPAIRED, (10, 5), {4: (3, 20)})),
        ("side effect", "A repair with a side effect", analysis(REPAIRED, (10, 5), {4: (3, 20), 7: (0, 19)})),
        ("forgot others", "Fixed one digit and forgot others", analysis(REPAIRED, (0, 300), {7: (0, 300)})),
        ("answers more often", "Not a repair: it only answers 9 more often. 55 fewer", analysis(REPAIRED, (5, 20))),
        ("answers more often", "Not a repair: it only answers 9 more often", analysis((20, 2), (5, 20))),
        (
            "shifted threshold",
            "the 9's logit does as well. 55",
            analysis(REPAIRED, (9, 5), (), shifted(340, 45)),
        ),
        # p = 0.08 for the adapter against the shifted threshold
        ("shifted threshold", "Not a repair", analysis(REPAIRED, (9, 5), (), shifted(358, 45, (30, 17)))),
        ("too few images", "Too few images to tell: 1 fewer missed 9 (p = 1: may be chance)", analysis((1, 0), (0, 0))),
        ("too few images", "Too few images", analysis((14, 3), (0, 0))),  # p = 0.013
        ("not repaired", "Not repaired: as many missed 9s, 1 more false alarm", analysis((3, 3), (0, 1), GAINS)),
        ("not repaired", "Not repaired: 3 fewer missed 9s", analysis((5, 2), (0, 20), {4: (0, 20)})),
    ],
)
def test_the_kinds(kind, title, found):
    verdict = verdict_of(found, DIGIT)
    assert verdict.kind == kind
    assert title in verdict.words


def test_a_control_with_a_shifted_threshold_is_an_excuse_too():
    as_good = shifted(340, 45, (30, 25))
    verdict = verdict_of(analysis(REPAIRED, (10, 5), GAINS, control=as_good), DIGIT)
    assert verdict.kind == "shifted control"
    assert (
        "The control with a shifted threshold misses as many; the adapter makes 6 % fewer errors (p = 0.59)"
        in verdict.words
    )
    worse = shifted(380, 45, (70, 10))
    assert verdict_of(analysis(REPAIRED, (10, 5), GAINS, control=worse), DIGIT).kind == "repair"


def test_the_words_name_who_lost_most_and_whether_that_is_chance():
    words = verdict_of(analysis(REPAIRED, (10, 5), {4: (3, 14)}), DIGIT).words
    assert "Largest side effect: digit 4, +11 errors, not significant (p = 0.013)." in words
    words = verdict_of(analysis(REPAIRED, (10, 5), {4: (3, 20), 7: (0, 19)}), DIGIT).words
    assert "Digits 7 (+19) and 4 (+17) have more errors (p = 0.00049)." in words  # the larger p
    within = {4: (0, 12), 7: (40, 56)}  # more sevens are lost, but so many changed that it may be chance
    words = verdict_of(analysis(REPAIRED, (10, 5), within), DIGIT).words
    assert "Digit 4 has 12 more errors, significant (p = 0.00049)." in words
    assert (
        "No other digit has more errors." in verdict_of(analysis(REPAIRED, (10, 5), GAINS | {7: (9, 9)}), DIGIT).words
    )


def test_every_p_is_the_binomial_test_of_the_same_images():
    from scipy.stats import binomtest

    facts = verdict_of(analysis((14, 3), (5, 20), GAINS), DIGIT).facts
    for one in (facts.missed, facts.false_alarms, facts.both, facts.errors, *facts.digits):
        changed = one.fixed + one.broken
        assert math.isclose(one.p, binomtest(one.broken, changed, 0.5).pvalue if changed else 1.0)
    assert (facts.both.fixed, facts.both.broken) == (19, 23)


def test_a_threshold_without_any_error_is_no_trouble():
    counts, pairs = {"test": Counts(missed=0, false_alarms=0, errors=0)}, {"test": Pair(fixed=0, broken=320)}
    nothing = ShiftedLogit(shift=1.0, chosen_on="val", splits=counts, pairs=pairs)
    words = verdict_of(analysis(REPAIRED, (10, 5), GAINS, nothing), DIGIT).words
    assert "raising the 9's logit misses 0; the adapter makes 320 more errors (p < 0.0001)." in words


def test_names_are_listed_as_in_a_sentence():
    assert [listed([*"abc"][:i]) for i in range(4)] == ["", "a", "a and b", "a, b and c"]
