import json

import pytest

from lora_mnist.errors import RunError
from lora_mnist.pipeline import finetune_full
from lora_mnist.runs.listing import count_parameters, list_adapters
from lora_mnist.runs.run import Run

from ..conftest import workspace


def test_adapters_are_listed_with_what_they_did(run_copy, adapter):
    finetune_full(workspace(run_copy, digit=3))
    first, full = list_adapters(Run(run_copy)).adapters
    stored = json.loads((adapter / "analysis.json").read_text())["splits"]["test"]
    assert (first.name, first.rank, first.proof) == (adapter.name, 2, True)
    assert (first.before.model_dump(), first.after.model_dump()) == (stored["before"], stored["after"])
    assert first.parameters == 2 * (784 + 24 + 24 + 16 + 16 + 10)
    assert first.bytes == (adapter / "adapter_model.safetensors").stat().st_size
    assert (full.name, full.method, full.rank, full.proof) == ("digit3-full", "full", None, None)


def test_a_checkpoint_that_lost_its_record_is_missed(run_copy):
    finetune_full(workspace(run_copy, digit=3))
    (run_copy / "checkpoints" / "digit3-full" / "finetune.json").unlink()
    with pytest.raises(RunError, match=r"digit3-full.finetune\.json"):
        list_adapters(Run(run_copy))


def test_parameters_of_the_runs_network(finished_run):
    table = count_parameters(Run(finished_run), "1,2")
    assert table.full == 784 * 24 + 24 + 24 * 16 + 16 + 16 * 10 + 10
    assert [row.lora for row in table.ranks] == [874, 1748]
