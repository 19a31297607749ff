"""What a lesson comes to, kind by kind."""

import pytest
from pydantic import ValidationError

from lora_mnist.evaluation.price import Judged, OnVal, Price

NONE = (0,) * 10


def judged(before, fixed, broken, images=30):
    return Judged(
        images=images, before=before, after=before + fixed - broken, fixed=fixed, broken=broken, folds=3, steps=200
    )


def on_val(fixed=NONE, broken=NONE, before=140):
    after = before + sum(broken) - sum(fixed)
    return OnVal(images=5000, before=before, after=after, fixed=fixed, broken=broken)


def price(one, val=None, strength=1.0, before=20, after=30):
    before = one.before if one else before
    return Price(drawings=(3,) * 10, before=before, after=after, judged=one, val=val or on_val(), strength=strength)


HURT = on_val(broken=(0, 0, 0, 0, 12, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("found", "kind", "outcome"),
    [
        (price(judged(20, 8, 0)), "learnt", "good"),
        (price(judged(20, 8, 0), HURT), "paid for", "bad"),
        (price(judged(20, 3, 0)), "too few drawings", "open"),  # p = 0.25
        (price(judged(20, 3, 0), HURT), "too few drawings", "bad"),
        (price(judged(20, 3, 3)), "not learnt", "bad"),
        (price(judged(20, 2, 9)), "not learnt", "bad"),
        (price(judged(30, 0, 0)), "known already", "open"),
        (price(judged(30, 0, 2)), "too few drawings", "open"),
        (price(judged(30, 0, 6)), "not learnt", "bad"),
        (price(judged(25, 0, 0)), "too few drawings", "open"),  # had all five become right, it might be chance
        (price(judged(24, 0, 0)), "not learnt", "bad"),
        (price(judged(20, 8, 0), strength=None), "too dear", "bad"),
        (price(None), "too few drawings", "open"),
        (price(None, before=30), "known already", "open"),
    ],
)
def test_the_verdict_rests_on_drawings_that_were_not_trained_on(found, kind, outcome):
    verdict = found.verdict
    assert (verdict.kind, verdict.outcome) == (kind, outcome)
    shown = found.judged or found
    assert f"{shown.before} → {shown.after} of 30 drawings" in verdict.words
    assert ("trained without it" in verdict.words) == (found.judged is not None)


def test_who_paid_is_named_beyond_chance_only():
    verdict = price(judged(20, 8, 0), HURT).verdict
    assert verdict.lost == (4,)
    assert verdict.words.startswith("Learnt, and 4 pays for it: 20 → 28")
    assert "12 more 4s are wrong" in verdict.paid
    mild = price(judged(20, 8, 0), on_val(broken=(0, 0, 0, 0, 4, 0, 0, 0, 0, 0))).verdict
    assert mild.lost == ()
    assert "within chance" in mild.paid


def test_a_change_of_every_digit_is_what_broke_but_for_what_was_fixed():
    found = on_val(fixed=(1,) * 10, broken=(0, 3, *[1] * 8))
    assert found.change == [-1, 2, *[0] * 8]


@pytest.mark.parametrize(
    "forged",
    [
        {"before": 31},
        {"after": 31},
        {"drawings": NONE},
        {"drawings": (2,) * 10},
        {"before": 21},
        {"judged": judged(20, 8, 0).model_copy(update={"after": 29}).model_dump()},
        {"judged": judged(20, 8, 0, images=31).model_dump()},
    ],
)
def test_a_price_that_does_not_add_up_is_none(forged):
    honest = price(judged(20, 8, 0)).model_dump()
    assert Price.model_validate(honest)
    with pytest.raises(ValidationError):
        Price.model_validate(honest | forged)
