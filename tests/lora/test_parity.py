"""The same random layers through this library, PEFT, loralib and a hand-written W + scaling · B A: forward, gradients.

alpha ≠ rank, B ≠ 0, layers that are not square, fp32; inputs of one and of two leading dimensions.
"""

import copy

import loralib
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.lora import LoRAConfig, adapt, combine_cat, combine_svd, inject, updates_of

from ..models import add

RANK, ALPHA = 3, 5.0
SHAPES = [(6, 4), (4, 6), (784, 100), (100, 10), (1, 7)]
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.fixture(scope="module")
def peft():
    import_torchvision()  # PEFT imports transformers, which imports torchvision
    import peft

    return peft


@pytest.fixture(params=SHAPES, ids=str)
def layer(request):
    """Weights, factors, inputs (B, in) or (B, T, in), and the gradient that comes back from above."""
    torch.manual_seed(0)
    fan_in, fan_out = request.param
    linear = nn.Linear(fan_in, fan_out)
    a, b = torch.randn(RANK, fan_in), torch.randn(fan_out, RANK)
    inputs = [torch.randn(5, fan_in), torch.randn(2, 3, fan_in)]
    return linear, a, b, [(x, torch.randn(*x.shape[:-1], fan_out)) for x in inputs]


def outcome(function, a, b, x, upstream):
    """Output, and gradients of A, B and x."""
    x = x.clone().requires_grad_(True)
    a.grad = b.grad = None
    y = function(x)
    (y * upstream).sum().backward()
    return [y.detach(), a.grad, b.grad, x.grad]


def by_hand(linear, a, b, x, upstream, scaling=ALPHA / RANK):
    a, b = nn.Parameter(a.clone()), nn.Parameter(b.clone())
    weight, bias = linear.weight.detach(), linear.bias.detach()
    return outcome(lambda x: F.linear(x, weight + scaling * (b @ a), bias), a, b, x, upstream)


def ours(linear, a, b, x, upstream, rslora=False):
    layer = adapt(copy.deepcopy(linear))
    update = layer.add("a", LoRAConfig(rank=RANK, alpha=ALPHA, rslora=rslora))
    update.lora_A.data.copy_(a)
    update.lora_B.data.copy_(b)
    found = outcome(layer, update.lora_A, update.lora_B, x, upstream)
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    return found


def theirs_loralib(linear, a, b, x, upstream):
    layer = loralib.Linear(linear.in_features, linear.out_features, r=RANK, lora_alpha=ALPHA)
    layer.weight.data.copy_(linear.weight)
    layer.bias.data.copy_(linear.bias)
    layer.lora_A.data.copy_(a)
    layer.lora_B.data.copy_(b)
    return outcome(layer, layer.lora_A, layer.lora_B, x, upstream)


def theirs_peft(peft, linear, a, b, x, upstream, rslora=False):
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], use_rslora=rslora)
    model = peft.get_peft_model(nn.Sequential(copy.deepcopy(linear)), config)
    layer = model.base_model.model[0]
    a_theirs, b_theirs = layer.lora_A.default.weight, layer.lora_B.default.weight
    a_theirs.data.copy_(a)
    b_theirs.data.copy_(b)
    return outcome(model, a_theirs, b_theirs, x, upstream)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) < 1e-5 * float(other.abs().max())


def test_by_hand(layer):
    *weights, inputs = layer
    for x, upstream in inputs:
        assert_same(ours(*weights, x, upstream), by_hand(*weights, x, upstream))


def test_loralib(layer):
    *weights, inputs = layer
    for x, upstream in inputs:
        assert_same(ours(*weights, x, upstream), theirs_loralib(*weights, x, upstream))


@pytest.mark.parametrize("rslora", [False, True])
def test_peft(peft, layer, rslora):
    *weights, inputs = layer
    for x, upstream in inputs:
        assert_same(ours(*weights, x, upstream, rslora), theirs_peft(peft, *weights, x, upstream, rslora))


def test_the_comparison_would_notice_an_alpha_left_out(layer):
    *weights, inputs = layer
    with pytest.raises(AssertionError):
        assert_same(ours(*weights, *inputs[0]), by_hand(*weights, *inputs[0], scaling=1.0))


@pytest.mark.parametrize("library", ["ours", "loralib", "peft"])
def test_who_gives_the_bytes_of_the_base_back(peft, library):
    """Large updates, one cycle; `test_lora_merging` has a thousand of ours."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    before = linear.weight.detach().clone()
    if library == "ours":
        from lora_mnist.lora import merge, unmerge

        model = nn.Sequential(linear)
        add(model, "a", LoRAConfig(rank=RANK, alpha=ALPHA), std=10)
        merge(model)
        unmerge(model)
        after = model[0].weight
    elif library == "loralib":
        layer = loralib.Linear(64, 48, r=RANK, lora_alpha=ALPHA)
        layer.weight.data.copy_(linear.weight)
        nn.init.normal_(layer.lora_B, std=10)
        layer.eval()  # merges
        layer.train()  # unmerges
        after = layer.weight
    else:
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
        model = peft.get_peft_model(nn.Sequential(linear), config)
        nn.init.normal_(model.base_model.model[0].lora_B.default.weight, std=10)
        model.merge_adapter()
        model.unmerge_adapter()
        after = model.base_model.model[0].base_layer.weight
    assert torch.equal(before, after) == (library == "ours")


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_combinations_are_pefts(peft, kind):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 6))
    configs = {"a": (RANK, ALPHA), "b": (2, 7.0)}
    model = copy.deepcopy(base)
    for seed, (name, (rank, alpha)) in enumerate(configs.items()):
        add(model, name, LoRAConfig(("0", "2"), rank=rank, alpha=alpha), seed, std=1)
    other = None
    for name, (rank, alpha) in configs.items():
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0", "2"])
        if other is None:
            other = peft.get_peft_model(copy.deepcopy(base), config, adapter_name=name)
        else:
            other.add_adapter(name, config)
        for path, update in updates_of(model, name).items():
            layer = other.base_model.model.get_submodule(path)
            layer.lora_A[name].weight.data.copy_(update.lora_A)
            layer.lora_B[name].weight.data.copy_(update.lora_B)
    weights = {"a": 0.7, "b": 1.5}
    if kind == "cat":
        combine_cat(model, "c", weights)
    else:
        combine_svd(model, "c", weights, 4)
    other.base_model.add_weighted_adapter(list(weights), list(weights.values()), "c", kind, svd_rank=4)
    for path, update in updates_of(model, "c").items():
        expected = other.base_model.model.get_submodule(path).get_delta_weight("c")
        assert float((update.weight() - expected).detach().abs().max()) < 1e-5 * float(expected.abs().max())


def test_a_transformer_trains_as_pefts_does(peft):
    from ..models import Transformer

    torch.manual_seed(0)
    base, x, upstream = Transformer(), torch.randn(2, 5, 24), torch.randn(2, 5, 7)
    model = copy.deepcopy(base)
    updates = inject(model, "a", LoRAConfig(("q_proj", "v_proj"), rank=RANK, alpha=ALPHA))
    other = peft.get_peft_model(base, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"]))
    for path, update in updates.items():
        layer = other.base_model.model.get_submodule(path)
        layer.lora_A.default.weight.data.copy_(update.lora_A)
    for net in (model, other):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            (net(x) * upstream).mean().backward()
            optimizer.step()
    for path, update in updates.items():
        layer = other.base_model.model.get_submodule(path)
        assert update.lora_B.any()
        torch.testing.assert_close(update.lora_A, layer.lora_A.default.weight, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(update.lora_B, layer.lora_B.default.weight, rtol=1e-4, atol=1e-8)
