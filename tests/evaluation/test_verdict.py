"""What a repair, and what a lesson comes to, kind by kind."""

import math

import pytest
from pydantic import ValidationError

from lora_mnist.evaluation.metrics import scores_in
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
from lora_mnist.evaluation.verdict import LessonErrors, LessonResult, UnseenDrawings, listed, verdict_of

DIGIT = 9
NOTHING = ((0,) * 10,) * 10  # no verdict looks at who was taken for whom


def pair(fixed, broken):
    return Pair(fixed=fixed, broken=broken)


def moved(count, change):
    return count + change.broken - change.fixed


def shifted(errors, missed, better=(100, 10)):
    """A network with a shifted threshold; `better`: images that only the adapter, only this one gets right."""
    counts = Counts(missed=missed, false_alarms=50, errors=errors)
    return ShiftedLogit(shift=1.0, chosen_on="test", splits={"test": counts}, pairs={"test": pair(*better)})


def analysis(missed, false_alarms, others=(), threshold=None, control=None):
    """500 missed nines, 30 false alarms and 900 errors before; then so many images fixed and broken.

    Args:
        others: by digit, the fixed and broken images of the other digits.
    """
    digits = {digit: pair(0, 0) for digit in range(10)} | {d: pair(*p) for d, p in dict(others).items()}
    digits[DIGIT] = pair(*missed)
    errors = pair(sum(p.fixed for p in digits.values()), sum(p.broken for p in digits.values()))
    pairs = Pairs(missed=digits[DIGIT], false_alarms=pair(*false_alarms), errors=errors)
    before = {"missed": 500, "false_alarms": 30, "errors": 900}
    after = {key: moved(count, getattr(pairs, key)) for key, count in before.items()}
    compared = Comparison(
        before=Counts(**before),
        after=Counts(**after),
        fixed=tuple(digits[d].fixed for d in range(10)),
        broken=tuple(digits[d].broken for d in range(10)),
        pairs=pairs,
        scores_before=scores_in(NOTHING),
        came=NOTHING,
        went=NOTHING,
    )
    on_val = shifted(1, 1, (0, 500))  # it would be better than any adapter, and no verdict looks at it
    beside = control and ControlResult(
        scale=1.0, splits={"test": as_many(after)}, threshold=on_val, threshold_on_test=control
    )
    return Analysis(
        schema_version=3,
        splits={"test": compared},
        threshold=Threshold(**dict(on_val), curve=()),
        threshold_on_test=threshold or shifted(1500, after["missed"]),
        examples=(),
        control=beside,
    )


def as_many(after):
    same = PairedControl(only_adapter_right=0, only_control_right=0, p=1.0)
    return ControlCounts(**after, all=same, digit=same)


REPAIRED = (60, 5)  # 55 fewer missed
GAINS = {0: (20, 2), 4: (10, 6), 7: (12, 9)}
ONE_EACH, THREE_EACH = (dict.fromkeys(range(9), (0, worse)) for worse in (1, 3))


# Each rule at both of its borders. McNemar's exact p of (fixed, broken): (6, 0) 0.031, (5, 0) 0.063; corrected for ten
# digits: (9, 0) 0.039, (8, 0) 0.078; (20, 8) 0.036 and (20, 9) 0.061
CASES = [
    ("not repaired", "as many missed 9s, 9 fewer", analysis((3, 3), (9, 0), GAINS | {0: (72, 2)})),
    ("not repaired", "1 more missed 9", analysis((0, 1), (9, 0))),
    ("too few images", "8 fewer missed 9s (p = 0.078: may be chance)", analysis((8, 0), (9, 0))),
    ("repair", "A repair: 9 fewer missed 9s", analysis((9, 0), (9, 0))),
    # missed are fewer, maybe by chance, and something is more
    ("not repaired", "19 more errors in all", analysis((8, 0), (0, 20), THREE_EACH)),  # (8, 27): p = 0.002
    ("too few images", "chance", analysis((8, 0), (0, 9), ONE_EACH)),  # (8, 9): p = 1
    (
        "not repaired",
        "4 has 10 more errors, significant",
        analysis((8, 0), (0, 9), {4: (0, 10), 1: (30, 30)}),
    ),
    ("too few images", "not significant (p = 0.078)", analysis((8, 0), (0, 8), {4: (0, 8), 1: (30, 30)})),
    # all errors
    ("forgot others", "42 fewer missed 9s, 64 more", analysis((42, 0), (0, 64), {7: (0, 64)})),  # (42, 64): p = 0.041
    ("side effect", "errors", analysis((42, 0), (1, 8), {7: (0, 61)})),  # (42, 61): p = 0.076
    # the smallest shift that misses no more
    ("shifted threshold", "raising the 9's logit does as well. 55", analysis(REPAIRED, (9, 5), (), shifted(845, 445))),
    ("too few for threshold", "shifted threshold: 55", analysis(REPAIRED, (9, 5), (), shifted(846, 445, (6, 5)))),
    ("too few for threshold", "(p = 0.062)", analysis(REPAIRED, (9, 5), (), shifted(850, 445, (5, 0)))),
    ("repair", "A repair", analysis(REPAIRED, (9, 5), (), shifted(851, 445, (6, 0)))),
    # missed and false alarms together
    ("answers more often", "it only answers 9 more often. 20", analysis((20, 0), (0, 9))),  # (20, 9): p = 0.061
    ("repair", "A repair: 20 fewer missed 9s, 8 more false alarms", analysis((20, 0), (0, 8))),  # (20, 8): p = 0.036
    ("too few images", "of both, 10 fewer errors, p = 0.17", analysis((22, 4), (5, 13))),  # alarms (5, 13): p = 0.096
    ("too few images", "of both", analysis((9, 0), (11, 15))),  # (20, 15): p = 0.5, alarms p = 0.56
    # another digit
    ("repair", "Largest side effect: digit 4, +8 errors", analysis(REPAIRED, (10, 5), {4: (0, 8)})),
    ("side effect", "side effect: 4 has 9 more errors. 55", analysis(REPAIRED, (10, 5), {4: (0, 9)})),
    ("side effect", "effects: 7 has 19 and 4 has 17 more", analysis(REPAIRED, (10, 5), {4: (3, 20), 7: (0, 19)})),
    # a base that saw hardly any nines: a few false alarms are not guessing
    ("repair", "A repair: 475 fewer missed 9s, 7 more false alarms", analysis((475, 0), (1, 8), GAINS)),
]


@pytest.mark.parametrize(("kind", "words", "found"), CASES)
def test_each_rule_at_both_of_its_borders(kind, words, found):
    verdict = verdict_of(found, DIGIT)
    assert verdict.kind == kind, verdict.words
    assert words in verdict.words


@pytest.mark.parametrize(("kind", "words", "found"), CASES)
def test_every_p_is_that_of_scipy_and_statsmodels(kind, words, found):
    from scipy.stats import binomtest
    from statsmodels.stats.multitest import multipletests

    def exact(one):
        changed = one.fixed + one.broken
        return binomtest(one.broken, changed, 0.5).pvalue if changed else 1.0

    facts, compared = verdict_of(found, DIGIT).facts, found.splits["test"]
    for one in (facts.false_alarms, facts.both, facts.errors, facts.threshold.pair):
        assert math.isclose(one.p, exact(one))
    alone = [exact(pair(*one)) for one in zip(compared.fixed, compared.broken, strict=True)]
    corrected = multipletests(alone, method="holm")[1]
    assert [one.p for one in facts.digits] == pytest.approx(corrected)
    assert facts.missed == facts.digits[DIGIT]


def test_a_control_adds_a_sentence_and_changes_no_verdict():
    as_good = verdict_of(analysis(REPAIRED, (10, 5), GAINS, control=shifted(825, 445, (30, 25))), DIGIT)
    assert as_good.kind == "repair"
    says = "The control with a threshold shifted until as few 9s are missed makes 825 errors; the adapter makes 820 ("
    assert says in as_good.compared
    assert as_good.compared.endswith("So uniform sampling with a threshold does as well.")
    worse = verdict_of(analysis(REPAIRED, (10, 5), GAINS, control=shifted(880, 445, (70, 10))), DIGIT)
    assert worse.kind == "repair"
    assert "as well" not in worse.compared


def test_the_words_name_who_lost_most_and_whether_that_is_chance():
    words = verdict_of(analysis(REPAIRED, (10, 5), {4: (0, 12), 7: (40, 56)}), DIGIT).words
    assert "Digit 4 has 12 more errors, significant (p = 0.0044)." in words  # of the sevens too many changed
    words = verdict_of(analysis(REPAIRED, (10, 5), {4: (3, 20), 7: (0, 19)}), DIGIT).words
    assert " 7 has 19 and 4 has 17 more errors, significant (p = 0.0039)." in words  # the larger p
    assert (
        "No other digit has more errors." in verdict_of(analysis(REPAIRED, (10, 5), GAINS | {7: (9, 9)}), DIGIT).words
    )


def test_a_threshold_without_any_error_is_no_trouble():
    counts, pairs = {"test": Counts(missed=0, false_alarms=0, errors=0)}, {"test": Pair(fixed=0, broken=820)}
    nothing = ShiftedLogit(shift=1.0, chosen_on="test", splits=counts, pairs=pairs)
    words = verdict_of(analysis(REPAIRED, (10, 5), GAINS, nothing), DIGIT).words
    says = "raising the 9's logit until only 0 are missed makes 0 errors; the adapter makes 820 (p < 0.0001)."
    assert says in words


def test_names_are_listed_as_in_a_sentence():
    assert [listed([*"abc"][:i]) for i in range(4)] == ["", "a", "a and b", "a, b and c"]


# A lesson -------------------------------------------------------------------------------------------------------------

NONE = (0,) * 10


def unseen(before, fixed, broken, images=30):
    return UnseenDrawings(
        images=images, before=before, after=before + fixed - broken, fixed=fixed, broken=broken, folds=3, steps=200
    )


def on_val(fixed=NONE, broken=NONE, before=140):
    after = before + sum(broken) - sum(fixed)
    return LessonErrors(images=5000, before=before, after=after, fixed=fixed, broken=broken)


def lesson(one, val=None, scale=1.0, before=20, after=30):
    before = one.before if one else before
    return LessonResult(drawings=(3,) * 10, before=before, after=after, unseen=one, val=val or on_val(), scale=scale)


HURT = on_val(broken=(0, 0, 0, 0, 12, 0, 0, 0, 0, 0))
ALL_HURT = on_val(broken=(4,) * 10)


@pytest.mark.parametrize(
    ("found", "kind", "outcome"),
    [
        (lesson(unseen(20, 8, 0)), "learnt", "good"),
        (lesson(unseen(20, 8, 0), HURT), "side effect", "bad"),
        (lesson(unseen(20, 8, 0), ALL_HURT), "side effect", "bad"),  # no digit by itself, all of them together
        (lesson(unseen(20, 3, 0)), "too few drawings", "open"),  # p = 0.25
        (lesson(unseen(20, 3, 0), HURT), "too few drawings", "bad"),
        (lesson(unseen(20, 3, 3)), "not learnt", "bad"),
        (lesson(unseen(20, 2, 9)), "not learnt", "bad"),
        (lesson(unseen(30, 0, 0)), "known already", "open"),
        (lesson(unseen(30, 0, 2)), "too few drawings", "open"),
        (lesson(unseen(30, 0, 6)), "not learnt", "bad"),
        (lesson(unseen(25, 0, 0)), "too few drawings", "open"),  # had all five become right, it might be chance
        (lesson(unseen(24, 0, 0)), "not learnt", "bad"),
        (lesson(unseen(20, 8, 0), scale=None), "no scale", "bad"),
        (lesson(None), "too few drawings", "open"),
        (lesson(None, before=30), "known already", "open"),
    ],
)
def test_the_verdict_rests_on_drawings_that_were_not_trained_on(found, kind, outcome):
    verdict = found.verdict
    assert (verdict.kind, verdict.outcome) == (kind, outcome)
    shown = found.unseen or found
    assert f"{shown.before} → {shown.after} of 30 drawings" in verdict.words
    assert ("tested unseen" in verdict.words) == (found.unseen is not None)


def test_side_effects_are_named_beyond_chance_only():
    verdict = lesson(unseen(20, 8, 0), HURT).verdict
    assert verdict.worse == (4,)
    assert verdict.words.startswith("Learnt, with a side effect: 20 → 28")
    assert "Digit 4 has 12 more errors" in verdict.side_effects
    mild = lesson(unseen(20, 8, 0), on_val(broken=(0, 0, 0, 0, 4, 0, 0, 0, 0, 0))).verdict
    assert mild.worse == ()
    assert "not significant" in mild.side_effects


@pytest.mark.parametrize(
    "forged",
    [
        {"before": 31},
        {"after": 31},
        {"drawings": NONE},
        {"drawings": (2,) * 10},
        {"before": 21},
        {"unseen": unseen(20, 8, 0).model_copy(update={"after": 29}).model_dump()},
        {"unseen": unseen(20, 8, 0, images=31).model_dump()},
    ],
)
def test_a_lesson_that_does_not_add_up_is_none(forged):
    honest = lesson(unseen(20, 8, 0)).model_dump()
    assert LessonResult.model_validate(honest)
    with pytest.raises(ValidationError):
        LessonResult.model_validate(honest | forged)
