"""The adapters on the page are those on the disk."""

import shutil
from dataclasses import replace

import pytest

from lora_mnist.errors import RunError
from lora_mnist.pipeline import Request, open_workspace, pretrain
from lora_mnist.play.networks import Networks
from lora_mnist.play.protocol import PredictRequest

from ..conftest import flip_bit, smoke


@pytest.fixture
def networks(run_copy):
    return Networks(open_workspace(Request(run=run_copy)))


def test_a_new_adapter_is_there_when_the_page_asks_again(networks, adapter):
    assert [(one.name, one.summary) for one in networks.info().adapters] == [(adapter.name, "digit 8, rank 2")]
    other = shutil.copytree(adapter, adapter.with_name("taught"))
    info = networks.info()
    assert {one.name for one in info.adapters} == {adapter.name, "taught"}
    assert info.taught == "taught-2"
    both = networks.predict(PredictRequest(index=3, adapters=(adapter.name, "taught"), strength=0.5))
    once = networks.predict(PredictRequest(index=3, adapters=(adapter.name,)))
    assert both.adapted.probabilities == pytest.approx(once.adapted.probabilities, abs=2e-5)  # half of it, twice
    shutil.rmtree(other)
    assert len(networks.info().adapters) == 1


def test_a_damaged_adapter_is_named_and_the_others_stay(networks, adapter):
    flip_bit(shutil.copytree(adapter, adapter.with_name("bad")) / "adapter_model.safetensors")
    info = {one.name: one for one in networks.info().adapters}
    assert info[adapter.name].problem is None
    assert "is not the saved file" in info["bad"].problem
    assert networks.predict(PredictRequest(index=3, adapters=(adapter.name,))).adapted is not None


def test_another_base_is_noticed(networks, run_copy):
    networks.info()
    pretrain(replace(smoke(run_copy, seed=5), force=True))
    with pytest.raises(RunError, match="was replaced by another command"):
        networks.info()
