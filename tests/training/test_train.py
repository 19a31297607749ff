"""Both trainings against a plain script: DataLoader, per-layer parametrization, default Adam, the same seed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist.datasets.dataset import load
from lora_mnist.lora import updates_of
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.training import train
from lora_mnist.training.model import MLP, normalise
from lora_mnist.training.train import train_adapter, train_base


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("digits", tmp_path_factory.mktemp("none"), 0.0, 0)


@pytest.fixture(scope="module")
def settings():
    small = {"model": {"hidden": [40, 30]}, "pretrain": {"epochs": 2}, "finetune": {"steps": 12}}
    return resolve([load_config("default"), load_config("classic"), small], "mnist")


class PlainLoRA(nn.Module):
    """W + (alpha / rank) B A as a parametrization, as the published script has it."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.A = nn.Parameter(nn.init.normal_(torch.empty(1, weight.shape[1])))
        self.B = nn.Parameter(torch.zeros(weight.shape[0], 1))

    def forward(self, weight):
        return weight + self.B @ self.A


def plain_training(model, split, steps=None):
    """Batches of 10 from a DataLoader, Adam at 1e-3; returns the losses of one epoch, or of its first `steps`."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    loader = DataLoader(TensorDataset(*split), batch_size=10, shuffle=True, drop_last=True)
    for images, labels in [*loader][:steps]:
        loss = F.cross_entropy(model(normalise(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_pretraining_is_the_plain_scripts_to_rounding(digits, settings):
    _, history = train_base(settings, digits, torch.device("cpu"))
    torch.manual_seed(settings.seed)
    plain = MLP((40, 30))
    expected = plain_training(plain, (digits.train.images, digits.train.labels))
    assert history.losses[: len(expected)] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_classic_finetuning_is_the_plain_scripts_to_rounding(digits, settings):
    base, _ = train_base(settings, digits, torch.device("cpu"))
    adapted, history = train_adapter(base, "a", 9, settings, digits)

    torch.manual_seed(settings.seed)
    base.requires_grad_(False)
    for linear in base.children():
        parametrize.register_parametrization(linear, "weight", PlainLoRA(linear.weight))
    nines = digits.train.labels == 9
    torch.manual_seed(settings.seed)  # the order of images does not hang on the size of the adapter
    expected = plain_training(base, (digits.train.images[nines], digits.train.labels[nines]), 12)
    assert history.losses == pytest.approx(expected, rel=1e-3, abs=1e-4)
    updates = updates_of(adapted, "a")
    assert set(updates) == {"linear1", "linear2", "linear3"}
    for name, update in updates.items():
        theirs = base.get_submodule(name).parametrizations.weight[0]
        torch.testing.assert_close(update.lora_A, theirs.A, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(update.lora_B, theirs.B, rtol=1e-2, atol=1e-5)


def test_seeds_decide_everything_and_nothing_else_does(digits, settings):
    def bits(seed):
        torch.rand(3)  # whatever was drawn before
        chosen = settings.model_copy(update={"seed": seed})
        return [p.sum().item() for p in train_base(chosen, digits, torch.device("cpu"))[0].parameters()]

    assert bits(0) == bits(0)
    assert bits(0) != bits(1)


def test_images_are_drawn_the_more_often_the_less_sure_the_network_is_of_them(digits, settings, monkeypatch):
    from scipy.special import softmax

    base, _ = train_base(settings, digits, torch.device("cpu"))
    seen = []
    honest = train.focus_batches
    monkeypatch.setattr(train, "focus_batches", lambda *given: seen.append(given[-1]) or honest(*given))
    tuning = settings.finetune.model_copy(update={"hard_examples": 0.7})
    train_adapter(base, "a", 9, settings.model_copy(update={"finetune": tuning}), digits)
    train_adapter(base, "a", 9, settings, digits)
    with torch.no_grad():
        p = softmax(base(normalise(digits.train.images)).double().numpy(), axis=1)
    expected = (1 - p.max(axis=1)) ** 0.7  # whatever the label says
    assert seen[0].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert seen[1] is None  # all alike
