import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lora_mnist.training import linear as module
from lora_mnist.training.linear import ONEDNN, Linear, linear

from ..conftest import relative

needs_onednn = pytest.mark.skipif(
    not ONEDNN or module._operator() is None, reason="this torch has not both MKL and oneDNN"
)


@pytest.mark.parametrize("batch", [1, 10, 128])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_a_linear_layer(batch, bias):
    torch.manual_seed(0)
    layer, x, upstream = Linear(784, 300, bias), torch.randn(batch, 784, requires_grad=True), torch.randn(batch, 300)
    exact, y = nn.Linear(784, 300, bias).double(), x.detach().double().requires_grad_()
    exact.load_state_dict(layer.state_dict())
    result, expected = layer(x), exact(y)
    result.backward(upstream)
    expected.backward(upstream.double())
    assert relative(result, expected) < 5e-6
    assert relative(x.grad, y.grad) < 5e-6
    for one, other in zip(layer.parameters(), exact.parameters(), strict=True):
        assert relative(one.grad, other.grad) < 5e-6
    with torch.inference_mode():
        assert torch.equal(layer(x), result)


@pytest.mark.parametrize(
    "x",
    [torch.randn(784, 10).t(), torch.randn(10, 1568)[:, ::2], torch.randn(1, 784).expand(10, 784)],
    ids=["transposed", "every other", "repeated"],
)
def test_the_layout_of_what_comes_in_does_not_matter(x):
    torch.manual_seed(0)
    layer, leaf = Linear(784, 300), x.detach().requires_grad_()
    layer(leaf).sum().backward()  # a gradient of ones, which torch hands on as one number repeated
    exact = layer.weight.detach().double()
    assert relative(layer(x), x.double() @ exact.t() + layer.bias.double()) < 5e-6
    assert relative(leaf.grad, exact.sum(0).expand(10, 784)) < 5e-6
    assert relative(layer.weight.grad, x.double().sum(0).expand(300, 784)) < 5e-6


def test_only_what_is_asked_for_gets_a_gradient():
    layer = Linear(6, 4).requires_grad_(False)
    assert not layer(torch.ones(3, 6)).requires_grad
    layer.bias.requires_grad_()
    layer(torch.ones(3, 6)).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((4,), 3.0))


@needs_onednn
def test_the_large_products_are_not_mkls():
    layer, x = Linear(784, 300), torch.randn(10, 784, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        layer(x).sum().backward()
    calls = {event.key: event.count for event in seen.key_averages()}
    assert calls["mkldnn::_linear_pointwise"] == 2  # forward, and the gradient of x
    assert calls["aten::mm"] == 1  # the gradient of the weight
    assert "aten::addmm" not in calls


@pytest.mark.parametrize(
    "x",
    [torch.ones(6), torch.ones(0, 6), torch.ones(2, 3, 6), torch.ones(3, 6).double(), torch.ones(3, 6).bfloat16()],
    ids=lambda x: f"{tuple(x.shape)}-{x.dtype}",
)
def test_all_else_is_left_to_torch(x):
    layer = Linear(6, 4).to(x.dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_autocast_holds():
    layer, x = Linear(6, 4), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer(x).dtype == torch.bfloat16


@needs_onednn
def test_a_second_derivative_is_refused_rather_than_wrong():
    x, weight = torch.ones(3, 6, requires_grad=True), torch.ones(4, 6, requires_grad=True)
    (first,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def _refuse(*_):
    raise RuntimeError("no such operator")


def _twice(x, weight, *rest):
    return 2 * F.linear(x, weight)


@pytest.fixture
def asked_anew():
    """Let the operator be tried again, and forgotten afterwards."""
    module._operator.cache_clear()
    yield
    module._operator.cache_clear()


@pytest.mark.parametrize("operator", [None, _refuse, _twice], ids=["missing", "refuses", "is another"])
def test_without_the_operator_torch_has_its_way(operator, asked_anew, monkeypatch):
    operators = {} if operator is None else {"_linear_pointwise": operator}
    monkeypatch.setattr(torch.ops, "mkldnn", type("Operators", (), operators))
    torch.manual_seed(0)
    layer, x = Linear(784, 300), torch.randn(10, 784, requires_grad=True)
    result, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert torch.equal(result, expected)
    assert type(result.grad_fn) is type(expected.grad_fn)


@needs_onednn
def test_the_operator_is_tried_once(asked_anew, monkeypatch):
    calls, honest = [], torch.ops.mkldnn._linear_pointwise
    counted = type("Operators", (), {"_linear_pointwise": lambda *given: calls.append(len(given[0])) or honest(*given)})
    monkeypatch.setattr(torch.ops, "mkldnn", counted)
    for _ in range(3):
        linear(torch.ones(5, 4), torch.ones(2, 4))
    assert calls == [1, 5, 5, 5]
