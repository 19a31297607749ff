"""The rows of the page and of the CSV files, against the stored logits, by scipy and scikit-learn."""

import csv
import itertools
import json
import shutil

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix
from statsmodels.stats.multitest import multipletests

from lora_mnist.datasets.mnist import DOUBTFUL
from lora_mnist.errors import AlteredError, RunError
from lora_mnist.pipeline import Applied, evaluate, finetune_full, pretrain
from lora_mnist.report import tables
from lora_mnist.report.page import write_report
from lora_mnist.report.tables import AdapterResults, read_adapter
from lora_mnist.runs.listing import documents_of
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import RunDocuments

from ..conftest import printed_by, smoke, workspace


def newest(path) -> AdapterResults:
    """What the report reads of the newest adapter."""
    run = Run(path)
    documents = documents_of(run)
    return read_adapter(run, documents.adapters[0], documents.checkpoints)


def test_the_commands_say_where_mnist_lay(finished_run):
    documents = documents_of(Run(finished_run))
    provenance = documents.base.provenance.model_copy(update={"data": "/my data"})
    base = documents.base.model_copy(update={"provenance": provenance})
    first, *others = tables.commands(documents.model_copy(update={"base": base}))
    assert first.endswith(" --data '/my data'")
    assert not any("--data" in line for line in others)  # the new run remembers it


@pytest.fixture(scope="module")
def facts(finished_run):
    """What the report reads of the one adapter, and from the files alone: labels and predictions on test."""
    run = Run(finished_run)
    labels = workspace(finished_run).labels["test"].numpy()
    predicted = [saved.logits()["test"].argmax(1).numpy() for saved in (run.base, *run.adapters())]
    return newest(finished_run), labels, predicted


def mcnemar_p(fixed: int, broken: int):
    return pytest.approx(binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1)


def test_the_change_of_every_digit_has_an_interval_and_a_test(facts):
    adapter, labels, (before, after) = facts
    rows = tables.digit_rows(adapter)
    alone = [mcnemar_p(row["fixed"], row["broken"]).expected for row in rows]
    assert [row["p"] for row in rows] == pytest.approx(multipletests(alone, method="holm")[1])
    for row, p in zip(rows, alone, strict=True):
        of = labels == row["digit"]
        fixed = int((of & (before != labels) & (after == labels)).sum())
        broken = int((of & (before == labels) & (after != labels)).sum())
        assert (row["fixed"], row["broken"], row["net"]) == (fixed, broken, broken - fixed)
        assert row["low"] <= row["net"] / row["images"] <= row["high"]
        assert (p > 0.005) == (row["low"] <= 0 <= row["high"])


def test_confusion_agrees_with_scikit_learn(facts):
    adapter, labels, (before, after) = facts
    for stored, predicted in ((adapter.before, before), (adapter.after, after)):
        assert np.array(stored.confusion).tolist() == confusion_matrix(labels, predicted, labels=range(10)).tolist()
    expected = {}
    for true, taken in itertools.permutations(range(10), 2):  # at 5 %, corrected for 90 pairs
        of = labels == true
        came = int((of & (before != taken) & (after == taken)).sum())
        went = int((of & (before == taken) & (after != taken)).sum())
        if came + went and binomtest(came, came + went).pvalue <= 0.05 / 90:
            expected[true, taken] = came - went
    rows = tables.confusion_changes(adapter.comparison)
    assert {(row["true"], row["predicted"]): row["change"] for row in rows} == expected


def test_the_strength_curve_is_what_evaluate_says_at_that_strength(finished_run, facts):
    adapter, curve = facts[0], facts[0].curve
    for strength in (0.25, 1.25, curve.recommended):
        row = next(one for one in tables.strength_rows(adapter) if one["strength"] == strength)
        splits = evaluate(workspace(finished_run), [Applied(adapter.name, strength)]).splits
        val, digit = splits[curve.measured_on], adapter.digit
        sizes = [sum(counts) for counts in val.confusion]
        others = [d for d in range(10) if d != digit]
        missing = sum(val.wrong[d] for d in others) / sum(sizes[d] for d in others)
        assert row["accuracy"] == pytest.approx(val.accuracy)
        assert row["recall"] == pytest.approx(1 - val.wrong[digit] / sizes[digit])
        assert row["recall_of_others"] == pytest.approx(1 - missing)
    assert adapter.at_recommended.errors == sum(splits["test"].wrong)


@pytest.fixture(scope="module")
def page(finished_run, tmp_path_factory):
    """Of a copy of the finished run, in its folder `report`."""
    return write_report(Run(shutil.copytree(finished_run, tmp_path_factory.mktemp("page") / "run")))


def test_the_csv_files_hold_those_rows(page):
    (adapter,), known = Run(page.parents[1]).adapter_names(), newest(page.parents[1])

    def table(name):
        with page.with_name(f"{adapter}-{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    for name, rows in (("digits", tables.digit_rows(known)), ("strength_curve", tables.strength_rows(known))):
        assert [{key: float(value) for key, value in row.items()} for row in table(name)] == rows
    after = np.zeros((10, 10), int)
    for cell in table("confusion"):
        after[int(cell["true"]), int(cell["predicted"])] = int(cell["after"])
    assert tuple(map(tuple, after.tolist())) == known.after.confusion
    trade = [tuple(int(row[key]) for key in ("missed", "false_alarms", "errors")) for row in table("trade")]
    points = (*known.stored.analysis.threshold.curve, *known.curve.splits["test"])
    assert trade == [point.numbers for point in points]


def test_images_are_counted_as_the_analysis_counts_them(facts):
    adapter, labels, (before, after) = facts
    for one in adapter.images.wrong:
        assert (one.before.prediction, one.after.prediction) == (before[one.index], after[one.index])
        assert one.label == labels[one.index]
    kinds = [one.kind for one in adapter.images.wrong]
    pair = adapter.comparison.pairs.errors
    assert (kinds.count("fixed"), kinds.count("broken")) == (pair.fixed, pair.broken)
    stored = adapter.stored.analysis.examples
    assert [one.index for one in adapter.images.examples] == [one.index for one in stored]


def test_doubtful_labels_are_marked_on_mnist_only(run_copy, monkeypatch):
    first = newest(run_copy).images.examples[0]
    monkeypatch.setitem(DOUBTFUL, first.index, 2)
    assert newest(run_copy).images.examples[0].agreed is None
    record = Run(run_copy).record
    as_mnist = record.dataset.model_copy(update={"name": "mnist"})
    monkeypatch.setattr(Run, "record", record.model_copy(update={"dataset": as_mnist}))
    assert newest(run_copy).images.examples[0].agreed == 2


def test_report_json_holds_the_documents_of_the_run(page):
    content, run = page.with_name("report.json").read_text(), Run(page.parents[1])
    (adapter,) = run.adapter_names()

    def stored(path):
        return json.loads((run.path / path).read_text())

    found = json.loads(content)
    assert found["run"] == stored("run.json")
    assert found["base"]["evaluation"] == stored("base/evaluation.json")
    (one,) = found["adapters"]
    for name in ("finetune", "evaluation", "analysis", "provenance"):
        assert one[name] == stored(f"adapters/{adapter}/{name}.json")
    assert one["sha256"] == run.adapter(adapter).hashes["adapter_model.safetensors"]
    assert RunDocuments.model_validate_json(content) == documents_of(run)


def test_what_does_not_belong_to_the_run_is_refused_by_name(run_copy, adapter):
    other = run_copy.with_name("other")
    pretrain(smoke(other, seed=4))
    shutil.copytree(adapter, other / "adapters" / adapter.name)
    with pytest.raises(RunError, match=adapter.name):
        write_report(Run(other))
    finetune_full(workspace(run_copy, digit=3, steps=5))
    shutil.copytree(run_copy / "checkpoints" / "digit3-full", run_copy / "adapters" / "digit3-full")
    with pytest.raises(AlteredError, match="digit3-full"):
        write_report(Run(run_copy))


def test_it_is_made_without_torch(run_copy):
    code = (
        "import sys; from pathlib import Path\n"
        "from lora_mnist.runs.run import Run; from lora_mnist.report.page import write_report\n"
        f"write_report(Run(Path({str(run_copy)!r}))); print('torch' in sys.modules)"
    )
    assert printed_by(code) == "False\n"
