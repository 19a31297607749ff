import copy
import subprocess
import sys

import pytest
import torch

from lora_mnist.training.optimizer import FusedAdam


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("decoupled", "reference"), [(False, torch.optim.Adam), (True, torch.optim.AdamW)])
def test_it_is_the_one_of_torch_bit_for_bit(decoupled, reference, decay):
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    theirs = copy.deepcopy(ours)
    one = FusedAdam(ours.parameters(), decay, decoupled)
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
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        assert all(weight.grad is None for weight in ours.parameters())


def test_training_never_loads_the_compiler(tmp_path):
    code = (
        "import sys; from lora_mnist.cli.commands import main\n"
        "options = ['--config', 'smoke', '--dataset', 'digits', '--quiet']\n"
        f"assert main(['run', *options, '--run', {str(tmp_path)!r}]) == 0\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nFalse\n")
