"""Rows made up so that the numbers are known."""

import statistics

import pytest

from lora_mnist.evaluation.results import Counts
from lora_mnist.sweep.answer import answer
from lora_mnist.sweep.references import FULL, ON_TEST, ON_VAL
from lora_mnist.sweep.rows import Round
from lora_mnist.sweep.tables import markdown
from tests.sweep.test_answer import counts, row

AT_MOST = tuple(Counts(missed=missed, false_alarms=50 - missed, errors=150 - missed) for missed in range(8))


def with_val(one, missed):
    """As if there were a `val`, on which so many are missed."""
    splits = {name: getattr(one, name) | {"val": counts(50, missed, one.digit)} for name in ("before", "after")}
    return one.model_copy(update=splits | {"threshold": one.threshold | {"val": one.threshold["test"]}})


ADAPTERS = [with_val(row(3, 4, seed, 70 + seed), missed) for seed, missed in enumerate((2, 5, 30))]
CONTROLS = [with_val(row(3, 4, seed, 90, method="control", shifted=AT_MOST), 7) for seed in range(3)]
WHOLE = [with_val(row(3, 32, seed, 60, method="full"), 1) for seed in range(3)]


def references(rows):
    (variant,) = [one for one in answer(rows, only="mine").variants if one.name == "mine"]
    return {one.name: one for one in variant.references}


def test_thresholds_are_those_of_the_rows():
    found = references(ADAPTERS)
    assert found[ON_VAL].counts["errors"].mean == 120
    assert found[ON_TEST].counts["errors"].mean == statistics.mean((110, 111, 112))
    assert found[ON_TEST].more.mean == 40
    assert found[ON_TEST].more.half == pytest.approx(0)


def test_a_control_with_a_number_misses_no_more_on_val_than_its_adapter():
    found = references([*ADAPTERS, *CONTROLS])
    assert found["control: uniform sampling"].counts["errors"].mean == 90
    chosen = [AT_MOST[2], AT_MOST[5], AT_MOST[7]]  # the third adapter misses more than the control does anyway
    shifted = found["control + shifted threshold (chosen on `val`)"]
    assert shifted.counts["errors"].mean == statistics.mean(one.errors for one in chosen)
    assert shifted.more.mean == statistics.mean(one.errors - 70 - seed for seed, one in enumerate(chosen))


def test_a_control_of_other_settings_or_another_base_is_none():
    strangers = [row(3, 4, seed, 90, method="control", shifted=AT_MOST, steps=7) for seed in range(3)]
    assert references([*ADAPTERS, *strangers]).keys() == {ON_TEST, ON_VAL}
    assert references([*ADAPTERS, *CONTROLS[:2]]).keys() == {ON_TEST, ON_VAL}


def test_all_weights_belong_to_every_rank():
    assert references([*ADAPTERS, *WHOLE])[FULL].more.mean == statistics.mean((-10, -11, -12))


def test_what_is_only_compared_with_is_no_variant():
    found = answer([*ADAPTERS, *CONTROLS, *WHOLE], only="mine")
    assert [one.name for one in found.variants] == ["mine", FULL]
    assert {cell.variant for cell in found.cells} == {"mine", FULL}


def test_rounds_are_means_of_the_bases_that_got_so_far():
    def provenance(before, after, strength=1.0):
        first, then = (Counts(missed=errors // 2, false_alarms=0, errors=errors) for errors in (before, after))
        return Round(digit=3, strength=strength, before=first, after=then)

    rows = [
        row(3, 4, 0, 70, method="rounds", rounds=(provenance(100, 80), provenance(80, 70))),
        row(3, 4, 1, 90, method="rounds", rounds=(provenance(100, 90), provenance(90, 90, None))),
        row(3, 4, 2, 100, method="rounds", rounds=(provenance(100, 100, None),)),
    ]
    found = answer([*ADAPTERS, *rows]).rounds
    assert [(one.jobs, one.kept, one.fell, one.errors) for one in found.rounds] == [
        (3, 2, 2, (100, 85)),
        (2, 1, 1, (80, 70)),
    ]
    assert found.errors.mean == statistics.mean((70, 90, 100))


def test_the_tables_say_what_the_answer_says():
    rows = [*ADAPTERS, *CONTROLS, *WHOLE]
    text = markdown(answer(rows, only="mine"), rows)
    assert "| mine | 5.0 ± 0.0 (−75 %) | 3.0 ± 0.0 (+0 %) | 71.0 ± 2.5 (−30 %) |" in text
    assert f"| {ON_TEST} | 5.0 ± 0.0 (−75 %) |" in text
    assert "All weights: 11.0 ± 2.5 fewer errors than mine (−15 %)." in text
    assert "Verdicts of mine: 3 repair." in text
    assert "| all errors, digit | mine | all weights |\n|---|---|---|\n| 3 | 71.0 | 60.0 |" in text
    assert text.count("| 0 | 3 | 90.00 → 93.00 % |") == 1  # a line a seed
    assert "| mean |  | 89.90 → 92.90 % | 20.0 → 5.0 |" in text
