"""The options that are settings: which tables they become."""

import pytest

from lora_mnist.cli import options as o
from lora_mnist.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        (o.DataChoice().settings(), "data"),
        (o.Network().settings(), "model"),
        (o.Loop().settings("pretrain"), "pretrain"),
        (o.Repair().settings(), "finetune"),
        (o.AdapterShape().settings(), "finetune"),
        (o.Augmentation().settings(), "finetune"),
    ],
)
def test_what_was_left_out_is_no_setting(settings, table):
    assert settings == {table: {}}
    assert o.Recipe().settings() == {}


def test_what_was_given_is_a_table_as_in_a_config():
    assert o.Recipe(config="smoke", seed=0, force=True).settings() == {"seed": 0}
    assert o.DataChoice(dataset="digits").settings() == {"data": {"dataset": "digits"}}
    assert o.Network(hidden="20,10").settings() == {"model": {"hidden": [20, 10]}}
    assert o.Repair(digit="9", alpha=0.0).settings() == {"finetune": {"digit": 9, "alpha": 0.0}}
    assert o.Repair(digit="weakest").settings() == {"finetune": {"digit": "weakest"}}
    assert o.Augmentation(zoom=0.1).settings() == {"finetune": {"zoom": 0.1}}
    shape = o.AdapterShape(rank_pattern=["linear3=2"], alpha_pattern=["a=b=0.5"], rslora=False)
    assert shape.settings() == {
        "finetune": {"rank_pattern": {"linear3": 2}, "alpha_pattern": {"a=b": 0.5}, "rslora": False}
    }


def test_a_loop_is_a_table_of_its_stage_and_may_call_its_rate_otherwise():
    loop = o.Loop(batch_size=8, learning_rate=0.1)
    assert loop.settings("pretrain") == {"pretrain": {"batch_size": 8, "learning_rate": 0.1}}
    whole = loop.settings("finetune", rate="full_learning_rate")
    assert whole == {"finetune": {"batch_size": 8, "full_learning_rate": 0.1}}


@pytest.mark.parametrize(
    ("repair", "shape", "control", "flag"),
    [
        (o.Repair(rank=1), o.AdapterShape(), False, "--rank"),
        (o.Repair(guard="none"), o.AdapterShape(), False, "--guard"),
        (o.Repair(), o.AdapterShape(rslora=False), False, None),
        (o.Repair(), o.AdapterShape(alpha_pattern=["a=1"]), False, "--alpha-pattern"),
        (o.Repair(), o.AdapterShape(), True, "--control"),
        (o.Repair(digit="9", steps=3, focus=0.1, name="x"), o.AdapterShape(targets=[]), False, None),
    ],
)
def test_full_refuses_what_only_an_adapter_has(repair, shape, control, flag):
    if flag is None:
        o.refuse_with_full(repair, shape, control, None)
    else:
        with pytest.raises(UsageError, match=f"^{flag} means nothing"):
            o.refuse_with_full(repair, shape, control, None)
