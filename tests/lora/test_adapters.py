"""Adapters by name on several models: what is on, what trains, what a pattern finds, and what is refused."""

import math
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lora_mnist.errors import LoRAError
from lora_mnist.lora import (
    LayerParameters,
    LoRAConfig,
    LoRALinear,
    adapter_names,
    base_tensors,
    disabled,
    inject,
    linear_layers,
    merge,
    parameter_table,
    remove,
    set_strength,
    strengths,
    switch,
    updates_of,
)
from lora_mnist.training.model import MLP

from ..models import adapted, add, by_hand, config, generator


class Scaled(nn.Linear):
    """Linear by name only."""

    def forward(self, x):
        return 2 * super().forward(x)


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


def test_a_leak_would_show_while_switched_off():
    """So the test above can fail."""
    model, base = adapted()
    images = torch.randn(9, 28, 28)
    with disabled(model):
        with torch.no_grad():
            model.linear3.bias[0] += 1e-3
        assert not torch.equal(model(images), base(images))


def test_switching_off_ends_with_the_block_even_nested_or_failing():
    model, base = adapted()
    images = torch.randn(2, 28, 28)
    on = model(images)
    with suppress(KeyError), disabled(model):
        with disabled(model):
            pass
        assert torch.equal(model(images), base(images))
        raise KeyError
    assert torch.equal(model(images), on)


def test_the_parameter_table_of_the_published_adapter():
    model = MLP()
    inject(model, "a", config(rank=1, alpha=1.0), generator())
    table = parameter_table(model, "a")
    assert (table.base, table.added, table.total) == (2_807_010, 6_794, 2_813_804)
    assert round(100 * table.share, 3) == 0.242
    assert table.layers[0] == LayerParameters("linear1", (1000, 784), (1000,), (1, 784), (1000, 1), 1.0)


def test_the_parameter_table_of_layers_without_a_bias_and_without_a_part():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2))
    inject(model, "other", LoRAConfig(rank=2))  # counts neither as base nor as added
    inject(model, "a", LoRAConfig(("0",), rank=2, alpha=3.0))
    table = parameter_table(model, "a")
    assert table.layers == (
        LayerParameters("0", (3, 4), None, (2, 4), (3, 2), 1.5),
        LayerParameters("1", (2, 3), (2,), None, None, None),
    )
    assert (table.base, table.added, table.total, table.share) == (20, 14, 34, 14 / 20)


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        *[("train", {}, "another use"), ("a", {}, "already"), ("b", {"rank": 13}, r"`rank` \(=13\) .*at most 12")],
        ("b", {"targets": ("linear1", "nowhere")}, "'nowhere' matches no"),
    ],
)
def test_a_refused_adapter_leaves_everything_as_it_was(name, wrong, says):
    model, _ = adapted("a", rank=12)  # the smaller side of the largest layer
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(LoRAError, match=says):
        inject(model, name, config(**wrong))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert adapter_names(model) == ["a"]


def test_removing_gives_the_plain_layers_back():
    model, base = adapted("a")
    linear = model.linear1
    add(model, "b", config(targets=("linear1",)))
    with pytest.raises(LoRAError, match=r"no adapter 'c'\. It has a, b\."):
        remove(model, "c")
    remove(model, "a")
    assert adapter_names(model) == ["b"]
    assert not isinstance(model.linear2, LoRALinear)
    remove(model, "b")
    assert model.linear1 is linear
    assert type(linear) is nn.Linear
    images = torch.randn(4, 28, 28)
    assert torch.equal(model(images), base(images))
    assert model.state_dict().keys() == base.state_dict().keys()
    with pytest.raises(LoRAError, match=r"no adapter 'b'\. It has no adapters\."):
        remove(model, "b")


def test_switching_several_on_with_a_strength_each():
    model, base = adapted("a")
    add(model, "b", config(rank=2), seed=5)
    add(model, "c", config(rank=1), seed=9)
    switch(model, {"a": 0.5, "c": -2.0})
    assert strengths(model) == {"a": 0.5, "b": 0.0, "c": -2.0}
    expected = by_hand(by_hand(base, updates_of(model, "a"), 0.5 * 5 / 3), updates_of(model, "c"), -2 * 5 / 1)
    images = torch.randn(4, 28, 28)
    torch.testing.assert_close(model(images), expected(images), rtol=1e-4, atol=1e-5)
    switch(model, {})
    assert torch.equal(model(images), base(images))


@pytest.mark.parametrize("strength", [math.nan, math.inf, "1", None, float(torch.finfo(torch.float32).max)])
def test_a_strength_that_is_no_number_or_overflows_and_an_unknown_adapter_switch_nothing(strength):
    model, _ = adapted("a")
    with pytest.raises(LoRAError, match=r"strength|too large"):
        set_strength(model, "a", strength)
    for wanted in ({"b": 1.0}, {"a": strength}, {"a": 0.5, "b": 1.0}, "a"):
        with pytest.raises(LoRAError):
            switch(model, wanted)
    assert strengths(model) == {"a": 1.0}


def test_a_layer_that_occurs_twice_is_adapted_at_both_places():
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    updates = add(model, "a", LoRAConfig(rank=2, alpha=3.0), std=1)
    assert list(updates) == ["0"]
    assert model[0] is model[2][0]
    weight = shared.weight + 3 / 2 * updates["0"].lora_B @ updates["0"].lora_A
    x = torch.randn(3, 6)
    by_hand = torch.relu(x @ weight.T + shared.bias) @ weight.T + shared.bias
    torch.testing.assert_close(model(x), by_hand)
    assert set(base_tensors(model)) == {"0.weight", "0.bias", "2.0.weight", "2.0.bias"}
    remove(model, "a")
    assert model[0] is model[2][0] is shared


def test_a_lazy_layer_and_a_model_without_layers_are_refused_with_a_way_out():
    with pytest.raises(LoRAError, match="Run the model once"):
        inject(nn.Sequential(nn.LazyLinear(4)), "a", LoRAConfig(rank=1))
    with pytest.raises(LoRAError, match="none to adapt"):
        inject(nn.ReLU(), "a", LoRAConfig(rank=1))


@pytest.mark.parametrize("action", ["inject", "remove", "set_strength", "switch", "load", "add", "train"])
def test_what_would_not_show_while_merged_is_refused(action):
    model, _ = adapted("a")
    merge(model)
    with pytest.raises(LoRAError, match=r"merged, so (one|its adapters) cannot [a-z]+( [a-z]+)*\."):
        {
            "inject": lambda: inject(model, "b", config()),
            "remove": lambda: remove(model, "a"),
            "set_strength": lambda: set_strength(model, "a", 0.5),
            "switch": lambda: switch(model, {}),
            "load": lambda: model.load_state_dict(model.state_dict()),
            "add": lambda: model.linear1.add("b", config()),
            "train": lambda: model.train()(torch.randn(2, 28, 28)),
        }[action]()
    assert adapter_names(model) == ["a"]
    assert strengths(model) == {"a": 1.0}


def test_switching_off_a_merged_model_is_the_base_bit_for_bit():
    model, base = adapted("a")
    images = torch.randn(4, 28, 28)
    merge(model)
    merged = model(images)
    with disabled(model):
        assert torch.equal(model(images), base(images))
        with pytest.raises(LoRAError, match="merged"):
            remove(model, "a")
    assert torch.equal(model(images), merged)


def test_a_layer_with_a_forward_of_its_own_is_called_and_gets_the_update():
    torch.manual_seed(0)
    model = nn.Sequential(Scaled(4, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 1))
    plain = model[1].forward
    model[1].forward = lambda x: 3 * plain(x)  # as accelerate's hooks replace it
    assert list(linear_layers(model)) == ["0", "1"]
    x = torch.randn(5, 4)
    before = [2 * F.linear(x, model[0].weight, model[0].bias), 3 * F.linear(x, model[1].weight, model[1].bias)]
    for path, update in add(model, "a", LoRAConfig(rank=2, alpha=3.0), std=1).items():
        expected = before[int(path)] + 3 / 2 * x @ update.lora_A.T @ update.lora_B.T
        torch.testing.assert_close(model[int(path)](x), expected)
        with pytest.raises(LoRAError, match="forward of its own"):
            merge(model)
    remove(model, "a")
    assert type(model[0]) is Scaled
    assert torch.equal(model[1](x), before[1])


def test_the_base_has_one_set_of_names_and_its_state_dict_loads_strictly():
    model, base = adapted("a")
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert base_tensors(model)["linear1.weight"].data_ptr() == model.linear1.weight.data_ptr()
    update = updates_of(model, "a")["linear1"].lora_B.clone()
    for state in (base.state_dict(), {name: tensor + 1 for name, tensor in base.state_dict().items()}):
        model.load_state_dict(state)
        torch.testing.assert_close(base_tensors(model), state, rtol=0, atol=0)  # the same names too
    assert torch.equal(updates_of(model, "a")["linear1"].lora_B, update)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("operation", ["relu_", "mul_", "masked_fill_", "dropout", "view", "checkpoint"])
def test_an_in_place_operation_behind_an_adapted_layer_can_be_trained(operation, shape):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)), torch.randn(shape)
    add(model, "a", LoRAConfig(rank=2, dropout=0.5 if operation == "dropout" else 0.0), std=1)
    y = checkpoint(model, x, use_reentrant=False) if operation == "checkpoint" else model.train()(x)
    {
        "relu_": F.relu_,
        "mul_": lambda y: y.mul_(2),
        "masked_fill_": lambda y: y.masked_fill_(y > 0, 0),
        "dropout": lambda y: F.dropout(y, 0.5, inplace=True),
        "view": lambda y: y.view(-1)[1:].add_(1),
        "checkpoint": lambda y: y.neg_(),
    }[operation](y)
    y.sum().backward()
    assert updates_of(model, "a")["0"].lora_B.grad is not None


def test_what_is_written_past_autograd_is_never_stale():
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(3, 6)
    update = add(model, "a", LoRAConfig(rank=2, alpha=3.0), std=1)["0"]
    model.eval()
    for write in (
        lambda: model[0].weight.data.mul_(2),
        lambda: setattr(update.lora_B, "data", torch.randn(4, 2)),
        lambda: model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()}),
        lambda: setattr(model[0], "weight", nn.Parameter(torch.randn(4, 6), requires_grad=False)),
    ):
        with torch.inference_mode():
            model(x)
        write()
        expected = model[0].weight + 3 / 2 * update.lora_B @ update.lora_A
        torch.testing.assert_close(model(x), F.linear(x, expected, model[0].bias))
        torch.testing.assert_close(model[0].merged_weight(), expected)
