import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from lora_mnist.training import optimizer
from lora_mnist.training.optimizer import FusedAdam, PublicAdam, StackedAdam, adam

BOTH = pytest.mark.parametrize("decoupled", [False, True])


@pytest.fixture
def asked_anew():
    """Let the kernels be tried again, and forgotten afterwards."""
    optimizer._way.cache_clear()
    yield
    optimizer._way.cache_clear()


def steps(make, decoupled, decay=0.1):
    """A small network after 30 steps of `make`'s optimizer and of torch's fused one, and the two optimizers."""
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    theirs = copy.deepcopy(ours)
    one = make(list(ours.parameters()), decay, decoupled)
    reference = torch.optim.AdamW if decoupled else torch.optim.Adam
    other = reference(theirs.parameters(), weight_decay=decay, fused=True)
    for step in range(30):
        x = torch.randn(4, 7)
        for model in (ours, theirs):
            (model(x) ** 2).sum().backward()
        rate = 1e-2 / (step + 1)
        one.step(rate)
        other.param_groups[0]["lr"] = rate
        other.step()
        other.zero_grad()
        assert all(weight.grad is None for weight in ours.parameters())
    return one, list(ours.parameters()), list(theirs.parameters())


@BOTH
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_the_one_of_torch_bit_for_bit(decoupled, decay, asked_anew):
    one, ours, theirs = steps(adam, decoupled, decay)
    assert type(one) is FusedAdam
    assert all(map(torch.equal, ours, theirs))


@BOTH
def test_without_our_way_to_the_kernel_torchs_own_class_finds_it(decoupled, asked_anew, monkeypatch):
    monkeypatch.setattr(FusedAdam, "step", _refuse)
    one, ours, theirs = steps(adam, decoupled)
    assert type(one) is PublicAdam
    assert all(map(torch.equal, ours, theirs))


def _refuse(*_, **__):
    raise RuntimeError("no such operator")


def _do_nothing(*_, **__):
    pass


@BOTH
@pytest.mark.parametrize("kernel", [None, _refuse, _do_nothing], ids=["missing", "refuses", "does nothing"])
def test_without_the_kernel_torchs_own_class_does_without(decoupled, kernel, asked_anew, monkeypatch):
    with monkeypatch.context() as patched:
        for name in ("_fused_adam_", "_fused_adamw_"):
            if kernel is None:
                patched.delattr(torch, name)
            else:
                patched.setattr(torch, name, kernel)
        way = optimizer._way("cpu", decoupled)
    one, ours, theirs = steps(way, decoupled)
    assert type(one) is PublicAdam
    assert not one.optimizer.defaults["fused"]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_kernel_is_tried_once(asked_anew, monkeypatch):
    tried = []
    honest = optimizer._works
    monkeypatch.setattr(optimizer, "_works", lambda *about: tried.append(about) or honest(*about))
    for _ in range(3):
        adam([torch.nn.Parameter(torch.ones(2))])
    assert tried == [(FusedAdam, "cpu", False)]


def test_training_never_loads_the_compiler(tmp_path):
    code = (
        "import sys; from lora_mnist.cli.main import main\n"
        "options = ['--config', 'smoke', '--dataset', 'digits', '--quiet']\n"
        f"assert main(['run', *options, '--run', {str(tmp_path)!r}]) == 0\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nFalse\n")


def test_a_stack_moves_every_job_as_its_own_optimizer_does():
    torch.manual_seed(0)
    start, rates = torch.randn(4, 3, 5), [0.1, 0.1, 0.02, 0.1]
    stacked = nn.Parameter(start.clone())
    alone = [nn.Parameter(one.clone()) for one in start]
    together = StackedAdam([stacked], rates, 0.3, decoupled=True)
    apart = [adam([one], 0.3, decoupled=True) for one in alone]
    for factor in (1.0, 0.5, 0.25):
        gradient = torch.randn_like(start)
        stacked.grad = gradient.clone()
        together.step(factor)
        for one, own, rate, part in zip(alone, apart, rates, gradient, strict=True):
            one.grad = part.clone()
            own.step(rate * factor)
    assert stacked.grad is None
    assert torch.equal(stacked.detach(), torch.stack([one.detach() for one in alone]))
