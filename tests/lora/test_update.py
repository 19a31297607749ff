"""One adapter's part in one layer: in which dtype it computes, and how many graphs a compiler makes of it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.lora import (
    LoRAConfig,
    adapt,
    inject,
    merge,
    merged_copy,
    set_strength,
    train_only,
    updates_of,
)

from ..conftest import relative
from ..models import add, config, generator

HALVES = (torch.bfloat16, torch.float16)


class Graphs:
    """A compiler that counts what it is given."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def chain(layers):
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(6, 6), nn.Tanh())))
    add(model, "a", LoRAConfig((".*",), rank=2, alpha=3.0), std=1)
    return model


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)], ids=str)
@pytest.mark.parametrize("layers", [1, 2, 8])
def test_one_graph_whatever_the_strength(graphs, layers, shape):
    model, x = chain(layers), torch.randn(shape)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for strength in (1.0, 0.5, -0.3, 2.0, 0.25, 1.5, -1.0, 0.7):
        set_strength(model, "a", strength)
        assert relative(compiled(x), model(x)) < 1e-5
    assert graphs.count == 1
    set_strength(model, "a", 0.0)  # is another computation: none
    assert torch.equal(compiled(x), model(x))
    assert graphs.count == 2


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
    layer = adapt(nn.Linear(6, 4).to(of_weight))
    update = layer.add("a", config(dtype=asked))
    assert {parameter.dtype for parameter in update.parameters()} == {expected}
    nn.init.normal_(update.lora_B.data)
    x = torch.randn(shape).to(of_weight)
    y = layer(x)
    assert y.dtype == of_weight
    y.float().sum().backward()
    assert update.lora_A.grad.dtype == expected
    with torch.inference_mode():
        assert torch.equal(layer(x), y)


@pytest.mark.parametrize("dtype", HALVES)
def test_beside_a_half_precision_weight_it_is_computed_in_fp32_and_rounded_once(dtype):
    layer = adapt(nn.Linear(6, 4).to(dtype))
    update = layer.add("a", config(), generator())
    nn.init.normal_(update.lora_B.data)
    x = torch.randn(5, 6).to(dtype)
    wide = F.linear(x, layer.weight, layer.bias).float() + 5 / 3 * (x.float() @ update.lora_A.T @ update.lora_B.T)
    assert torch.equal(layer(x), wide.to(dtype))
    merge(layer.eval())
    assert layer.merged.dtype == dtype
    by_hand = layer.weight.float() + 5 / 3 * (update.lora_B @ update.lora_A)
    assert torch.equal(layer.merged, by_hand.to(dtype))
    assert layer(x).dtype == dtype


def test_an_update_can_be_moved_to_another_dtype_later():
    layer = adapt(nn.Linear(6, 4).to(torch.bfloat16))
    update = layer.add("a", config(dtype=torch.bfloat16))
    nn.init.normal_(update.lora_B.data)
    x = torch.randn(5, 6).bfloat16()
    before = layer(x)
    update.float()
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), before, rtol=0.05, atol=0.1)
    layer.float()
    assert torch.equal(layer(x.float()).isfinite(), torch.ones(5, 4, dtype=torch.bool))


def test_fp32_beside_bf16_takes_steps_that_bf16_loses():
    """Why it is the default: a step of 1e-4 is below what bf16 can add to 0.1."""
    moved = {}
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        layer = adapt(nn.Linear(64, 64).to(torch.bfloat16))
        update = layer.add("a", config(dtype=dtype))
        nn.init.constant_(update.lora_A, 0.1)
        optimizer = torch.optim.SGD(update.parameters(), lr=1e-4)
        update.lora_A.grad = torch.ones_like(update.lora_A)
        for _ in range(10):
            optimizer.step()
        moved[dtype] = float((update.lora_A.detach() - 0.1).abs().mean())
    assert moved[None] == pytest.approx(1e-3, rel=0.01)
    assert moved[torch.bfloat16] < 1e-3 / 2


@pytest.mark.parametrize("of_weight", [torch.float32, torch.bfloat16])
def test_autocast_beside_a_weight_of_either_precision(of_weight):
    layer = adapt(nn.Linear(6, 4).to(of_weight))
    update = layer.add("a", config(), generator())
    nn.init.normal_(update.lora_B.data)
    x = torch.randn(5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    expected = F.linear(x, layer.merged_weight().float(), layer.bias.float())
    torch.testing.assert_close(y.float(), expected.detach(), rtol=0.05, atol=0.1)


def test_an_adapter_made_in_inference_mode_trains():
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(3, 6)
    with torch.inference_mode():
        inject(model, "a", config(targets=("0",)))
        model(x)
    model(x).sum().backward()
    assert updates_of(model, "a")["0"].lora_B.grad.any()


def test_several_adapters_train_at_once():
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(3, 6)
    for name in ("a", "b", "c"):
        add(model, name, config(targets=("0",)))
    train_only(model, ["a", "b"])
    model(x).sum().backward()
    assert {name for name in "abc" if updates_of(model, name)["0"].lora_A.grad is not None} == {"a", "b"}


def test_it_says_what_it_is():
    model = nn.Sequential(nn.Linear(6, 4))
    inject(model, "a", config(targets=("0",)))
    assert "rank=3, alpha=5, strength=1, dtype=torch.float32" in repr(model)
    assert repr(model[0]).startswith("LoRALinear(\n  in_features")
    set_strength(model, "a", 0.0)
    assert "rank=3, alpha=5, off" in repr(model)
    merge(model)
    assert repr(model[0]).startswith("LoRALinear(\n  in_features=6, out_features=4, bias=True, merged")
