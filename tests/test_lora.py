"""Compared with W + scaling · B A by hand; alpha ≠ rank, B ≠ 0, layers that are not square."""

import copy
import math

import pytest
import torch
from torch import nn

from lora_mnist.errors import UsageError
from lora_mnist.lora import (
    LoRAConfig,
    LoRALinear,
    adapter_names,
    base_tensors,
    disabled,
    inject,
    match_layers,
    oversized,
    parameter_table,
    set_strength,
    updates_of,
)
from lora_mnist.model import MLP

LAYERS = ("linear1", "linear2", "linear3")


def config(**changes):
    return LoRAConfig(**{"targets": LAYERS, "rank": 3, "alpha": 5.0, **changes})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def adapted(name="a", hidden=(12, 11), **changes):
    """An MLP with an adapter whose B is not 0, and the plain MLP it came from."""
    torch.manual_seed(0)
    base = MLP(hidden)
    model = copy.deepcopy(base)
    for update in inject(model, name, config(**changes), generator()).values():
        nn.init.normal_(update.lora_B.data, std=0.1)
    return model.eval(), base


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 5 / 3), (True, 5 / math.sqrt(3))])
def test_the_factored_forward_is_w_plus_scaling_ba(rslora, scaling):
    model, base = adapted(rslora=rslora)
    by_hand = copy.deepcopy(base)
    for name in LAYERS:
        update, linear = updates_of(model, "a")[name], by_hand.get_submodule(name)
        assert update.lora_A.shape == (3, linear.in_features)
        assert update.lora_B.shape == (linear.out_features, 3)
        linear.weight.data += scaling * update.lora_B.detach() @ update.lora_A.detach()
    images = torch.randn(7, 28, 28)
    logits, expected = model(images), by_hand(images)
    assert float((logits - expected).detach().abs().max()) < 1e-5 * float(expected.detach().abs().max())
    assert not torch.allclose(logits, base(images), rtol=1e-2)


def test_gradients_are_those_of_the_product():
    layer = LoRALinear(nn.Linear(6, 4))
    model = nn.Sequential()
    model.add_module("layer", layer.base)
    update = inject(model, "a", config(targets=("layer",)), generator())["layer"]
    nn.init.normal_(update.lora_B.data)
    x, upstream = torch.randn(5, 6), torch.randn(5, 4)
    (model(x) * upstream).sum().backward()
    of_weight = upstream.T @ x  # gradient of W' in y = x W'ᵀ
    torch.testing.assert_close(update.lora_A.grad, 5 / 3 * update.lora_B.detach().T @ of_weight)
    torch.testing.assert_close(update.lora_B.grad, 5 / 3 * of_weight @ update.lora_A.detach().T)
    assert layer.base.weight.grad is None


def test_a_new_adapter_changes_nothing_yet():
    base = MLP((12, 11))
    model = copy.deepcopy(base)
    inject(model, "a", config(), generator())
    images = torch.randn(4, 28, 28)
    assert torch.equal(model(images), base(images))


def test_only_the_adapter_requires_gradients():
    model, _ = adapted()
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {f"{layer}.updates.a.{part}" for layer in LAYERS for part in ("lora_A", "lora_B")}


def test_a_second_adapter_freezes_the_first_and_adds_to_it():
    model, base = adapted("a")
    inject(model, "b", config(rank=2, targets=("linear2",)), generator(1))
    nn.init.normal_(updates_of(model, "b")["linear2"].lora_B.data)
    assert adapter_names(model) == ["a", "b"]
    assert not any(p.requires_grad for u in updates_of(model, "a").values() for p in u.parameters())
    a, b = updates_of(model, "a")["linear2"], updates_of(model, "b")["linear2"]
    expected = base.linear2.weight + a.weight() + 5 / 2 * (b.lora_B @ b.lora_A)
    torch.testing.assert_close(model.linear2.merged_weight(), expected)


def test_strength_scales_the_update_and_zero_is_the_base_bit_for_bit():
    model, base = adapted()
    update = updates_of(model, "a")["linear1"]
    set_strength(model, "a", 0.5)
    torch.testing.assert_close(
        model.linear1.merged_weight(), base.linear1.weight + 0.5 * 5 / 3 * (update.lora_B @ update.lora_A)
    )
    images = torch.randn(9, 28, 28)
    with disabled(model):
        assert torch.equal(model(images), base(images))
    assert update.strength == 0.5
    set_strength(model, "a", 0.0)
    assert torch.equal(model(images), base(images))
    assert torch.equal(model.linear1.merged_weight(), base.linear1.weight)


def test_switching_off_would_notice_a_leak():
    model, base = adapted()
    images = torch.randn(9, 28, 28)
    with disabled(model):
        updates_of(model, "a")["linear3"].strength = 1e-3
        assert not torch.equal(model(images), base(images))


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_a_strength_that_is_no_number_is_refused(strength):
    with pytest.raises(UsageError, match="strength"):
        set_strength(adapted()[0], "a", strength)


def test_base_tensors_are_the_bases_under_its_names():
    model, base = adapted()
    found = base_tensors(model)
    assert set(found) == set(base.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in base.state_dict().items())
    assert found["linear1.weight"].data_ptr() == model.linear1.base.weight.data_ptr()


def test_layers_called_base_are_layers_like_any_other():
    model = nn.Sequential()
    model.add_module("base", nn.Linear(4, 3))
    inject(model, "a", config(rank=2, targets=("base",)), generator())
    assert set(base_tensors(model)) == {"base.weight", "base.bias"}


def test_the_parameter_table_of_the_published_adapter():
    model = MLP()
    inject(model, "a", config(rank=1, alpha=1.0), generator())
    table = parameter_table(model, "a")
    assert (table["base"], table["added"], table["total"]) == (2_807_010, 6_794, 2_813_804)
    assert round(100 * table["share"], 3) == 0.242
    assert table["layers"][0] == {
        "layer": "linear1",
        "weight": [1000, 784],
        "bias": [1000],
        "lora_A": [1, 784],
        "lora_B": [1000, 1],
    }


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("linear2",), ["linear2"]),
        ((r"linear[13]",), ["linear1", "linear3"]),
        (("linear3", "linear1"), ["linear1", "linear3"]),
        ((".*",), list(LAYERS)),
    ],
)
def test_targets_by_name_or_pattern(targets, layers):
    assert list(match_layers(MLP((5, 4)), targets)) == layers


@pytest.mark.parametrize("target", ["linear4", "linear", "LINEAR1", "", "linear1.weight", "("])
def test_a_target_that_matches_nothing_is_refused(target):
    with pytest.raises(UsageError, match="Target"):
        match_layers(MLP((5, 4)), ["linear1", target])


def test_a_rank_above_every_side_is_refused_and_above_some_is_told():
    with pytest.raises(UsageError, match="at most 12"):
        inject(MLP((12, 11)), "a", config(rank=13), generator())
    assert oversized(MLP((1000, 2000)), config(rank=11)) == ["linear3"]
    assert oversized(MLP((1000, 2000)), config(rank=10)) == []


@pytest.mark.parametrize("name", ["", "a.b", "train", "update", "keys"])
def test_names_that_torch_cannot_store_are_refused(name):
    with pytest.raises(UsageError, match="name"):
        inject(MLP((12, 11)), name, config(), generator())


def test_two_adapters_of_one_name_are_refused():
    model, _ = adapted("a")
    with pytest.raises(UsageError, match="already"):
        inject(model, "a", config(), generator())


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": True}, {"alpha": math.nan}, {"alpha": 0}, {"dropout": 1.0}])
def test_a_config_checks_itself(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        config(**bad)


def test_how_a_starts():
    kaiming = inject(MLP(), "a", config(rank=8), generator())["linear1"].lora_A
    bound = 1 / math.sqrt(784)  # kaiming_uniform with a = sqrt(5): sqrt(6 / ((1 + 5) fan_in))
    assert float(kaiming.detach().abs().max()) <= bound
    assert float(kaiming.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    gaussian = inject(MLP(), "a", config(rank=8, init="gaussian"), generator())["linear1"].lora_A
    assert float(gaussian.detach().std()) == pytest.approx(1, rel=0.05)


def test_dropout_acts_in_training_only():
    model, _ = adapted(dropout=0.5)
    images = torch.randn(3, 28, 28)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))
