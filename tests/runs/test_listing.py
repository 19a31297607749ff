import json

from lora_mnist.pipeline import finetune as tuning
from lora_mnist.runs.listing import count_parameters, list_adapters
from lora_mnist.settings.request import Request


def test_adapters_are_listed_with_what_they_did(run_copy, adapter):
    tuning.finetune_full(Request(run=run_copy, options={"finetune": {"digit": 3}}))
    document = list_adapters(run_copy)
    first, full = document["adapters"]
    stored = json.loads((adapter / "analysis.json").read_text())["splits"]["test"]
    assert (first["name"], first["rank"], first["proof"]) == (adapter.name, 2, True)
    assert (first["before"], first["after"]) == (stored["before"], stored["after"])
    assert first["parameters"] == 2 * (784 + 24 + 24 + 16 + 16 + 10)
    assert first["bytes"] == (adapter / "adapter_model.safetensors").stat().st_size
    assert (full["name"], full["method"], full["rank"], full["proof"]) == ("digit3-full", "full", None, None)


def test_a_run_without_adapters_lists_none(run_copy, adapter):
    import shutil

    shutil.rmtree(adapter)
    assert list_adapters(run_copy)["adapters"] == []


def test_parameters_of_the_runs_network(finished_run):
    table = count_parameters(finished_run, "1,2")
    assert table["full"] == 784 * 24 + 24 + 24 * 16 + 16 + 16 * 10 + 10
    assert [row["lora"] for row in table["ranks"]] == [874, 1748]
