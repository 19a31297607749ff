"""A stack against its members: plain autograd over each network by itself."""

import copy

import pytest
import torch
from torch.nn import functional as F

from lora_mnist.errors import LoRAError
from lora_mnist.lora import LoRAConfig, inject, updates_of
from lora_mnist.lora.stacked import StackedLinear, stack, unstack
from lora_mnist.training.model import MLP

from ..conftest import relative
from ..models import LAYERS, add, config


@pytest.fixture
def base():
    torch.manual_seed(0)
    return MLP((30, 20))


def adapted(base, seed, **changes):
    """A network that shares the tensors of `base`, with an adapter that does something."""
    network = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    add(network, "a", config(**changes), seed, std=1)
    return network


def gradients_of(network, rows, labels):
    F.cross_entropy(network(rows), labels, reduction="sum").backward()
    return [parameter.grad for parameter in network.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("targets", [LAYERS, ("linear2",)])
def test_outputs_and_gradients_are_those_of_every_network_by_itself(base, targets):
    networks = [adapted(base, seed, targets=targets) for seed in range(4)]
    rows, labels = torch.randn(4, 5, 784), torch.randint(10, (4, 5))
    stacked = stack(networks, "a")
    together = gradients_of(stacked, rows.flatten(0, 1), labels.flatten())
    outputs = stacked(rows.flatten(0, 1)).view(4, 5, 10)
    for i, network in enumerate(networks):
        assert relative(outputs[i], network(rows[i])) < 1e-5
        for ours, alone in zip(together, gradients_of(network, rows[i], labels[i]), strict=True):
            assert relative(ours[i], alone) < 1e-5


def test_a_and_b_go_in_and_come_back_bit_by_bit(base):
    networks = [adapted(base, seed) for seed in range(3)]
    stacked = stack(networks, "a")
    for name, layer in stacked.named_children():
        assert isinstance(layer, StackedLinear)
        for i, network in enumerate(networks):
            assert torch.equal(layer.lora_A[i], updates_of(network, "a")[name].lora_A)
    with torch.no_grad():
        for layer in stacked.children():
            layer.lora_B.add_(torch.arange(3.0).view(3, 1, 1))
    before = [copy.deepcopy(updates_of(network, "a")) for network in networks]
    unstack(stacked, networks, "a")
    for i, network in enumerate(networks):
        for name, update in updates_of(network, "a").items():
            assert torch.equal(update.lora_B, before[i][name].lora_B + i)


def test_only_the_stack_trains_and_the_base_is_shared(base):
    stacked = stack([adapted(base, 0), adapted(base, 1)], "a")
    assert {name for name, parameter in stacked.named_parameters() if parameter.requires_grad} == {
        f"{layer}.{factor}" for layer in LAYERS for factor in ("lora_A", "lora_B")
    }
    assert stacked.linear1.base.weight.data_ptr() == base.linear1.weight.data_ptr()


def test_what_does_not_fit_is_refused(base):
    first = adapted(base, 0)
    others = [
        adapted(base, 1, rank=2),
        adapted(base, 1, alpha=3.0),
        adapted(base, 1, targets=("linear1",)),
        adapted(MLP((30, 20)), 1),
    ]
    for other in others:
        with pytest.raises(LoRAError, match="same layers, rank, scaling and base"):
            stack([first, other], "a")
    with pytest.raises(LoRAError, match="dropout"):
        stack([adapted(base, 0, dropout=0.1)], "a")
    inject(first, "b", LoRAConfig(LAYERS))
    with pytest.raises(LoRAError, match="the one adapter 'a'"):
        stack([first], "a")
