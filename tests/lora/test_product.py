"""An adapted layer as one step of autograd: its derivatives, what it keeps, and when the parts are called instead."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lora_mnist.lora import LoRALinear, layers
from lora_mnist.lora.product import adapted

from ..models import config, generator


def a_layer(adapters=("a",), dtype=torch.float64, **settings):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(6, 4, dtype=dtype))
    for name in adapters:
        nn.init.normal_(layer.add(name, config(**settings), generator()).lora_B.data)
    return layer


@pytest.fixture
def at_once(monkeypatch):
    """A list that grows whenever a layer is computed in one step."""
    calls = []
    monkeypatch.setattr(layers, "adapted", lambda *given: calls.append(1) or adapted(*given))
    return calls


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)], ids=str)
@pytest.mark.parametrize("frozen", [(), ("a",), ("a", "b")], ids=str)
@pytest.mark.parametrize("of_x", [True, False])
def test_gradients_and_their_gradients_are_those_of_finite_differences(at_once, shape, frozen, of_x):
    layer = a_layer(("a", "b"))
    for name in frozen:
        layer.updates[name].requires_grad_(False)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=of_x)
    inputs = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]
    if inputs:
        assert gradcheck(lambda *_: layer(x), inputs)
        assert gradgradcheck(lambda *_: layer(x), inputs)
    assert at_once or not inputs
    assert layer(x).requires_grad == bool(inputs)


def test_what_no_gradient_needs_is_not_kept():
    layer, x = a_layer(("a",)), torch.randn(50, 6, dtype=torch.float64)
    weight, factors = layer.base.weight, list(layer.updates["a"].parameters())

    def kept(x):
        found = []
        with saved_tensors_hooks(lambda tensor: found.append(tensor.data_ptr()) or tensor, lambda tensor: tensor):
            layer(x)
        return {"x": x.data_ptr() in found, "W": weight.data_ptr() in found}

    assert kept(x) == {"x": True, "W": False}
    assert kept(x.clone().requires_grad_()) == {"x": True, "W": True}
    for factor in factors:
        factor.requires_grad_(False)
    assert kept(x.clone().requires_grad_()) == {"x": False, "W": True}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, in forward mode
def test_transforms_of_torch_func_differentiate_and_map_it():
    layer, x = a_layer(), torch.randn(5, 6, dtype=torch.float64)
    update = layer.updates["a"]
    factors = {f"updates.a.{name}": p.detach() for name, p in update.named_parameters()}

    def loss(factors, row):
        return functional_call(layer, factors, (row,)).pow(2).sum()

    mapped = vmap(grad(loss), in_dims=(None, 0))(factors, x)  # a gradient a row
    for i, row in enumerate(x):
        layer.zero_grad()
        layer(row).pow(2).sum().backward()
        for name, parameter in update.named_parameters():
            torch.testing.assert_close(mapped[f"updates.a.{name}"][i], parameter.grad)
    along = torch.randn_like(x)
    slope = F.linear(along, layer.plain_weight())
    torch.testing.assert_close(jvp(layer, (x,), (along,))[1], slope)
    with forward_ad.dual_level():
        torch.testing.assert_close(forward_ad.unpack_dual(layer(forward_ad.make_dual(x, along))).tangent, slope)


def test_a_checkpoint_computes_it_again():
    layer, x = a_layer(), torch.randn(5, 6, dtype=torch.float64)
    gradients = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        call(x).pow(2).sum().backward()
        gradients.append([p.grad for p in layer.updates.parameters()])
    assert all(map(torch.equal, *gradients))


def hook_of(kind, layer, seen):
    update = layer.updates["a"]
    return {
        "the base's": lambda: layer.base.register_forward_hook(lambda *_: seen.append(1)),
        "before the base": lambda: layer.base.register_forward_pre_hook(lambda *_: seen.append(1)),
        "the update's": lambda: update.register_forward_hook(lambda *_: seen.append(1)),
        "everywhere": lambda: nn.modules.module.register_module_forward_hook(
            lambda module, *_: seen.append(1) if module is layer.base else None
        ),
        "backwards": lambda: layer.base.register_full_backward_hook(lambda *_: seen.append(1)),
    }[kind]()


@pytest.mark.parametrize("kind", ["the base's", "before the base", "the update's", "everywhere", "backwards"])
def test_a_hook_of_a_part_is_called_and_changes_no_bit(kind, at_once):
    layer, x = a_layer(dtype=torch.float32), torch.randn(5, 6, requires_grad=True)
    expected = layer(x)
    seen, before = [], len(at_once)
    handle = hook_of(kind, layer, seen)
    found = layer(x)
    found.sum().backward()
    handle.remove()
    assert (len(seen), len(at_once)) == (1, before)
    assert torch.equal(found, expected)


def test_a_forward_that_was_replaced_is_called(at_once):
    layer, x = a_layer(), torch.randn(5, 6, dtype=torch.float64)
    expected, honest = layer(x), layer.base.forward
    layer.base.forward = lambda x: honest(x) + 1  # as libraries do that move weights on demand
    before = len(at_once)
    torch.testing.assert_close(layer(x), expected + 1)
    assert len(at_once) == before


def test_an_update_whose_forward_was_replaced_is_called():
    layer, x = a_layer(), torch.randn(5, 6, dtype=torch.float64)
    layer.updates["a"].forward = lambda x, y: y
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_base_that_was_unfrozen_gets_its_gradient(part):
    layer, x = a_layer(), torch.randn(5, 6, dtype=torch.float64)
    plain = copy.deepcopy(layer.base).requires_grad_(True)
    getattr(layer.base, part).requires_grad_(True)
    upstream = torch.randn(5, 4, dtype=torch.float64)
    for net in (layer, plain):
        (net(x) * upstream).sum().backward()
    torch.testing.assert_close(getattr(layer.base, part).grad, getattr(plain, part).grad)


def test_shapes_can_be_asked_for_without_numbers():
    layer = a_layer().to("meta")
    assert layer(torch.empty(2, 3, 6, dtype=torch.float64, device="meta")).shape == (2, 3, 4)


def test_a_sparse_input_is_taken():
    layer, x = a_layer(), torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(layer(x.to_sparse()), layer(x))
