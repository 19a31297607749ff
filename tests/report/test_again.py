"""A report that says something else than its run is noticed, whichever of its files it is; an old one is no forgery."""

import json

import pytest

from lora_mnist.pipeline import finetune
from lora_mnist.report import again
from lora_mnist.report.again import check_report
from lora_mnist.report.page import write_report
from lora_mnist.runs.run import Run

from ..conftest import flip_bit, rehash, workspace


@pytest.fixture
def report(run_copy):
    return write_report(Run(run_copy)).parent


def forge(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    rehash(file.parent)


@pytest.mark.parametrize("normalised", [False, True])
def test_an_honest_report_passes(run_copy, normalised):
    write_report(Run(run_copy), normalised)
    assert check_report(Run(run_copy)) == again.ReportFindings()


def test_where_there_is_none_there_is_nothing_to_find(run_copy):
    assert check_report(Run(run_copy)) is None


def test_other_bytes_than_those_saved_are_noticed(run_copy, report):
    flip_bit(report / "base-loss.png")
    (failure,) = check_report(Run(run_copy)).failures
    assert "base-loss.png" in failure


def test_forged_numbers_are_named(run_copy, report):
    document = json.loads((report / "report.json").read_text())
    count = document["adapters"][0]["headline"]["missed"]["after"]["count"]
    document["adapters"][0]["headline"]["missed"]["after"]["count"] = count + 1
    (report / "report.json").write_text(json.dumps(document))
    rehash(report)
    (failure,) = check_report(Run(run_copy)).failures
    assert failure.startswith(f"report.json: `adapters.0.headline.missed.after.count` is {count + 1}")


def test_a_forged_page_and_table_and_config_are_named(run_copy, report, adapter):
    forge(report / "index.html", "How it was made", "How it was forged")
    forge(report / "base-digits.csv", "\n0,", "\n1,")
    forge(report / "base.toml", "seed = ", "seed = 1")
    found = check_report(Run(run_copy)).failures
    assert {failure.split()[0] for failure in found} == {"index.html", "base-digits.csv", "base.toml"}


def test_a_table_that_does_not_belong_is_noticed(run_copy, report):
    (report / "more.csv").write_text("a\n1\n")
    rehash(report)
    assert check_report(Run(run_copy)).failures == ("more.csv does not say what follows from the run",)


def test_a_report_that_is_older_than_the_run_is_said_to_be(run_copy, report):
    finetune(workspace(run_copy, digit=3, name="three"))
    findings = check_report(Run(run_copy))
    assert findings.failures == ()
    assert "older than the run" in findings.notes[0]


def test_a_report_of_another_version_is_not_compared(run_copy, report, monkeypatch):
    monkeypatch.setattr(again, "__version__", "9.9")
    assert check_report(Run(run_copy)).notes
