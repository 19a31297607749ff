"""An adapted layer in a state dict: the base's tensors go by the base's names."""

import copy

import pytest
import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora import LoRAConfig, LoRALinear, base_tensors, inject, updates_of
from lora_mnist.training.model import MLP

from ..models import LAYERS, adapted, add, config


def test_a_state_dict_has_the_names_of_the_base_and_those_of_the_adapters():
    model, base = adapted("a")
    found = model.state_dict()
    added = {f"{layer}.updates.a.{part}" for layer in LAYERS for part in ("lora_A", "lora_B")}
    assert set(found) == set(base.state_dict()) | added
    assert [key for key in found if key not in added] == list(base.state_dict())  # in their order
    assert found["linear1.weight"].data_ptr() == model.linear1.base.weight.data_ptr()


@pytest.mark.parametrize("assign", [False, True])
def test_the_state_of_a_base_loads_into_an_adapted_model(assign):
    model, _ = adapted("a")
    other = MLP((12, 11))
    before = {name: u.lora_B.clone() for name, u in updates_of(model, "a").items()}
    lacking = model.load_state_dict(copy.deepcopy(other.state_dict()), strict=False, assign=assign)
    assert lacking.unexpected_keys == []
    assert all(".updates.a." in key for key in lacking.missing_keys)
    assert all(torch.equal(base_tensors(model)[name], tensor) for name, tensor in other.state_dict().items())
    assert all(torch.equal(u.lora_B, before[name]) for name, u in updates_of(model, "a").items())


def test_strictly_the_adapters_that_are_not_in_it_are_named():
    model, base = adapted("a")
    with pytest.raises(RuntimeError, match=r"Missing key.*linear1\.updates\.a\.lora_A"):
        model.load_state_dict(base.state_dict())


def test_what_the_parameters_are_called_loads_as_well():
    model, _ = adapted("a")
    other, _ = adapted("a", rank=3)
    nn.init.ones_(other.linear1.base.weight)
    model.load_state_dict(dict(other.named_parameters()))
    assert torch.equal(model.linear1.base.weight, torch.ones(12, 784))


class Named(nn.Linear):
    """A linear layer with a child that is called as a wrapper's."""

    def __init__(self):
        super().__init__(4, 3)
        self.base = nn.Linear(2, 2)


def test_a_layer_alone_and_one_with_a_child_called_base():
    torch.manual_seed(0)
    for make in (lambda: LoRALinear(nn.Linear(4, 3)), lambda: LoRALinear(Named())):
        layer, other = make(), make()
        for one in (layer, other):
            one.add("a", config(rank=2))
        other.load_state_dict(layer.state_dict())
        assert all(torch.equal(p, q) for p, q in zip(layer.parameters(), other.parameters(), strict=True))


def test_two_adapters_are_told_apart():
    model, _ = adapted("a")
    add(model, "b", config(rank=2))
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", [3, None, LoRAConfig(rank=2)])
def test_a_name_that_is_no_string_is_refused(name):
    with pytest.raises(LoRAError, match="name is a string, not"):
        inject(MLP((12, 11)), name, config())
