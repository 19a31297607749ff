import pytest
import torch
from torch.nn import functional as F

from lora_mnist.errors import UsageError
from lora_mnist.lora.fingerprint import compute_fingerprint
from lora_mnist.settings.config import PretrainSettings
from lora_mnist.training.loop import TrainingData, _require_finite, learning_rates, train
from lora_mnist.training.model import MLP, normalise

IMAGES = torch.randint(60, (200, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(10, (200,), generator=torch.Generator().manual_seed(1))
IMAGES[torch.arange(200), 2 * LABELS] = 255  # a bright row for each digit, so that there is something to learn
BATCHES = torch.randint(200, (60, 16), generator=torch.Generator().manual_seed(2))
DATA = TrainingData(IMAGES, LABELS, BATCHES)


def settings(**changes):
    usual = {"batch_size": 16, "learning_rate": 1e-3, "optimizer": "adam", "schedule": "constant", "weight_decay": 0.0}
    return PretrainSettings(**{**usual, "epochs": 1, **changes})


def trained(**changes):
    torch.manual_seed(0)
    model = MLP((12, 11))
    return model, train(model, DATA, settings(**changes))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_it_is_the_textbook_loop(optimizer):
    model, history = trained(optimizer=optimizer, weight_decay=0.1, schedule="cosine")
    torch.manual_seed(0)
    plain = MLP((12, 11))
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
    steps = kind(plain.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, len(BATCHES))
    for i, batch in enumerate(BATCHES):
        loss = F.cross_entropy(plain(normalise(IMAGES[batch])), LABELS[batch])
        assert history.rates[i] == pytest.approx(steps.param_groups[0]["lr"])
        assert history.losses[i] == pytest.approx(loss.item(), rel=1e-4)
        steps.zero_grad()
        loss.backward()
        steps.step()
        schedule.step()
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


def test_the_loss_falls_and_the_model_is_left_in_eval_mode():
    model, history = trained(learning_rate=1e-2)
    assert sum(history.losses[-10:]) < 0.7 * sum(history.losses[:10])
    assert not model.training


def test_the_same_settings_give_the_same_bytes():
    assert compute_fingerprint(trained()[0].state_dict()) == compute_fingerprint(trained()[0].state_dict())
    assert compute_fingerprint(trained()[0].state_dict()) != compute_fingerprint(
        trained(learning_rate=2e-3)[0].state_dict()
    )


def test_what_requires_no_gradient_keeps_its_bytes():
    torch.manual_seed(0)
    model = MLP((12, 11))
    model.linear1.requires_grad_(False)
    before = compute_fingerprint(model.linear1.state_dict())
    train(model, DATA, settings(weight_decay=0.5))
    assert compute_fingerprint(model.linear1.state_dict()) == before
    assert model.linear1.weight.grad is None


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rates_start_at_the_full_rate(schedule):
    rates = learning_rates(settings(schedule=schedule), 100)
    assert rates[0] == 1e-3
    assert rates[50] == pytest.approx(1e-3 if schedule == "constant" else 5e-4)
    assert 0 < rates[-1] <= 1e-3


def test_a_loss_that_leaves_the_numbers_is_an_error():
    with pytest.raises(UsageError, match=r"loss became (nan|inf) in step \d+") as caught:
        trained(learning_rate=1e30)
    assert "--learning-rate" in str(caught.value)


def test_losses_whose_sum_overflows_are_no_bug():
    _require_finite(torch.full((50,), 3e38))


def test_a_last_step_that_leaves_the_numbers_is_an_error_too():
    torch.manual_seed(0)
    with pytest.raises(UsageError, match="last step"):
        train(MLP((12, 11)), TrainingData(IMAGES, LABELS, BATCHES[:1]), settings(learning_rate=3e38))
