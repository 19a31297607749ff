"""Rows made up so that the numbers are known; intervals and tests against scipy's."""

import statistics

import pytest
from scipy import stats

from lora_mnist.errors import UsageError
from lora_mnist.evaluation.results import Counts
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.sweep.answer import FULL, answer
from lora_mnist.sweep.rows import Row, SplitCounts
from lora_mnist.sweep.words import ONE_SEED, rule, sentence, sentences

IMAGES = (100,) * 10


def counts(errors, missed, digit):
    wrong = [0] * 10
    wrong[digit], wrong[(digit + 1) % 10] = missed, errors - missed
    return SplitCounts(missed=missed, false_alarms=3, errors=errors, wrong=tuple(wrong), images=IMAGES)


def row(digit, rank, seed, errors, missed=5, method="lora", shifted=(), rounds=(), **tuning):
    settings = resolve([load_config("default"), {"finetune": {"digit": digit, "rank": rank, **tuning}}], "mnist")
    return Row(
        key=f"{method}{digit}-{rank}-{seed}-{tuning}",
        base=f"base{seed}",
        dataset="mnist",
        data=settings.data,
        model=settings.model,
        pretrain=settings.pretrain,
        held_out=False,
        method=method,
        digit=digit,
        rank=None if method == "full" else rank,
        seed=seed,
        settings=settings.finetune,
        strength=1.0,
        parameters=1000 * rank if method == "lora" else 99_000,
        before={"test": counts(100 + seed, 20, digit)},
        after={"test": counts(errors, missed, digit)},
        threshold={"test": Counts(missed=missed, false_alarms=40, errors=120)},
        threshold_on_test=Counts(missed=missed, false_alarms=30, errors=110 + seed),
        shifted=shifted,
        rounds=rounds,
        verdict="repair",
        seconds=1.0,
        engine="stacked",
    )


ERRORS = {1: (80, 84, 83), 4: (62, 60, 63), 8: (60, 61, 62)}  # by rank: a figure a seed
ROWS = [
    row(digit, rank, seed, errors + digit)
    for digit in (3, 8)
    for rank, by_seed in ERRORS.items()
    for seed, errors in enumerate(by_seed)
]


def test_means_and_intervals_are_over_seeds():
    found = answer(ROWS)
    assert [one.name for one in found.variants] == ["rank 1", "rank 4", "rank 8"]
    for one, by_seed in zip(found.variants, ERRORS.values(), strict=True):
        values = [errors + 5.5 for errors in by_seed]  # of both digits
        assert one.after["errors"].mean == pytest.approx(statistics.mean(values))
        low, high = stats.t.interval(0.95, 2, statistics.mean(values), stats.sem(values))
        assert one.after["errors"].half == pytest.approx((high - low) / 2)
        assert one.after["errors"].seeds == 3
        assert one.threshold["false_alarms"].mean == 40
        assert (one.jobs, one.kept, one.verdicts) == (6, 6, {"repair": 6})
    assert found.base["errors"].mean == 101
    assert (found.digits, found.seeds, found.by) == ((3, 8), (0, 1, 2), "rank")


def test_the_worst_other_digit_is_never_the_repaired_one():
    found = answer([row(3, 1, seed, 80, missed=60) for seed in (0, 1)])  # more threes are wrong, but no other digit
    assert found.variants[0].worst.mean == 0
    found = answer([row(3, 1, seed, 180 + seed, missed=5) for seed in (0, 1)])
    assert found.variants[0].worst.mean == pytest.approx(175 - 80)


def test_enough_is_the_smallest_that_is_not_worse_by_more_than_chance():
    *of_digits, of_all = answer(ROWS).enough
    assert [one.digit for one in of_digits] == [3, 8]
    for one in (*of_digits, of_all):
        assert (one.best, one.enough, one.next_smaller) == ("rank 8", "rank 4", "rank 1")
        expected = stats.ttest_rel(ERRORS[1], ERRORS[8], alternative="greater")
        assert one.p == pytest.approx(expected.pvalue)
        assert one.worse == pytest.approx(statistics.mean(ERRORS[1]) - statistics.mean(ERRORS[8]))
    between = stats.ttest_rel(ERRORS[4], ERRORS[8], alternative="greater").pvalue
    assert between > 0.05


def test_nothing_is_enough_that_is_no_better_than_the_base():
    rows = [row(3, rank, seed, 101 + (-1) ** seed) for rank in (1, 2) for seed in (0, 1)]
    (_, of_all) = found = answer(rows).enough
    assert not of_all.helps
    assert "None is better than the base" in sentence(of_all)
    assert all(one.helps for one in answer(ROWS).enough)
    assert len(found) == 2


def test_one_seed_does_not_say_what_is_enough():
    found = answer([one for one in ROWS if one.seed == 0])
    assert {one.enough for one in found.enough} == {None}
    assert found.variants[0].after["errors"].half is None


def test_always_the_same_difference_is_no_chance():
    rows = [row(3, rank, seed, 50 + seed - rank) for rank in (1, 2) for seed in (0, 1)]
    assert answer(rows).enough[-1].enough == "rank 2"
    rows = [row(3, rank, seed, 50 + seed) for rank in (1, 2) for seed in (0, 1)]
    assert answer(rows).enough[-1].enough == "rank 1"


def test_the_map_has_a_cell_for_every_digit_and_variant():
    cells = {(one.digit, one.variant): one for one in answer(ROWS).cells}
    assert len(cells) == 6
    assert cells[3, "rank 4"].value == pytest.approx(statistics.mean(ERRORS[4]) + 3)
    assert cells[3, "rank 4"].change == pytest.approx(statistics.mean(ERRORS[4]) + 3 - 101)


def test_what_is_varied_besides_makes_variants_and_orders_them():
    rows = [row(3, rank, seed, 60, focus=focus) for rank in (1, 2) for seed in (0, 1) for focus in (0.2, 0.1)]
    assert [one.name for one in answer(rows, by="focus").variants] == [
        f"focus {focus}, rank {rank}" for focus in (0.1, 0.2) for rank in (1, 2)
    ]
    assert [one.by for one in answer(rows).variants] == ["1", "1", "2", "2"]
    assert answer(rows, by="finetune.focus").by == "focus"


def test_all_weights_stand_last_and_have_no_rank():
    found = answer([*ROWS, *(row(3, 32, seed, 70, method="full") for seed in range(3))])
    assert (found.variants[-1].name, found.variants[-1].by) == (FULL, None)


@pytest.mark.parametrize("metric", ["missed", "false_alarms", "errors"])
def test_the_metric_is_what_the_map_shows(metric):
    found = answer(ROWS, metric=metric)
    assert found.cells[0].value == pytest.approx(statistics.mean(r.after["test"].of(metric) for r in ROWS[:3]))


@pytest.mark.parametrize(
    ("rows", "view", "said"),
    [([], {}, "No job"), (ROWS, {"by": "focus"}, "was not varied"), (ROWS, {"split": "val"}, "`split`")],
)
def test_what_cannot_be_answered(rows, view, said):
    with pytest.raises(UsageError, match=said):
        answer(rows, **view)


def test_of_a_single_variant_it_is_said_whether_it_helps():
    rows = [row(3, 4, seed, errors) for seed, errors in enumerate((62, 60, 63))]
    found = answer(rows, only="mine")
    assert [one.name for one in found.variants] == ["mine"]
    assert sentences(found)[-1] == "Mine is better than the base for all digits together by more than chance."
    assert sentences(answer(rows[:1], only="mine")) == [ONE_SEED]
    assert rule(found) == ""
    assert rule(answer(ROWS)) != ""


def test_one_base_is_compared_seed_by_seed():
    """As with --run, where all seeds start from one base."""
    before = {"test": counts(100, 20, 3)}
    rows = [one.model_copy(update={"base": "the one", "before": before}) for one in ROWS if one.digit == 3]
    found = answer(rows)
    assert all(one.helps for one in found.enough)
    assert sentences(found)[-1].startswith("Rank 4 is enough for all digits together")
    worse = [one.model_copy(update={"after": {"test": counts(100 + one.seed, 5, 3)}}) for one in rows]
    assert sentences(answer(worse))[-1].startswith("None is better than the base")
    mine = answer([one for one in rows if one.rank == 4], only="mine")
    assert sentences(mine)[-1] == "Mine is better than the base for all digits together by more than chance."


def test_settings_of_the_bases_are_varied_too():
    def trained(one, epochs):
        return one.model_copy(
            update={"base": f"{one.base}-{epochs}", "pretrain": one.pretrain.model_copy(update={"epochs": epochs})}
        )

    rows = [trained(one, epochs) for one in ROWS for epochs in (1, 4)]
    found = answer(rows, by="pretrain.epochs")
    names = [(one.name, one.by, one.series) for one in found.variants if "rank 4" in one.name]
    assert names == [(f"pretrain epochs {n}, rank 4", str(n), "rank 4") for n in (1, 4)]
    assert {"rank 4, pretrain epochs 1", "rank 4, pretrain epochs 4"} < {one.name for one in answer(rows).variants}


def test_a_list_is_one_value():
    rows = [row(3, 4, 0, 60, targets=targets) for targets in (["linear1"], ["linear1", "linear2"])]
    found = answer(rows, by="targets")
    assert [one.by for one in found.variants] == ['["linear1", "linear2"]', '["linear1"]']
    assert {one.series for one in found.variants} == {""}


def test_a_digit_of_which_only_a_control_is_done_is_left_out():
    found = answer([*ROWS, row(5, 4, 0, 60, method="control")])
    assert found.digits == (3, 8)


def test_of_as_many_numbers_none_is_the_smallest():
    rows = [row(3, 4, seed, errors, focus=focus) for focus in (0.2, 0.3) for seed, errors in enumerate((62, 60, 63))]
    assert "smallest" not in sentences(answer(rows, by="focus"))[-1]
