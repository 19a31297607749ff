"""What a lesson comes to, kind by kind."""

import pytest
from pydantic import ValidationError

from lora_mnist.evaluation.verdict import LessonResult, OnVal, Unseen

NONE = (0,) * 10


def unseen(before, fixed, broken, images=30):
    return Unseen(
        images=images, before=before, after=before + fixed - broken, fixed=fixed, broken=broken, folds=3, steps=200
    )


def on_val(fixed=NONE, broken=NONE, before=140):
    after = before + sum(broken) - sum(fixed)
    return OnVal(images=5000, before=before, after=after, fixed=fixed, broken=broken)


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
