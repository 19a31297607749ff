"""One adapted layer against W + scaling · B A by hand; alpha ≠ rank, B ≠ 0, layers that are not square."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.errors import LoRAError
from lora_mnist.lora import LoRAConfig, adapt, inject, updates_of

from ..conftest import relative
from ..models import LAYERS, adapted, add, config, generator


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
    assert relative(model(images), by_hand(images)) < 1e-5
    assert not torch.allclose(model(images), base(images), rtol=1e-2)


def test_gradients_are_those_of_the_product():
    layer = adapt(nn.Linear(6, 4))
    update = layer.add("a", config(), generator())
    nn.init.normal_(update.lora_B.data)
    x, upstream = torch.randn(5, 6), torch.randn(5, 4)
    (layer(x) * upstream).sum().backward()
    of_weight = upstream.T @ x  # gradient of W' in y = x W'ᵀ
    torch.testing.assert_close(update.lora_A.grad, 5 / 3 * update.lora_B.detach().T @ of_weight)
    torch.testing.assert_close(update.lora_B.grad, 5 / 3 * of_weight @ update.lora_A.detach().T)
    assert layer.weight.grad is None


def test_a_linear_layer_on_a_sequence_of_vectors():
    torch.manual_seed(0)
    linear = nn.Linear(768, 512)
    layer = adapt(linear)
    update = layer.add("a", LoRAConfig(rank=8, alpha=16, dropout=0.1), generator())
    x = torch.randn(32, 120, 768)
    assert torch.equal(layer.eval()(x), linear(x))  # B is 0 still
    nn.init.normal_(update.lora_B.data, std=0.1)
    by_hand = F.linear(x, linear.weight + 16 / 8 * update.lora_B @ update.lora_A, linear.bias)
    assert layer(x).shape == (32, 120, 512)
    assert relative(layer(x), by_hand) < 1e-5
    layer.train()
    torch.manual_seed(1)
    kept = F.dropout(x, 0.1)
    by_hand = F.linear(x, linear.weight, linear.bias) + 2 * kept @ update.lora_A.T @ update.lora_B.T
    torch.manual_seed(1)
    assert relative(layer(x), by_hand) < 1e-5


def test_dropout_acts_in_training_only():
    model, _ = adapted(dropout=0.5)
    images = torch.randn(3, 28, 28)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (2, 3, 4, 6), (0, 6)])
def test_inputs_of_any_leading_shape(shape):
    layer = adapt(nn.Linear(6, 4))
    update = layer.add("a", config(), generator())
    nn.init.normal_(update.lora_B.data)
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), F.linear(x, layer.merged_weight(), layer.bias))


@pytest.mark.filterwarnings("ignore:.*nested_tensor")
def test_the_fast_path_of_a_transformer_layer_does_not_lose_the_adapter():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True).eval()
    by_hand, plain, x = copy.deepcopy(model), copy.deepcopy(model), torch.randn(2, 5, 12)
    for path, update in add(model, "a", LoRAConfig(("linear1", "linear2"), rank=3, alpha=5.0), std=1).items():
        by_hand.get_submodule(path).weight.data += 5 / 3 * update.lora_B.detach() @ update.lora_A.detach()
    with torch.inference_mode():
        assert relative(model(x), by_hand(x)) < 1e-5
        assert relative(model(x), plain(x)) > 1e-2


def test_how_a_starts():
    kaiming = adapt(nn.Linear(784, 1000)).add("a", config(rank=8), generator()).lora_A.detach()
    bound = 1 / math.sqrt(784)  # kaiming_uniform with a = sqrt(5): sqrt(6 / ((1 + 5) fan_in))
    assert float(kaiming.abs().max()) <= bound
    assert float(kaiming.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    gaussian = adapt(nn.Linear(784, 1000)).add("a", config(rank=8, init="gaussian"), generator()).lora_A
    assert float(gaussian.detach().std()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("name", ["", "a.b", "train", "update", "keys", "training", "_modules"])
def test_names_that_torch_cannot_store_are_refused(name):
    with pytest.raises(LoRAError, match="name"):
        adapt(nn.Linear(3, 2)).add(name, config())


def test_a_copy_is_independent():
    model, _ = adapted()
    other = copy.deepcopy(model)
    with torch.no_grad():
        updates_of(other, "a")["linear1"].lora_B.zero_()
    assert updates_of(model, "a")["linear1"].lora_B.any()


def test_a_layer_can_be_adapted_by_itself():
    layer = adapt(nn.Linear(6, 4))
    assert list(inject(layer, "a", LoRAConfig(rank=2, alpha=2.0))) == [""]


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 2, 1), nn.ReLU()])
def test_only_linear_layers_are_wrapped(layer):
    with pytest.raises(LoRAError, match=r"nn\.Linear"):
        adapt(layer)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)], ids=str)
def test_inference_mode_changes_no_bit(shape):
    layer = adapt(nn.Linear(6, 4))
    for name in ("a", "b"):
        nn.init.normal_(layer.add(name, config(), generator()).lora_B.data)
    x = torch.randn(shape)
    with torch.inference_mode():
        inferred = layer(x)
    assert torch.equal(inferred, layer(x))


def test_autocast_holds_in_inference_mode():
    layer = adapt(nn.Linear(6, 4))
    nn.init.normal_(layer.add("a", config(), generator()).lora_B.data)
    x = torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with torch.inference_mode():
            assert torch.equal(layer(x), expected)
    assert expected.dtype == torch.bfloat16


def test_attention_whose_weight_is_read_past_any_forward_is_refused_by_name():
    model = nn.MultiheadAttention(12, 3, batch_first=True)
    with pytest.raises(LoRAError, match=r"finds no nn.Linear, but out_proj\.weight"):
        inject(model, "a", LoRAConfig(("out_proj",), rank=3))


def test_what_somebody_writes_to_a_is_never_stale():
    layer = adapt(nn.Linear(6, 4)).eval()
    update = layer.add("a", config(), generator())
    nn.init.normal_(update.lora_B.data)
    before = layer.merged_weight().detach().clone()
    update.lora_A.data.mul_(2)
    torch.testing.assert_close(layer.merged_weight() - layer.weight, 2 * (before - layer.weight))
