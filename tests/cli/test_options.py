"""Options that are no settings, and the request they become."""

from pathlib import Path

import pytest

from lora_mnist.cli import options as o
from lora_mnist.errors import UsageError
from lora_mnist.settings.request import Applied, Request


def test_a_request_joins_the_tables_of_its_groups():
    request = o.request_of(
        o.Place(Path("here")),
        o.Machine(data=Path("there"), device="cpu", threads=2),
        o.Output(quiet=True),
        o.Recipe(config="smoke", seed=4, force=True),
        o.Repair(steps=5).settings(),
        o.given("model", hidden=[3]),
        o.Augmentation(shift=1).settings(),
    )
    assert request == Request(
        run=Path("here"),
        data=Path("there"),
        config="smoke",
        options={"seed": 4, "finetune": {"steps": 5, "shift": 1}, "model": {"hidden": [3]}},
        device="cpu",
        threads=2,
        force=True,
        quiet=True,
    )


def test_one_strength_is_for_all_adapters():
    assert o.Adapters(["a", "b", "a"], [0.5]).applied() == [Applied("a", 0.5), Applied("b", 0.5)]
    assert o.Adapters(["a", "b"]).applied() == [Applied("a"), Applied("b")]
    assert o.Adapters(["a", "b"], [0.5, 2.0]).applied() == [Applied("a", 0.5), Applied("b", 2.0)]
    assert o.Adapters().applied() == []


@pytest.mark.parametrize("adapters", [o.Adapters(strength=[1.0]), o.Adapters(["a"], [1.0, 2.0])])
def test_strengths_without_an_adapter_each_are_refused(adapters):
    with pytest.raises(UsageError):
        adapters.applied()
