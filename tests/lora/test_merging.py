"""Merging is exact, explicit and undone to the last byte, where adding and subtracting is not."""

import copy
import math

import pytest
import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora import LoRAConfig, is_merged, merge, merged_copy, set_strength, switch, unmerge, updates_of
from lora_mnist.lora.fingerprint import changed_bytes, compute_fingerprint
from lora_mnist.lora.model import base_tensors

from ..conftest import relative
from ..models import LAYERS, adapted, adapted_layer, add, config

IMAGES = torch.randn(6, 28, 28, generator=torch.Generator().manual_seed(0))


def test_a_thousand_cycles_leave_every_byte_of_the_base():
    model, base = adapted("a")
    add(model, "b", config(rank=2), seed=3, std=1e3)  # a thousand times as large as the weights
    for update in updates_of(model, "a").values():
        nn.init.normal_(update.lora_B.data, std=1e3)
    before = {name: tensor.clone() for name, tensor in base_tensors(model).items()}
    for cycle in range(1000):
        switch(model, {"a": 1.0 + cycle, "b": -0.3})
        merge(model)
        unmerge(model)
    assert changed_bytes(before, base_tensors(model)) == {}
    W, change = before["linear1.weight"], updates_of(model, "a")["linear1"].weight().detach()
    assert not torch.equal(W + change - change, W)  # adding and subtracting, as loralib and PEFT do, fails at this
    assert compute_fingerprint(base_tensors(model)) == compute_fingerprint(base.state_dict())


@pytest.mark.parametrize("autocast", [False, True])
def test_a_merged_weight_is_the_formula_bit_for_bit(autocast):
    model, base = adapted("a")
    set_strength(model, "a", 0.7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        merge(model)
    for path in LAYERS:
        update, weight = updates_of(model, "a")[path], base.get_submodule(path).weight
        by_hand = weight + (5 / 3 * 0.7) * (update.lora_B @ update.lora_A)
        assert torch.equal(model.get_submodule(path).merged, by_hand)
        assert not model.get_submodule(path).merged.requires_grad


def test_merging_twice_is_merging_once_and_eval_and_train_neither_merge_nor_unmerge():
    model, _ = adapted("a")
    assert not is_merged(model.train().eval())
    merge(model)
    once = model.linear2.merged.clone()
    merge(model)
    assert torch.equal(model.linear2.merged, once)
    assert is_merged(model.train().eval())
    unmerge(model)
    assert not is_merged(model)
    unmerge(model)  # nothing to undo, nothing done


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_would_not_be_finite_are_refused_and_nothing_is_merged(value):
    model, _ = adapted("a")
    with torch.no_grad():
        updates_of(model, "a")["linear3"].lora_B[0, 0] = value
    before = compute_fingerprint(base_tensors(model))
    with pytest.raises(LoRAError, match=r"linear3\.weight"):
        merge(model)
    assert not is_merged(model)
    assert compute_fingerprint(base_tensors(model)) == before


def test_what_is_merged_is_the_base_as_it_was_then():
    model, _ = adapted("a")
    add(model, "b", config(targets=("linear1",)))
    switch(model, {"b": 1.0})  # linear2 carries no adapter that is on
    merge(model)
    before = model(IMAGES)
    with torch.no_grad():
        for name in LAYERS:
            model.get_submodule(name).weight.add_(1)
    assert torch.equal(model(IMAGES), before)


def test_a_merged_model_has_the_same_state_and_outputs():
    model, _ = adapted("a")
    before, factored = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model(IMAGES)
    merge(model)
    assert changed_bytes(before, model.state_dict()) == {}
    assert relative(model(IMAGES), factored) < 1e-5
    assert copy.deepcopy(model).double().linear1.merged.dtype == torch.float64


def test_a_merged_copy_is_plain_and_shares_nothing():
    model, base = adapted("a")
    plain = merged_copy(model)
    assert [type(layer) for layer in plain.children()] == [type(layer) for layer in base.children()]
    assert plain.state_dict().keys() == base.state_dict().keys()
    merge(model)
    assert torch.equal(plain(IMAGES), model(IMAGES))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    unmerge(model)
    assert compute_fingerprint(base_tensors(model)) == compute_fingerprint(base.state_dict())


def test_a_merged_copy_keeps_shared_layers_shared_and_tied_weights_untouched():
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Sequential(shared), nn.Embedding(6, 6))
    model[2].weight = shared.weight
    embedding = model[2].weight.detach().clone()
    with pytest.warns(UserWarning, match="0 shares its weight with 2, which stays as it is"):
        add(model, "a", LoRAConfig(rank=2, alpha=3.0), std=1)
    plain = merged_copy(model)
    assert plain[0] is plain[1][0]
    assert torch.equal(plain[2].weight, embedding)
    merge(model)
    assert torch.equal(model[2].weight, embedding)


def test_a_merged_copy_of_one_layer():
    layer, _ = adapted_layer()
    assert type(merged_copy(layer)) is nn.Linear
    torch.testing.assert_close(merged_copy(layer)(torch.ones(6)), layer(torch.ones(6)))


def test_a_model_merged_under_inference_mode_can_be_trained_around():
    model, _ = adapted("a")
    with torch.inference_mode():
        merge(model)
    images = IMAGES.clone().requires_grad_(True)
    model(images).sum().backward()
    assert images.grad.any()


def test_a_model_without_adapters_cannot_be_merged():
    for action in (merge, merged_copy):
        with pytest.raises(LoRAError, match="nothing to merge"):
            action(nn.Sequential(nn.Linear(4, 4)))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(kind):
    layer = nn.Linear(6, 4)
    if kind == "weight_norm":
        return nn.utils.parametrizations.weight_norm(layer)
    return nn.utils.parametrize.register_parametrization(layer, kind, Doubled())


@pytest.mark.parametrize("kind", ["weight_norm", "weight", "bias"])
def test_a_merged_copy_of_a_parametrized_layer_is_plain(kind):
    torch.manual_seed(0)
    model, x = nn.Sequential(parametrized(kind)).eval(), torch.randn(3, 6)
    add(model, "a", LoRAConfig(rank=2, alpha=3.0), std=1)
    plain = merged_copy(model)
    assert type(plain[0]) is nn.Linear
    assert set(plain.state_dict()) == {"0.weight", "0.bias"}
    torch.testing.assert_close(plain(x), model(x))
    merge(model)
    assert torch.equal(plain(x), model(x))


class Named(nn.Linear):
    """A subclass that is not made as its parent is."""

    def __init__(self, title):
        super().__init__(5, 4)
        self.title = title


def test_a_merged_copy_keeps_the_class_of_a_layer_and_what_it_carries():
    torch.manual_seed(0)
    model, x = nn.Sequential(Named("first")), torch.randn(3, 5)
    add(model, "a", LoRAConfig(rank=2, alpha=3.0), std=1)
    plain = merged_copy(model)
    assert (type(plain[0]), plain[0].title) == (Named, "first")
    assert plain[0].weight.data_ptr() != model[0].weight.data_ptr()
    assert plain[0].bias.data_ptr() != model[0].bias.data_ptr()
    torch.testing.assert_close(plain(x), model(x))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)], ids=str)
def test_a_merged_layer_is_its_base_with_the_merged_weight_bit_for_bit(autocast, shape):
    layer, _ = adapted_layer()
    by_hand, x = nn.Linear(6, 4), torch.randn(shape)
    by_hand.weight.data, by_hand.bias.data = layer.merged_weight().detach(), layer.bias.detach()
    merge(layer.eval())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = by_hand(x)
        assert torch.equal(layer(x), expected)
        with torch.inference_mode():
            assert torch.equal(layer(x), expected)
    assert expected.dtype == (torch.bfloat16 if autocast else torch.float32)
