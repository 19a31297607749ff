import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from lora_mnist.training.optimizer import Adam, StackedAdam

BOTH = pytest.mark.parametrize("decoupled", [False, True])


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
def test_it_is_the_one_of_torch_bit_for_bit(decoupled, decay):
    _, ours, theirs = steps(Adam, decoupled, decay)
    assert all(map(torch.equal, ours, theirs))


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
    apart = [Adam([one], 0.3, decoupled=True) for one in alone]
    for factor in (1.0, 0.5, 0.25):
        gradient = torch.randn_like(start)
        stacked.grad = gradient.clone()
        together.step(factor)
        for one, own, rate, part in zip(alone, apart, rates, gradient, strict=True):
            one.grad = part.clone()
            own.step(rate * factor)
    assert stacked.grad is None
    assert torch.equal(stacked.detach(), torch.stack([one.detach() for one in alone]))
