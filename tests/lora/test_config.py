"""What an adapter can be told to be, and what not. Patterns are tested where they find layers, in test_adapters."""

import math
from collections.abc import Sequence
from typing import get_type_hints

import pytest

from lora_mnist.errors import LoRAError
from lora_mnist.lora import LoRAConfig

from ..models import config


@pytest.mark.parametrize(
    "bad",
    [
        {"rank": 0},
        {"rank": True},
        {"rank": 2.0},
        {"alpha": math.nan},
        {"alpha": 0},
        {"dropout": 1.0},
        {"init": "zeros"},
        {"targets": ()},
        {"rank": 10**14},
        {"alpha": 10**400},
        {"rank_pattern": None},
        {"rank_pattern": {"linear1": 0}},
        {"alpha_pattern": {"linear1": math.inf}},
    ],
)
def test_a_config_checks_itself(bad):
    with pytest.raises(LoRAError, match=next(iter(bad)).removesuffix("_pattern")):
        config(**bad)


def test_it_says_what_it_was_given_and_what_there_is():
    with pytest.raises(LoRAError, match=r"`rank` \(=0\) must be"):
        LoRAConfig(rank=0)
    with pytest.raises(LoRAError, match=r"Target 'c' matches no \w+( \w+)*\. The \w+( \w+)* are a, b\."):
        LoRAConfig(("a", "b"), rank_pattern={"c": 2}).of_layers(["a", "b"])


def test_numbers_of_numpy_are_numbers():
    np = pytest.importorskip("numpy")
    assert LoRAConfig(rank=np.int64(4), alpha=np.float64(2)).scaling == 0.5


def test_a_list_of_targets_is_right_for_a_type_checker_too():
    assert get_type_hints(LoRAConfig)["targets"] == Sequence[str]
    assert LoRAConfig(["q_proj"]) == LoRAConfig(("q_proj",))
