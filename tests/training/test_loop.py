import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import UsageError
from lora_mnist.lora import LoRAConfig, inject
from lora_mnist.lora.fingerprint import compute_fingerprint
from lora_mnist.settings.config import PretrainSettings
from lora_mnist.training.loop import Adam, TrainingData, train
from lora_mnist.training.model import MLP, normalise

from ..conftest import printed_by

IMAGES = torch.randint(60, (200, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(10, (200,), generator=torch.Generator().manual_seed(1))
IMAGES[torch.arange(200), 2 * LABELS] = 255  # a bright row for each digit, so that there is something to learn
BATCHES = torch.randint(200, (60, 16), generator=torch.Generator().manual_seed(2))
DATA = TrainingData(IMAGES, LABELS, BATCHES)


def settings(**changes):
    usual = {"batch_size": 16, "learning_rate": 1e-3, "optimizer": "adam", "schedule": "constant", "weight_decay": 0.0}
    return PretrainSettings(**{**usual, "epochs": 1, "rare_digit": "none", "rare_share": 1.0, **changes})


def trained(**changes):
    torch.manual_seed(0)
    model = MLP((12, 11))
    return model, train(model, DATA, settings(**changes))


@pytest.mark.parametrize(("optimizer", "schedule"), [("adam", "cosine"), ("adamw", "cosine"), ("adam", "constant")])
def test_it_is_the_textbook_loop(optimizer, schedule):
    model, history = trained(optimizer=optimizer, weight_decay=0.1, schedule=schedule)
    assert not model.training
    torch.manual_seed(0)
    plain = MLP((12, 11))
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
    steps = kind(plain.parameters(), lr=1e-3, weight_decay=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(steps, len(BATCHES))
    for i, batch in enumerate(BATCHES):
        loss = F.cross_entropy(plain(normalise(IMAGES[batch])), LABELS[batch])
        assert history.rates[i] == pytest.approx(steps.param_groups[0]["lr"])
        assert history.losses[i] == pytest.approx(loss.item(), rel=1e-4)
        steps.zero_grad()
        loss.backward()
        steps.step()
        if schedule == "cosine":
            cosine.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_offsets_and_smoothing_are_in_the_loss_and_not_in_the_model():
    torch.manual_seed(0)
    model = MLP((12, 11))
    logits = model(normalise(IMAGES[BATCHES[0]])).detach()
    offsets = torch.linspace(-1, 1, 10)
    history = train(model, TrainingData(IMAGES, LABELS, BATCHES[:1], None, offsets, 0.1), settings(learning_rate=1e-30))
    wanted = 0.9 * F.one_hot(LABELS[BATCHES[0]], 10) + 0.1 / 10  # label smoothing, arXiv 1512.00567, section 7
    by_hand = -(wanted * (logits + offsets).log_softmax(1)).sum(1).mean()
    assert history.losses[0] == pytest.approx(float(by_hand), rel=1e-5)
    torch.testing.assert_close(model(normalise(IMAGES[BATCHES[0]])).detach(), logits)


def test_looking_at_val_at_each_tenth_changes_no_bit_of_what_is_trained():
    plain = MLP((12, 11))
    inject(plain, "a", LoRAConfig(rank=2, dropout=0.3))  # dropout draws numbers, but only in training
    watched, val = copy.deepcopy(plain), Split(IMAGES[::2], LABELS[::2])
    torch.manual_seed(1)
    history = train(plain, DATA, settings(learning_rate=0.1))
    torch.manual_seed(1)
    seen = train(watched, DATA, settings(learning_rate=0.1), val=val)
    assert compute_fingerprint(watched.state_dict()) == compute_fingerprint(plain.state_dict())
    assert (seen.losses, history.val) == (history.losses, ())
    assert [point.step for point in seen.val] == [6, 12, 18, 24, 30, 36, 42, 48, 54, 60]
    logits = watched(normalise(val.images)).detach()
    assert seen.val[-1].loss == pytest.approx(float(F.cross_entropy(logits, val.labels)))
    assert seen.val[-1].accuracy == pytest.approx(float((logits.argmax(1) == val.labels).float().mean()))


def test_what_requires_no_gradient_keeps_its_bytes():
    torch.manual_seed(0)
    model = MLP((12, 11))
    model.linear1.requires_grad_(False)
    before = compute_fingerprint(model.linear1.state_dict())
    train(model, DATA, settings(weight_decay=0.5))
    assert compute_fingerprint(model.linear1.state_dict()) == before
    assert model.linear1.weight.grad is None


def test_a_loss_that_leaves_the_numbers_is_an_error():
    with pytest.raises(UsageError, match=r"loss became (nan|inf) in step \d+") as caught:
        trained(learning_rate=1e30)
    assert "--learning-rate" in str(caught.value)


def test_a_last_step_that_leaves_the_numbers_is_an_error_too():
    torch.manual_seed(0)
    with pytest.raises(UsageError, match="last step"):
        train(MLP((12, 11)), TrainingData(IMAGES, LABELS, BATCHES[:1]), settings(learning_rate=3e38))


# Adam -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_the_one_of_torch_bit_for_bit(decoupled, decay):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    theirs = copy.deepcopy(ours)
    adam = Adam(list(ours.parameters()), decay, decoupled)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    reference = kind(theirs.parameters(), weight_decay=decay, fused=True)
    for step in range(30):
        x, rate = torch.randn(4, 7), 1e-2 / (step + 1)
        for model in (ours, theirs):
            (model(x) ** 2).sum().backward()
        adam.step(rate)
        assert all(weight.grad is None for weight in ours.parameters())
        reference.param_groups[0]["lr"] = rate
        reference.step()
        reference.zero_grad()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_a_stack_moves_every_job_as_its_own_optimizer_does():
    torch.manual_seed(0)
    start, rates = torch.randn(4, 3, 5), [0.1, 0.1, 0.02, 0.1]
    stacked = nn.Parameter(start.clone())
    alone = [nn.Parameter(one.clone()) for one in start]
    together = Adam([stacked], 0.3, True, rates)
    apart = [Adam([one], 0.3, True) for one in alone]
    for factor in (1.0, 0.5, 0.25):
        gradient = torch.randn_like(start)
        stacked.grad = gradient.clone()
        together.step(factor)
        for one, own, rate, part in zip(alone, apart, rates, gradient, strict=True):
            one.grad = part.clone()
            own.step(rate * factor)
    assert stacked.grad is None
    assert torch.equal(stacked.detach(), torch.stack([one.detach() for one in alone]))


def test_training_loads_neither_the_compiler_nor_sympy(tmp_path):
    code = (
        "import sys; from lora_mnist.cli.main import main\n"
        "options = ['--config', 'smoke', '--dataset', 'mnist-5k', '--quiet']\n"
        f"assert main(['run', *options, '--run', {str(tmp_path)!r}]) == 0\n"
        "print({'torch._dynamo', 'sympy'} & set(sys.modules))"
    )
    assert printed_by(code).endswith("\nset()\n")
