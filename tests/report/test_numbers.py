"""The numbers of the report, against what the stages stored and against scipy and scikit-learn."""

import json
import shutil
import subprocess
import sys

import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from lora_mnist.errors import RunError
from lora_mnist.pipeline import finetune as tuning
from lora_mnist.pipeline import stages
from lora_mnist.pipeline.workspace import open_workspace
from lora_mnist.report.numbers import DOUBTFUL, summarise_run
from lora_mnist.runs.rundir import Run
from lora_mnist.settings.request import Applied, Request

from ..conftest import SMOKE


@pytest.fixture(scope="module")
def facts(finished_run):
    """The first section of the summary, and from the files alone: labels and predictions on test, and the digit."""
    run = Run(finished_run)
    place = run.adapter(run.adapter_names()[0])
    labels = open_workspace(Request(run=finished_run)).labels["test"].numpy()
    predicted = [run.logits(where)["test"].argmax(1).numpy() for where in (None, place)]
    section = summarise_run(run)["adapters"][0]
    return section, labels, predicted, section["digit"]


def test_counts_intervals_and_p_agree_with_scipy(facts):
    section, labels, (before, after), digit = facts
    good = {
        "missed": (labels == digit, before == digit, after == digit),
        "claimed": (labels != digit, before != digit, after != digit),
        "errors": (labels == labels, before == labels, after == labels),
    }
    for key, (of, right_before, right_after) in good.items():
        row = section["headline"][key]
        for when, right in (("before", right_before), ("after", right_after)):
            wrong, total = int((of & ~right).sum()), int(of.sum())
            interval = binomtest(wrong, total).proportion_ci(0.95, "wilson")
            assert (row[when]["count"], row[when]["of"]) == (wrong, total)
            assert (row[when]["low"], row[when]["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
        fixed, broken = int((of & ~right_before & right_after).sum()), int((of & right_before & ~right_after).sum())
        assert (row["fixed"], row["broken"], row["change"]) == (fixed, broken, broken - fixed)
        assert row["p"] == pytest.approx(binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1)


def test_confusion_and_flows_agree_with_scikit_learn(facts):
    section, labels, (before, after), _ = facts
    matrices = [confusion_matrix(labels, predicted, labels=range(10)) for predicted in (before, after)]
    assert [section["confusion"][when] for when in ("before", "after")] == [matrix.tolist() for matrix in matrices]
    change = matrices[1] - matrices[0]
    changes = [abs(flow["change"]) for flow in section["flows"]]
    assert changes == sorted(changes, reverse=True)
    for flow in section["flows"]:
        assert flow["true"] != flow["predicted"]
        assert flow["change"] == change[flow["true"], flow["predicted"]]
    off_diagonal = change.copy()
    off_diagonal[range(10), range(10)] = 0
    assert changes[0] == abs(off_diagonal).max()


def test_the_dial_is_what_evaluate_says_at_that_strength(finished_run, facts):
    section, digit = facts[0], facts[3]
    dial = section["dial"]
    for strength in (0.25, 1.25, dial["recommended"]):
        point = next(one for one in dial["points"] if one["strength"] == strength)
        split = stages.evaluate(Request(run=finished_run), [Applied(section["name"], strength)])["splits"]
        val = split[dial["measured_on"]]
        others = [d for d in range(10) if d != digit]
        sizes = [sum(row) for row in val["confusion"]]
        assert point["accuracy"] == pytest.approx(val["accuracy"])
        assert point["recall"] == pytest.approx(1 - val["wrong"][digit] / sizes[digit])
        missing = sum(val["wrong"][d] for d in others) / sum(sizes[d] for d in others)
        assert point["recall_of_others"] == pytest.approx(1 - missing)
    assert dial["test"]["errors"] == sum(split["test"]["wrong"])


def test_the_trade_starts_at_the_base_and_passes_through_adapter_and_threshold(facts):
    section = facts[0]
    head, trade = section["headline"], section["trade"]
    start = {key: head[key]["before"]["count"] for key in head}
    for curve in trade.values():
        assert {key: curve[0][key] for key in head} == start
    (at_one,) = [point for point in trade["strength"] if point["strength"] == 1]
    assert {key: at_one[key] for key in head} == {key: head[key]["after"]["count"] for key in head}
    shift = section["threshold"]["shift"]
    (chosen,) = [point for point in trade["threshold"] if point["shift"] == pytest.approx(shift or 1.0)]
    if shift:
        assert {key: chosen[key] for key in head} == {key: section["threshold"][key] for key in head}


def test_yardsticks_are_the_twin_and_what_was_trained_whole_on_the_same_digit(run_copy):
    options = {"digit": 3, "name": "three"}
    twin = tuning.finetune(Request(run=run_copy, options={"finetune": options}), twin=True)["twin"]["splits"]["test"]
    full = tuning.finetune_full(Request(run=run_copy, options={"finetune": {"digit": 3, "steps": 5}}))
    tuning.finetune_full(Request(run=run_copy, options={"finetune": {"digit": 4, "steps": 5}}))
    summary = summarise_run(Run(run_copy))
    rows = {row["method"]: row for row in summary["adapters"][0]["yardsticks"]}
    assert rows.keys() == {"twin", "full"}
    assert rows["twin"]["errors"] == twin["errors"]
    assert rows["full"]["errors"] == full["comparison"]["test"]["after"]["errors"]
    assert [line["name"] for line in summary["side_by_side"]][1:] == ["three", "digit3-full", "digit4-full"]


def test_an_adapter_of_another_base_is_refused_by_name(run_copy, adapter):
    stages.pretrain(Request(run=run_copy.with_name("other"), config="smoke", options={**SMOKE, "seed": 4}))
    shutil.copytree(adapter, run_copy.with_name("other") / "adapters" / adapter.name)
    with pytest.raises(RunError, match=adapter.name):
        summarise_run(Run(run_copy.with_name("other")))


def test_doubtful_labels_are_marked_on_mnist_only(run_copy, monkeypatch):
    record = Run(run_copy).record()

    def first() -> dict:
        return summarise_run(Run(run_copy))["adapters"][0]["examples"][0]

    monkeypatch.setitem(DOUBTFUL, first()["index"], 2)
    assert first()["agreed"] is None
    record["dataset"]["name"] = "mnist"
    monkeypatch.setattr(Run, "record", lambda run: record)
    assert first()["agreed"] == 2


def test_it_is_made_without_torch(run_copy):
    code = (
        "import sys, json; from pathlib import Path\n"
        "from lora_mnist.runs.rundir import Run; from lora_mnist.report.page import write_report\n"
        f"write_report(Path({str(run_copy)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_it_is_json(finished_run):
    assert json.loads(json.dumps(summarise_run(Run(finished_run)), allow_nan=False))
