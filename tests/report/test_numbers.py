"""The numbers of the report, against what the stages stored and against scipy and scikit-learn."""

import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from lora_mnist.datasets.mnist import DOUBTFUL
from lora_mnist.errors import AlteredError, RunError
from lora_mnist.evaluation.results import COUNTS
from lora_mnist.pipeline import Applied, evaluate, finetune, finetune_full, pretrain
from lora_mnist.report.document import Report, WrongImage
from lora_mnist.report.numbers import report_of
from lora_mnist.runs.atomic import to_json
from lora_mnist.runs.run import Run

from ..conftest import smoke, workspace


@pytest.fixture(scope="module")
def facts(finished_run):
    """The first section of the report, and from the files alone: labels and predictions on test, and the digit."""
    run = Run(finished_run)
    labels = workspace(finished_run).labels["test"].numpy()
    predicted = [saved.logits()["test"].argmax(1).numpy() for saved in (run.base, *run.adapters())]
    section = report_of(run).adapters[0]
    return section, labels, predicted, section.digit


def test_counts_intervals_and_p_agree_with_scipy(facts):
    section, labels, (before, after), digit = facts
    good = {
        "missed": (labels == digit, before == digit, after == digit),
        "false_alarms": (labels != digit, before != digit, after != digit),
        "errors": (labels == labels, before == labels, after == labels),
    }
    for key, (of, right_before, right_after) in good.items():
        row = getattr(section.headline, key)
        for share, right in ((row.before, right_before), (row.after, right_after)):
            wrong, total = int((of & ~right).sum()), int(of.sum())
            interval = binomtest(wrong, total).proportion_ci(0.95, "wilson")
            assert (share.count, share.of) == (wrong, total)
            assert (share.low, share.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        fixed, broken = int((of & ~right_before & right_after).sum()), int((of & right_before & ~right_after).sum())
        assert (row.fixed, row.broken, row.change) == (fixed, broken, broken - fixed)
        assert row.p == pytest.approx(binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1)


def test_confusion_and_flows_agree_with_scikit_learn(facts):
    section, labels, (before, after), _ = facts
    matrices = [confusion_matrix(labels, predicted, labels=range(10)) for predicted in (before, after)]
    stored = (section.confusion.before, section.confusion.after)
    assert [np.array(matrix).tolist() for matrix in stored] == [matrix.tolist() for matrix in matrices]
    changes = [abs(flow.change) for flow in section.flows]
    assert changes == sorted(changes, reverse=True)
    found = {(flow.true, flow.predicted): (flow.change, pytest.approx(flow.p)) for flow in section.flows}
    expected = {}
    for true, taken in itertools.permutations(range(10), 2):  # at 5 %, corrected for 90 pairs
        of = labels == true
        came = int((of & (before != taken) & (after == taken)).sum())
        went = int((of & (before == taken) & (after != taken)).sum())
        p = binomtest(came, came + went).pvalue if came + went else 1
        if p <= 0.05 / 90:
            expected[true, taken] = (came - went, p)
    assert found == expected


def test_the_change_of_every_digit_has_an_interval_and_a_test(facts):
    section, labels, (before, after), _ = facts
    for row in section.digits:
        of = labels == row.digit
        fixed = int((of & (before != labels) & (after == labels)).sum())
        broken = int((of & (before == labels) & (after != labels)).sum())
        assert (row.fixed, row.broken, row.net) == (fixed, broken, broken - fixed)
        assert row.p == pytest.approx(binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1)
        assert row.low <= row.net / row.images <= row.high
        assert row.is_chance == (row.low <= 0 <= row.high)


def test_the_dial_is_what_evaluate_says_at_that_strength(finished_run, facts):
    section, digit = facts[0], facts[3]
    strength_curve = section.strength_curve
    for strength in (0.25, 1.25, strength_curve.recommended):
        point = next(one for one in strength_curve.points if one.strength == strength)
        splits = evaluate(workspace(finished_run), [Applied(section.name, strength)]).splits
        val = splits[strength_curve.measured_on]
        others = [d for d in range(10) if d != digit]
        sizes = [sum(row) for row in val.confusion]
        assert point.accuracy == pytest.approx(val.accuracy)
        assert point.recall == pytest.approx(1 - val.wrong[digit] / sizes[digit])
        missing = sum(val.wrong[d] for d in others) / sum(sizes[d] for d in others)
        assert point.recall_of_others == pytest.approx(1 - missing)
    assert strength_curve.test.errors == sum(splits["test"].wrong)


def test_the_trade_starts_at_the_base_and_passes_through_adapter_and_threshold(facts):
    section = facts[0]
    head, trade = section.headline, section.trade
    assert trade.threshold[0].numbers == trade.strength[0].numbers == head.before.numbers
    assert head.before.numbers == tuple(getattr(head, key).before.count for key in COUNTS)
    (at_one,) = [point for point in trade.strength if point.strength == 1]
    assert at_one.numbers == head.after.numbers
    shift = section.threshold.shift
    (chosen,) = [point for point in trade.threshold if point.shift == pytest.approx(shift or 1.0)]
    if shift:
        assert chosen.numbers == section.threshold.numbers


def test_yardsticks_are_the_control_and_what_was_trained_whole_on_the_same_digit(run_copy):
    beside = finetune(workspace(run_copy, digit=3, name="three"), control=True).analysis.control
    control = beside.splits["test"]
    full = finetune_full(workspace(run_copy, digit=3, steps=5))
    finetune_full(workspace(run_copy, digit=4, steps=5))
    report = report_of(Run(run_copy))
    rows = {row.method: row for row in report.adapters[0].yardsticks}
    assert rows.keys() == {"control", "control and threshold", "full"}
    assert rows["control"].numbers == control.numbers
    assert rows["control and threshold"].numbers == beside.threshold.splits["test"].numbers
    assert rows["full"].numbers == full.analysis.splits["test"].after.numbers
    assert [line.name for line in report.side_by_side][1:] == ["three", "digit3-full", "digit4-full"]
    assert [checkpoint.name for checkpoint in report.checkpoints] == ["digit3-full", "digit4-full"]


def test_an_adapter_of_another_base_is_refused_by_name(run_copy, adapter):
    other = run_copy.with_name("other")
    pretrain(smoke(other, seed=4))
    shutil.copytree(adapter, other / "adapters" / adapter.name)
    with pytest.raises(RunError, match=adapter.name):
        report_of(Run(other))


def test_a_checkpoint_among_the_adapters_is_refused_by_name(run_copy):
    finetune_full(workspace(run_copy, digit=3, steps=5))
    shutil.copytree(run_copy / "checkpoints" / "digit3-full", run_copy / "adapters" / "digit3-full")
    with pytest.raises(AlteredError, match="digit3-full"):
        report_of(Run(run_copy))


def test_doubtful_labels_are_marked_on_mnist_only(run_copy, monkeypatch):
    def first() -> WrongImage:
        return report_of(Run(run_copy)).adapters[0].examples[0]

    monkeypatch.setitem(DOUBTFUL, first().index, 2)
    assert first().agreed is None
    record = Run(run_copy).record
    as_mnist = record.dataset.model_copy(update={"name": "mnist"})
    monkeypatch.setattr(Run, "record", record.model_copy(update={"dataset": as_mnist}))
    assert first().agreed == 2


def test_it_is_made_without_torch(run_copy):
    code = (
        "import sys, json; from pathlib import Path\n"
        "from lora_mnist.runs.run import Run; from lora_mnist.report.page import write_report\n"
        f"write_report(Run(Path({str(run_copy)!r}))); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_it_is_json(finished_run):
    report = report_of(Run(finished_run))
    assert Report.model_validate_json(to_json(report.model_dump(mode="json"))) == report
