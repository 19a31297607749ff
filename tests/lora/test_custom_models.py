"""Small models of many kinds, tried as PEFT's and torchtune's own tests try theirs."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.lora import (
    LoRAConfig,
    base_tensors,
    changed_bytes,
    disabled,
    inject,
    load_adapter,
    merge,
    merged_copy,
    remove,
    save_adapter,
    unmerge,
    updates_of,
)

from ..conftest import relative
from ..models import by_hand, generator


def sequence(**layers):
    return nn.Sequential(OrderedDict(layers))


def numbers(*shape):
    return torch.randn(shape, generator=generator(7))


class Residual(nn.Module):
    """The sum is taken in place."""

    def __init__(self):
        super().__init__()
        self.lin0, self.lin1 = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        y = self.lin0(x)
        y += x
        return self.lin1(F.relu_(y))


def mlp(bias=True):
    layers = {"lin0": nn.Linear(10, 20, bias=bias), "relu": nn.ReLU(), "lin1": nn.Linear(20, 3, bias=bias)}
    return sequence(**layers, softmax=nn.LogSoftmax(-1))


MODELS = {  # a model, and what goes in
    "mlp": lambda: (mlp(), numbers(4, 10)),
    "no bias": lambda: (mlp(bias=False), numbers(4, 10)),
    "sequences": lambda: (mlp(), numbers(2, 5, 10)),
    "layer norm": lambda: (sequence(lin0=nn.Linear(6, 8), norm=nn.LayerNorm(8), lin1=nn.Linear(8, 2)), numbers(4, 6)),
    "batch norm": lambda: (sequence(lin0=nn.Linear(6, 8), norm=nn.BatchNorm1d(8).eval()), numbers(4, 6)),
    "embedding": lambda: (sequence(emb=nn.Embedding(9, 6), lin0=nn.Linear(6, 4)), torch.arange(8).view(2, 4)),
    "convolution": lambda: (
        sequence(conv=nn.Conv2d(1, 3, 3), relu=nn.ReLU(True), flat=nn.Flatten(), lin0=nn.Linear(27, 4)),
        numbers(2, 1, 5, 5),
    ),
    "nested": lambda: (sequence(a=sequence(lin0=nn.Linear(6, 5)), lin1=nn.Linear(5, 2)), numbers(3, 6)),
    "residual": lambda: (Residual(), numbers(3, 6)),
    "to one": lambda: (sequence(lin0=nn.Linear(6, 12), relu=nn.ReLU(True), lin1=nn.Linear(12, 1)), numbers(3, 6)),
}
CASES = {  # the model, and an adapter; rank 3 and alpha 5 unless something else is tried
    "mlp, the first": ("mlp", {"targets": "lin0"}),
    "mlp, both": ("mlp", {"targets": ("lin0", "lin1")}),
    "mlp, an expression": ("mlp", {"targets": r"lin\d"}),
    "mlp, rsLoRA": ("mlp", {"targets": "lin0", "rslora": True}),
    "mlp, gaussian": ("mlp", {"targets": "lin1", "init": "gaussian"}),
    "mlp, ranks": ("mlp", {"targets": ("lin0", "lin1"), "rank_pattern": {"lin.*0": 7}, "alpha_pattern": {"lin1": 2.0}}),
    "sequences": ("sequences", {"rank": 2}),
    **{name: (name, {"targets": "lin0"}) for name in MODELS if name not in ("mlp", "sequences", "to one")},
    "to one": ("to one", {"targets": ("lin0", "lin1"), "rank": 1}),
}


@pytest.fixture(params=CASES)
def case(request):
    """A base without dropout, the same with an adapter whose B is still 0, and what goes in."""
    name, changes = CASES[request.param]
    torch.manual_seed(0)
    base, x = MODELS[name]()
    model = copy.deepcopy(base)
    inject(model, "a", LoRAConfig(**{"rank": 3, "alpha": 5.0, **changes}), generator())
    return base, model, x


def train(model, x, steps=4):
    """Some steps towards nothing in particular: A moves from the second on, since B is 0 before."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in range(steps):
        gradients = torch.autograd.grad(model(x).pow(2).sum(), trained)
        length = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.data -= 0.1 / length * gradient


# PEFT's test_custom_models: a model before, in and after training, saved, and merged -----------------------------


def test_training_moves_a_and_b_and_no_byte_of_the_base_and_gives_w_plus_scaling_ba(case):
    base, model, x = case
    assert torch.equal(model(x), base(x))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, x)
    moved = set(changed_bytes(before, model.state_dict()))
    assert moved == {name for name in before if ".lora_" in name}
    assert changed_bytes(base.state_dict(), base_tensors(model)) == {}
    assert not torch.allclose(model(x), base(x), rtol=1e-3)
    expected = copy.deepcopy(base)
    for path, update in updates_of(model, "a").items():
        own = update.config
        scaling = own.alpha / own.rank**0.5 if own.rslora else own.alpha / own.rank
        expected = by_hand(expected, {path: update}, scaling)
    assert relative(model(x), expected(x)) < 1e-5


def test_what_was_trained_is_switched_saved_merged_and_removed(case, tmp_path):
    base, model, x = case
    train(model, x)
    trained = model.eval()(x)
    with disabled(model):
        assert torch.equal(model(x), base(x))
    save_adapter(tmp_path, model, "a")
    loaded = copy.deepcopy(base)
    load_adapter(tmp_path, loaded, "b")
    assert torch.equal(loaded(x), trained)
    torch.testing.assert_close(base_tensors(loaded), base.state_dict(), rtol=0, atol=0)
    merge(model)
    assert relative(model(x), trained) < 1e-5
    unmerge(model)
    assert torch.equal(model(x), trained)
    plain = merged_copy(model)
    assert plain.state_dict().keys() == base.state_dict().keys()
    assert relative(plain(x), trained) < 1e-5
    remove(model, "a")
    assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]


@pytest.mark.filterwarnings("ignore")  # theirs
def test_pefts_trains_to_the_same_numbers(case):
    import_torchvision()  # transformers, which PEFT imports, imports it
    import peft

    base, model, x = case
    ranks = {f"^{path}$": update.config.rank for path, update in updates_of(model, "a").items()}
    alphas = {f"^{path}$": update.config.alpha for path, update in updates_of(model, "a").items()}
    config = {"target_modules": list(updates_of(model, "a")), "rank_pattern": ranks, "alpha_pattern": alphas}
    rslora = any(update.config.rslora for update in updates_of(model, "a").values())
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**config, use_rslora=rslora))
    for path, update in updates_of(model, "a").items():
        layer = theirs.base_model.model.get_submodule(path)
        layer.lora_A.default.weight.data.copy_(update.lora_A.detach())
    train(model, x)
    train(theirs, x)
    assert relative(model(x), theirs(x)) < 1e-4


# torchtune: missing keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["lin0.weight", "lin1.bias", "lin0.updates.a.lora_A", "lin1.updates.a.lora_B"])
def test_a_key_that_a_state_dict_lacks_is_reported(lost):
    model, _ = MODELS["mlp"]()
    inject(model, "a", LoRAConfig(rank=2))
    state = model.state_dict()
    del state[lost]
    assert model.load_state_dict(state, strict=False).missing_keys == [lost]
    with pytest.raises(RuntimeError, match=lost):
        model.load_state_dict(state)
    result = model.load_state_dict({**model.state_dict(), "lin0.updates.b.lora_A": torch.ones(2)}, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], ["lin0.updates.b.lora_A"])
