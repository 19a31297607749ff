"""One adapted layer against W + scaling · B A by hand: shapes, dtypes, compiled graphs; alpha ≠ rank, B ≠ 0."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.errors import LoRAError
from lora_mnist.lora import (
    LoRAConfig,
    adapt,
    base_tensors,
    disabled,
    inject,
    merge,
    merged_copy,
    set_strength,
    train_only,
    updates_of,
)

from ..conftest import relative
from ..models import adapted, adapted_layer, add, by_hand, config, generator

# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 5 / 3), (True, 5 / math.sqrt(3))])
def test_the_factored_forward_is_w_plus_scaling_ba(rslora, scaling):
    model, base = adapted(rslora=rslora)
    updates = updates_of(model, "a")
    assert [(u.lora_A.shape, u.lora_B.shape) for u in updates.values()] == [
        *[((3, 784), (12, 3)), ((3, 12), (11, 3)), ((3, 11), (10, 3))]
    ]
    images = torch.randn(7, 28, 28)
    assert relative(model(images), by_hand(base, updates, scaling)(images)) < 1e-5
    assert not torch.allclose(model(images), base(images), rtol=1e-2)


def test_the_weight_of_a_layer_that_is_off_is_its_own_and_the_printed_layer_says_so():
    layer, update = adapted_layer()
    assert not torch.equal(layer.merged_weight(), layer.weight)
    assert "rank=3, alpha=5, strength=1," in repr(update)
    assert "off" not in repr(layer)
    with disabled(layer):
        assert torch.equal(layer.merged_weight(), layer.weight)
        assert "in_features=6, out_features=4, bias=True, off" in repr(layer)
    update.strength = 0.0
    assert torch.equal(layer.merged_weight(), layer.weight)
    assert "rank=3, alpha=5, off," in repr(update)


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)], ids=str)
def test_dropout_acts_in_training_only(shape):
    layer, update = adapted_layer(dropout=0.5)
    x = torch.randn(shape)
    torch.testing.assert_close(layer.eval()(x), F.linear(x, layer.merged_weight(), layer.bias))
    torch.manual_seed(1)
    expected = F.linear(x, layer.weight, layer.bias) + 5 / 3 * F.dropout(x, 0.5) @ update.lora_A.T @ update.lora_B.T
    torch.manual_seed(1)
    torch.testing.assert_close(layer.train()(x), expected)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (2, 3, 4, 6), (0, 6)])
def test_inputs_of_any_leading_shape(shape):
    layer, _ = adapted_layer()
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), F.linear(x, layer.merged_weight(), layer.bias))


@pytest.mark.filterwarnings("ignore:.*nested_tensor")
def test_the_fast_path_of_a_transformer_layer_does_not_lose_the_adapter():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True).eval()
    plain, x = copy.deepcopy(model), torch.randn(2, 5, 12)
    updates = add(model, "a", LoRAConfig(("linear1", "linear2"), rank=3, alpha=5.0), std=1)
    with torch.inference_mode():
        assert relative(model(x), by_hand(plain, updates, 5 / 3)(x)) < 1e-5
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


def test_a_layer_can_be_adapted_by_itself():
    layer = adapt(nn.Linear(6, 4))
    assert list(inject(layer, "a", LoRAConfig(rank=2, alpha=2.0))) == [""]
    assert set(base_tensors(layer)) == {"weight", "bias"}


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 2, 1), nn.ReLU()])
def test_only_linear_layers_are_wrapped(layer):
    with pytest.raises(LoRAError, match=r"nn\.Linear"):
        adapt(layer)


def test_attention_whose_weight_is_read_past_any_forward_is_refused_by_name():
    model = nn.MultiheadAttention(12, 3, batch_first=True)
    with pytest.raises(LoRAError, match=r"finds no nn.Linear, but out_proj\.weight"):
        inject(model, "a", LoRAConfig(("out_proj",), rank=3))


# Dtypes and compilers -------------------------------------------------------------------------------------------------


def chain(layers):
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(6, 6), nn.Tanh())))
    add(model, "a", LoRAConfig((".*",), rank=2, alpha=3.0), std=1)
    return model


@pytest.fixture
def graphs():
    """A compiler that counts what it is given."""
    from torch._dynamo.testing import CompileCounter  # two seconds of every process that collects tests

    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)], ids=str)
@pytest.mark.parametrize("layers", [1, 2, 8])
def test_one_graph_whatever_the_strength(graphs, layers, shape):
    model, x = chain(layers), torch.randn(shape)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for strength in (1.0, 0.5, -0.3, 2.0, 0.25, 1.5, -1.0, 0.7):
        set_strength(model, "a", strength)
        assert relative(compiled(x), model(x)) < 1e-5
    assert graphs.frame_count == 1
    set_strength(model, "a", 0.0)  # is another computation: none
    assert torch.equal(compiled(x), model(x))
    assert graphs.frame_count == 2


def test_a_compiled_model_trains_and_infers_as_it_does_itself(graphs):
    model, x = chain(2), torch.randn(5, 6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    gradients = []
    for one in (model, compiled):
        model.zero_grad()
        one(x).pow(2).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)
    with torch.inference_mode():
        assert relative(compiled(x), model(x)) < 1e-5
    for state in (copy.deepcopy(model), merged_copy(model)):
        exported = torch.export.export(state, (x,), strict=True).module()
        assert relative(exported(x), model(x)) < 1e-5


@pytest.mark.parametrize(
    ("of_weight", "asked", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.bfloat16, None, torch.float32),
        (torch.float16, None, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float16, torch.float16),
    ],
)
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)], ids=str)
def test_a_and_b_have_the_dtype_asked_for_and_the_output_that_of_the_layer(of_weight, asked, expected, shape):
    layer, update = adapted_layer(of_weight, dtype=asked)
    assert {parameter.dtype for parameter in update.parameters()} == {expected}
    x = torch.randn(shape).to(of_weight)
    y = layer(x)
    assert y.dtype == of_weight
    y.float().sum().backward()
    assert update.lora_A.grad.dtype == expected
    with torch.inference_mode():
        assert torch.equal(layer(x), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_beside_a_half_precision_weight_it_is_computed_in_fp32_and_rounded_once(dtype):
    layer, update = adapted_layer(dtype)
    x = torch.randn(5, 6).to(dtype)
    wide = F.linear(x, layer.weight, layer.bias).float() + 5 / 3 * (x.float() @ update.lora_A.T @ update.lora_B.T)
    assert torch.equal(layer(x), wide.to(dtype))
    merge(layer.eval())
    assert layer.merged.dtype == dtype
    wide = layer.weight.float() + 5 / 3 * (update.lora_B @ update.lora_A)
    assert torch.equal(layer.merged, wide.to(dtype))
    assert layer(x).dtype == dtype


@pytest.mark.parametrize("of_weight", [torch.float32, torch.bfloat16])
def test_autocast_beside_a_weight_of_either_precision(of_weight):
    layer, _ = adapted_layer(of_weight)
    x = torch.randn(5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        with torch.inference_mode():
            assert torch.equal(layer(x), y)
    assert y.dtype == torch.bfloat16
    expected = F.linear(x, layer.merged_weight().float(), layer.bias.float())
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.1)


def test_several_adapters_train_at_once_also_if_made_in_inference_mode():
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(3, 6)
    with torch.inference_mode():
        for name in ("a", "b", "c"):
            inject(model, name, config(targets=("0",)))
        model(x)
    train_only(model, ["a", "b"])
    model(x).sum().backward()
    gradients = {name: updates_of(model, name)["0"].lora_B.grad for name in "abc"}
    assert {name for name, gradient in gradients.items() if gradient is not None and gradient.any()} == {"a", "b"}
