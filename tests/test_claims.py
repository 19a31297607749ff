"""What the README claims of real MNIST, with one seed each; the programs in benchmarks/ measure more."""

import json

import pytest

from lora_mnist.cli import tables as terminal
from lora_mnist.evaluation.verdict import verdict
from lora_mnist.pipeline import finetune as tuning
from lora_mnist.pipeline import stages
from lora_mnist.pipeline.convert import extract_adapter, merge_adapters
from lora_mnist.report.page import write_report
from lora_mnist.runs.rundir import Run
from lora_mnist.settings.request import Applied, Request

from .conftest import resume


def whole_run(config, mnist, folder):
    request = Request(run=folder, folder=mnist, config=config, options={"data": {"dataset": "mnist"}})
    return resume(request), Run(folder)


@pytest.fixture(scope="module")
def classic(mnist, tmp_path_factory):
    return whole_run("classic", mnist, tmp_path_factory.mktemp("classic"))


@pytest.fixture(scope="module")
def default(mnist, tmp_path_factory):
    return whole_run("default", mnist, tmp_path_factory.mktemp("default"))


def test_classic_has_the_published_parameters_and_accuracy(classic):
    tuned, run = classic
    table = tuned["parameters"]
    assert (table["base"], table["added"], table["total"]) == (2_807_010, 6_794, 2_813_804)
    assert 0.945 <= run.evaluation()["splits"]["test"]["accuracy"] <= 0.972
    assert run.record()["dataset"]["train"] == 60_000


def test_classic_fixes_the_nines_and_the_forgetting_is_plain_to_see(classic):
    tuned, run = classic
    test = tuned["comparison"]["test"]
    assert test["after"]["missed"] < 0.25 * test["before"]["missed"]
    assert test["after"]["errors"] > test["before"]["errors"]
    words = verdict(test, 9, tuned["threshold"]["splits"]["test"])
    assert words.startswith("Fixed one digit and forgot others")
    assert words in write_report(run.path).read_text()


def test_classic_with_lora_off_is_the_base_bit_for_bit(classic):
    proof = classic[0]["proof"]
    assert proof["passed"]
    assert proof["off"] == {"passed": True, "images": 10_000, "images_that_differ": 0}
    assert proof["frozen"]["bytes"] == 4 * 2_807_010


def test_default_repairs_without_ruining(default):
    tuned, run = default
    test = tuned["comparison"]["test"]
    assert run.evaluation()["splits"]["test"]["accuracy"] >= 0.97
    assert tuned["weakest_on_val"]
    assert test["after"]["missed"] <= 0.5 * test["before"]["missed"]
    assert test["after"]["errors"] <= 0.92 * test["before"]["errors"]
    assert tuned["threshold"]["splits"]["test"]["errors"] >= 1.1 * test["after"]["errors"]
    assert verdict(test, tuned["digit"], tuned["threshold"]["splits"]["test"]).startswith("A repair")


def test_rank_1_repairs_too_and_is_guarded(default, mnist):
    request = Request(run=default[1].path, folder=mnist, options={"finetune": {"rank": 1}})
    tuned = tuning.finetune(request)
    assert tuned["kept"]
    assert tuned["comparison"]["test"]["after"]["missed"] < tuned["comparison"]["test"]["before"]["missed"]
    assert tuned["comparison"]["val"]["after"]["errors"] <= tuned["comparison"]["val"]["before"]["errors"]
    assert tuned["parameters"]["added"] == 6_794


def test_full_fine_tuning_extraction_and_merging(default, mnist):
    path = default[1].path
    request = Request(run=path, folder=mnist, options={"finetune": {"steps": 50}})
    full = tuning.finetune_full(request)
    extracted = extract_adapter(Request(run=path, folder=mnist), 8)
    assert extracted["extraction"]["of_checkpoint"]["errors"] == full["comparison"]["test"]["after"]["errors"]
    assert all(0 < layer["energy"] < 1 for layer in extracted["extraction"]["layers"].values())
    merged = merge_adapters(Request(run=path, folder=mnist), [Applied(default[0]["name"])])
    assert merged["largest_difference"] <= 1e-5 * merged["largest_logit"]


def test_both_verify_from_their_files(classic, default, mnist):
    for _, run in (classic, default):
        assert stages.verify(Request(run=run.path, folder=mnist))["passed"]


def test_at_80_columns_the_real_tables_are_whole(default):
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    console.print(terminal.finetuning(default[0]), terminal.evaluation(default[1].evaluation()))
    assert "…" not in console.file.getvalue()
    assert json.dumps(default[0])
