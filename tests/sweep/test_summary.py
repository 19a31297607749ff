"""Summaries of rows made up so that the numbers are known; intervals and tests against scipy's. And their page."""

import csv
import json
import re
import statistics

import html5lib
import pytest
from scipy import stats

from lora_mnist.errors import UsageError
from lora_mnist.evaluation.results import Counts
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.sweep.page import PAGE, plot_by_setting, write_page
from lora_mnist.sweep.rows import Round, Row, SplitCounts
from lora_mnist.sweep.summary import FULL, ON_TEST, ON_VAL, Summary, summarise
from tests.conftest import snapshot

IMAGES = (100,) * 10


def counts(errors, missed, digit):
    wrong = [0] * 10
    wrong[digit], wrong[(digit + 1) % 10] = missed, errors - missed
    return SplitCounts(missed=missed, false_alarms=3, errors=errors, wrong=tuple(wrong), images=IMAGES)


def row(digit, rank, seed, errors, missed=5, method="lora", shifted=(), rounds=(), **tuning):
    settings = resolve([load_config("default"), {"finetune": {"digit": digit, "rank": rank, **tuning}}], "mnist")
    how = {name: getattr(settings, name) for name in ("data", "model", "pretrain")} | {"settings": settings.finetune}
    what = {"dataset": "mnist", "held_out": False, "method": method, "digit": digit, "seed": seed}
    counted = {
        "before": {"test": counts(100 + seed, 20, digit)},
        "after": {"test": counts(errors, missed, digit)},
        "threshold": {"test": Counts(missed=missed, false_alarms=40, errors=120)},
        "threshold_on_test": Counts(missed=missed, false_alarms=30, errors=110 + seed),
    }
    return Row(
        **(how | what | counted),
        key=f"{method}{digit}-{rank}-{seed}-{tuning}",
        base=f"base{seed}",
        rank=None if method == "full" else rank,
        scale=1.0,
        parameters=1000 * rank if method == "lora" else 99_000,
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
    found = summarise(ROWS)
    assert [one.name for one in found.variants] == ["rank 1", "rank 4", "rank 8"]
    for one, by_seed in zip(found.variants, ERRORS.values(), strict=True):
        values = [errors + 5.5 for errors in by_seed]  # of both digits
        assert one.after["errors"].mean == pytest.approx(statistics.mean(values))
        low, high = stats.t.interval(0.95, 2, statistics.mean(values), stats.sem(values))
        assert one.after["errors"].half == pytest.approx((high - low) / 2)
        assert one.after["errors"].seeds == 3
        assert one.threshold["false_alarms"].mean == 40
        assert (one.jobs, one.kept, one.verdicts) == (6, 6, {"repair": 6})
    assert summarise([row(3, 1, 0, 80)]).variants[0].after["errors"].half is None  # of one seed
    assert found.base["errors"].mean == 101
    assert (found.digits, found.seeds, found.by) == ((3, 8), (0, 1, 2), "rank")


def test_the_worst_other_digit_is_never_the_repaired_one():
    found = summarise([row(3, 1, seed, 80, missed=60) for seed in (0, 1)])  # more threes are wrong, but no other digit
    assert found.variants[0].worst.mean == 0
    found = summarise([row(3, 1, seed, 180 + seed, missed=5) for seed in (0, 1)])
    assert found.variants[0].worst.mean == pytest.approx(175 - 80)


def test_enough_is_the_smallest_that_is_not_worse_by_more_than_chance():
    *of_digits, of_all = summarise(ROWS).enough
    assert [one.digit for one in of_digits] == [3, 8]
    for one in (*of_digits, of_all):
        assert (one.best, one.enough, one.next_smaller) == ("rank 8", "rank 4", "rank 1")
        expected = stats.ttest_rel(ERRORS[1], ERRORS[8], alternative="greater")
        both = 1 if one.digit is None else 2  # digits that are asked together: Holm's smallest p is times their number
        assert one.p == pytest.approx(both * expected.pvalue)
        assert one.worse == pytest.approx(statistics.mean(ERRORS[1]) - statistics.mean(ERRORS[8]))
    first, second, last = summarise(ROWS).sentences
    assert first == "Rank 4 is enough for the 3; rank 1 is not: 21.3 more (p = 0.0017)."
    assert "for the 8" in second
    assert "all digits together" in last
    between = stats.ttest_rel(ERRORS[4], ERRORS[8], alternative="greater").pvalue
    assert between > 0.05


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([one for one in ROWS if one.seed == 0], "rank 8 is best; these seeds do not say what is enough"),
        ([row(3, rank, seed, 101 + (-1) ** seed) for rank in (1, 2) for seed in (0, 1)], "None is better"),
        # all seeds differ by the same, of which the test cannot tell
        ([row(3, rank, seed, 80 - 10 * rank + seed) for rank in (1, 2) for seed in (0, 1, 2)], "rank 2 is best; these"),
    ],
)
def test_where_nothing_is_enough_it_says_why(rows, said):
    assert said in str(summarise(rows).enough[-1])


def test_what_is_varied_besides_makes_variants_and_orders_them():
    rows = [row(3, rank, seed, 60, focus=focus) for rank in (1, 2) for seed in (0, 1) for focus in (0.2, 0.1)]
    assert [one.name for one in summarise(rows, by="focus").variants] == [
        f"focus {focus}, rank {rank}" for focus in (0.1, 0.2) for rank in (1, 2)
    ]
    assert [one.by for one in summarise(rows).variants] == ["1", "1", "2", "2"]
    assert len(plot_by_setting(summarise(rows)).figure.axes[0].containers) == 2  # a line for each focus


def test_what_cannot_be_answered():
    assert summarise([]) is None
    with pytest.raises(UsageError, match="`split`"):
        summarise(ROWS, split="val")


def test_of_a_single_variant_it_is_said_whether_it_helps():
    rows = [row(3, 4, seed, errors) for seed, errors in enumerate((62, 60, 63))]
    found = summarise(rows, label="mine")
    assert [one.name for one in found.variants] == ["mine"]
    assert found.sentences[-1] == "Mine is better than the base for all digits together by more than chance."
    assert summarise(rows[:1]).sentences[0].startswith("One seed does not say which is enough")
    assert found.rule == ""
    assert summarise(ROWS).rule != ""


AT_MOST = tuple(Counts(missed=missed, false_alarms=50 - missed, errors=150 - missed) for missed in range(8))


def with_val(one, missed):
    """As if there were a `val`, on which so many are missed."""
    splits = {name: getattr(one, name) | {"val": counts(50, missed, one.digit)} for name in ("before", "after")}
    return one.model_copy(update=splits | {"threshold": one.threshold | {"val": one.threshold["test"]}})


ADAPTERS = [with_val(row(3, 4, seed, 70 + seed), missed) for seed, missed in enumerate((2, 5, 30))]
CONTROLS = [with_val(row(3, 4, seed, 90, method="control", shifted=AT_MOST), 7) for seed in range(3)]
WHOLE = [with_val(row(3, 32, seed, 60, method="full"), 1) for seed in range(3)]


def references(rows):
    (variant,) = [one for one in summarise(rows, label="mine").variants if one.name == "mine"]
    return {one.name: one for one in variant.references}


def test_a_control_with_a_number_misses_no_more_on_val_than_its_adapter():
    found = references([*ADAPTERS, *CONTROLS, *WHOLE])
    assert found[FULL].more.mean == statistics.mean((-10, -11, -12))  # all weights belong to every rank
    assert found["control: uniform sampling"].counts["errors"].mean == 90
    chosen = [AT_MOST[2], AT_MOST[5], AT_MOST[7]]  # the third adapter misses more than the control does anyway
    shifted = found["control + shifted threshold (chosen on `val`)"]
    assert shifted.counts["errors"].mean == statistics.mean(one.errors for one in chosen)
    assert shifted.more.mean == statistics.mean(one.errors - 70 - seed for seed, one in enumerate(chosen))


def test_a_control_of_other_settings_or_another_base_is_none():
    strangers = [row(3, 4, seed, 90, method="control", shifted=AT_MOST, steps=7) for seed in range(3)]
    assert references([*ADAPTERS, *strangers]).keys() == {ON_TEST, ON_VAL}
    assert references([*ADAPTERS, *CONTROLS[:2]]).keys() == {ON_TEST, ON_VAL}


def test_rounds_are_means_of_the_bases_that_got_so_far():
    def repair(before, after, scale=1.0):
        first, then = (Counts(missed=errors // 2, false_alarms=0, errors=errors) for errors in (before, after))
        return Round(digit=3, scale=scale, before=first, after=then)

    rows = [
        row(3, 4, 0, 70, method="rounds", rounds=(repair(100, 80), repair(80, 70))),
        row(3, 4, 1, 90, method="rounds", rounds=(repair(100, 90), repair(90, 90, None))),
        row(3, 4, 2, 100, method="rounds", rounds=(repair(100, 100, None),)),
    ]
    found = summarise([*ADAPTERS, *rows]).rounds
    assert [(one.jobs, one.kept, one.fell, one.errors) for one in found.rounds] == [
        (3, 2, 2, (100, 85)),
        (2, 1, 1, (80, 70)),
    ]
    assert found.errors.mean == statistics.mean((70, 90, 100))


def test_the_tables_say_what_the_summary_says(tmp_path):
    rows = [*ADAPTERS, *CONTROLS, *WHOLE]
    page = write_page(summarise(rows, label="mine"), rows, tmp_path)
    text = (page.parent / "tables.md").read_text()
    assert "| mine | 5.0 ± 0.0 (−75 %) | 3.0 ± 0.0 | 71.0 ± 2.5 (−30 %) |" in text
    assert f"| {ON_TEST} | 5.0 ± 0.0 (−75 %) |" in text
    assert "\n\nAll weights: 11.0 ± 2.5 fewer errors than mine (−15 %).\n\n" in text
    assert "\n\nVerdicts of mine: 3 repair.\n\n" in text
    assert "\n\n| all errors, digit | mine | all weights |\n|---|---|---|\n| 3 | 71.0 | 60.0 |\n\n" in text
    assert text.count("| 0 | 3 | 90.00 → 93.00 % |") == 1  # a line a seed
    assert "| mean |  | 89.90 → 92.90 % | 20.0 → 5.0 |" in text


FULL_ROWS = [row(digit, 32, seed, 70, method="full") for digit in (3, 8) for seed in range(3)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return write_page(summarise([*ROWS, *FULL_ROWS]), [*ROWS, *FULL_ROWS], folder)


def test_it_is_strict_html_without_anything_from_elsewhere(page):
    text = page.read_text()
    html5lib.HTMLParser(strict=True).parse(text)
    assert not re.search(r'(src|href)="(?!data:|#|\.\./|[\w-]+\.)', text)
    assert "<script" not in text
    assert ' style="' not in text


def test_every_number_is_that_of_the_answer(page):
    found = Summary.model_validate_json((page.parent / "answer.json").read_text())
    assert found == summarise([*ROWS, *FULL_ROWS])
    text = page.read_text()
    for cell in found.cells:
        assert f"{cell.value:.1f} ({cell.change:+.1f})".replace("-", "−") in text
    for one in found.enough:
        assert f"{one.enough} is enough".capitalize() in text
    with (page.parent / "variants.csv").open() as file:
        lines = {line["variant"]: line for line in csv.DictReader(file)}
    for one in found.variants:
        assert float(lines[one.name]["errors"]) == one.after["errors"].mean
        assert float(lines[one.name]["threshold_false_alarms"]) == one.threshold["false_alarms"].mean


def test_the_same_answer_is_the_same_bytes(page, tmp_path):
    write_page(summarise([*ROWS, *FULL_ROWS]), [*ROWS, *FULL_ROWS], tmp_path)
    ours, theirs = snapshot(tmp_path / PAGE), snapshot(page.parent)
    assert ours == theirs
    assert {"by-setting.png", "by-setting.svg", "trade.png", "index.html"} < ours.keys()
    assert json.loads(ours["manifest.json"])["files"].keys() == ours.keys() - {"manifest.json"}


def test_the_plot_has_a_point_for_every_adapter_and_a_line_for_all_weights():
    found = summarise([*ROWS, *FULL_ROWS])
    axes = plot_by_setting(found).figure.axes[0]
    (container,) = axes.containers
    heights = list(container.lines[0].get_ydata())
    assert heights == [one.after["errors"].mean for one in found.variants[:-1]]
    flat = [list(line.get_ydata()) for line in axes.lines if line.get_label() == "all weights"]
    assert flat == [[found.variants[-1].after["errors"].mean] * 2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "8"]
