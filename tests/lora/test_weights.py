"""`layer.weight`: W' to read, made when something computes with it, and never written."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.errors import LoRAError
from lora_mnist.lora import LoRAConfig, LoRALinear, disabled, inject, layers, merge, set_strength, updates_of
from lora_mnist.lora.product import adapted

from ..conftest import relative
from ..models import add, config, generator


@pytest.fixture
def layer():
    """6 → 4 with an adapter that does something."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(6, 4))
    nn.init.normal_(layer.add("a", config(), generator()).lora_B.data)
    return layer


@pytest.fixture
def built(monkeypatch):
    """One entry for every W' that is made."""
    provenance = []
    honest = LoRALinear.merged_weight
    monkeypatch.setattr(LoRALinear, "merged_weight", lambda self: provenance.append(1) or honest(self))
    return provenance


def by_hand(layer):
    update = layer.updates["a"]
    return layer.base.weight + 5 / 3 * (update.lora_B @ update.lora_A)


@pytest.mark.parametrize("training", [False, True])
def test_a_look_at_dtype_device_or_shape_makes_nothing(layer, built, training):
    weight = layer.train(training).weight
    assert (weight.dtype, weight.device.type, weight.shape) == (torch.float32, "cpu", (4, 6))
    assert (weight.requires_grad, weight.is_leaf, weight.dim(), weight.numel()) == (True, False, 2, 24)
    assert weight.data.dtype == weight.detach().dtype == torch.float32
    assert isinstance(weight, torch.Tensor)
    assert not built
    weight.sum()
    assert built


def test_an_unchanged_weight_is_made_once_in_eval_and_every_time_in_training(layer, built):
    layer.eval()
    for _ in range(3):
        assert torch.equal(layer.weight, by_hand(layer))
    assert len(built) == 1
    layer.train()
    for _ in range(3):
        assert torch.equal(layer.weight, by_hand(layer))
    assert len(built) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.updates["a"].lora_A.data.add_(1),  # past torch's count of writes
        lambda layer: layer.updates["a"].lora_B.data.mul_(2),
        lambda layer: nn.init.zeros_(layer.updates["a"].lora_B),
        lambda layer: nn.init.ones_(layer.base.weight),
        lambda layer: layer.base.load_state_dict({"weight": torch.ones(4, 6), "bias": torch.ones(4)}),
        lambda layer: layer.add("b", config()),
        lambda layer: setattr(layer.updates["a"], "strength", 0.5),
        lambda layer: setattr(layer.updates["a"], "strength", 0.0),
        lambda layer: setattr(layer, "off", True),
        lambda layer: layer.double(),
    ],
)
def test_no_change_is_missed_in_eval(layer, change):
    before = layer.eval().weight.clone()
    change(layer)
    expected = layer.base.weight if layer.off else layer.merged_weight()
    assert torch.equal(layer.weight, expected)
    layer.updates["a"].strength, layer.off = 1.0, False
    nn.init.ones_(layer.updates["a"].lora_B)
    assert torch.equal(layer.weight, layer.merged_weight())
    assert not torch.equal(layer.weight.to(before.dtype), before)


def test_gradients_are_those_of_the_formula(layer):
    torch.manual_seed(0)
    x, upstream = torch.randn(5, 6), torch.randn(5, 4)
    found, expected = [], []
    for weight, gradients in ((layer.weight, found), (by_hand(layer), expected)):
        layer.zero_grad()
        (F.linear(x, weight) * upstream).sum().backward()
        gradients += [parameter.grad.clone() for parameter in layer.updates["a"].parameters()]
    torch.testing.assert_close(found, expected)
    layer.base.weight.requires_grad_(True)
    (F.linear(x, layer.weight) * upstream).sum().backward()
    torch.testing.assert_close(layer.base.weight.grad, upstream.T @ x)


def test_gradients_of_two_adapters_are_those_of_the_formula(layer):
    torch.manual_seed(1)
    nn.init.normal_(layer.add("b", config(rank=2, alpha=3.0), generator(1)).lora_B.data)
    upstream = torch.randn(4, 6)
    parameters = list(layer.updates.parameters())
    found = torch.autograd.grad((layer.weight * upstream).sum(), parameters)
    one, other = layer.updates["a"], layer.updates["b"]
    product = 5 / 3 * one.lora_B @ one.lora_A + 3 / 2 * other.lora_B @ other.lora_A
    torch.testing.assert_close(found, torch.autograd.grad((product * upstream).sum(), parameters))


def test_two_forward_passes_have_two_gradients(layer):
    """As where gradients are accumulated."""
    layer.eval()
    for _ in range(2):
        layer.weight.sum().backward()
    once = [parameter.grad / 2 for parameter in layer.updates["a"].parameters()]
    layer.zero_grad()
    by_hand(layer).sum().backward()
    torch.testing.assert_close(once, [parameter.grad for parameter in layer.updates["a"].parameters()])


def test_a_function_of_its_own_gives_gradients_too(layer):
    """As fused kernels for the cross-entropy read the weight of an output layer."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return 2 * weight

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    Double.apply(layer.weight).sum().backward()
    found = layer.updates["a"].lora_A.grad.clone()
    layer.zero_grad()
    (2 * by_hand(layer)).sum().backward()
    torch.testing.assert_close(found, layer.updates["a"].lora_A.grad)


@pytest.mark.parametrize("state", ["on", "off", "merged"])
@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.zero_(),
        lambda weight: weight.data.zero_(),
        lambda weight: weight.detach().add_(1),
        lambda weight: weight.__setitem__(0, 1.0),
        lambda weight: weight.t().mul_(2),
        lambda weight: weight.view(-1)[3:].fill_(2),
        lambda weight: weight.unbind()[1].fill_(2),
        lambda weight: weight.detach().copy_(torch.ones(4, 6)),
        lambda weight: torch.add(torch.ones(4, 6), 1, out=weight.detach()),
        lambda weight: nn.init.normal_(weight),
    ],
)
def test_writing_is_an_error_and_changes_nothing(layer, state, write):
    if state == "merged":
        merge(layer.eval())
    before = layer.base.weight.detach().clone()
    layer.off = state == "off"
    seen = layer.eval().weight.clone()
    with pytest.raises(LoRAError, match="read-only"), torch.no_grad():
        write(layer.weight)
    assert torch.equal(layer.base.weight, before)
    assert torch.equal(layer.weight, seen)


def test_it_is_copied_pickled_and_turned_into_other_kinds(layer):
    expected = by_hand(layer).detach()
    weight = layer.weight.detach()
    assert weight.tolist() == expected.tolist()
    assert (weight.numpy() == expected.numpy()).all()
    assert not weight.numpy().flags.writeable
    assert repr(weight) == repr(expected)
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight)), weight.clone(), weight.double().float()):
        assert type(other) is torch.Tensor
        assert torch.equal(other, expected)
    taken = nn.Parameter(torch.zeros(4, 6))
    with torch.no_grad():
        taken.copy_(layer.weight)
    assert torch.equal(taken, expected)


def test_it_has_the_precision_of_the_weights_under_autocast(layer):
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, layer.plain_weight())


def attention():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(12, 3, batch_first=True)
    add(model, "a", LoRAConfig(("out_proj",), rank=3, alpha=5.0), std=1)
    return model, torch.randn(2, 5, 12)


def test_transforms_of_torch_func_see_through_it():
    model, x = attention()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (x, x, x))[0].sum()

    found = torch.func.grad(loss)(trained)
    loss(trained).backward()
    for name, parameter in trained.items():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.filterwarnings("ignore")
def test_compiled_exported_and_traced_attention_keeps_the_adapter():
    model, x = attention()
    expected = model.eval()(x, x, x)[0]
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        exported = torch.export.export(model, (x, x, x), strict=True).module()
        traced = torch.jit.trace(model, (x, x, x))
    for other in (compiled, exported, traced):
        assert relative(other(x, x, x)[0], expected) < 1e-5


@pytest.mark.filterwarnings("ignore:.*nested_tensor")
def test_the_fast_path_of_an_encoder_is_taken(built, monkeypatch):
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 20, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 12)
    updates = inject(model, "a", LoRAConfig((r".*linear\d",), rank=3, alpha=5.0))
    for update in updates.values():
        nn.init.normal_(update.lora_B.data)
    factored = []
    monkeypatch.setattr(layers, "adapted", lambda *given: factored.append(1) or adapted(*given))
    expected = model(x)  # with gradients, so by the slow path
    assert factored
    factored.clear()
    with torch.no_grad():
        for _ in range(3):
            assert relative(model(x), expected) < 1e-5
        assert not factored
        assert len(built) == 4  # one a layer
        set_strength(model, "a", 0.5)
        assert relative(model(x), expected) > 1e-2
    assert updates_of(model, "a").keys() == updates.keys()
    with disabled(model), torch.no_grad():
        assert relative(model(x), expected) > 1e-2
