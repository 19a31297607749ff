"""Both trainings against a plain script: DataLoader, per-layer parametrization, default Adam, the same seed. And a
stack of fine-tunings against the same ones alone."""

import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist.datasets.dataset import load
from lora_mnist.lora import fingerprint_model, updates_of
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.training.batches import mixed_batches
from lora_mnist.training.model import MLP, normalise
from lora_mnist.training.train import (
    NAME,
    finetuning_data,
    least_confidence,
    shape_of,
    train_base,
    train_on_digit,
    train_stack,
)
from tests.conftest import relative

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("mnist-5k", tmp_path_factory.mktemp("none"), 0.0, 0)


@pytest.fixture(scope="module")
def settings():
    small = {"model": {"hidden": [40, 30]}, "pretrain": {"epochs": 2}, "finetune": {"steps": 12}}
    return resolve([load_config("default"), load_config("classic"), small], "mnist")


@pytest.fixture(scope="module")
def base(settings, digits):
    return train_base(settings, digits, CPU)[0]


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
    _, history = train_base(settings, digits, CPU)
    torch.manual_seed(settings.seed)
    plain = MLP((40, 30))
    expected = plain_training(plain, (digits.train.images, digits.train.labels))
    assert history.losses[: len(expected)] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_classic_finetuning_is_the_plain_scripts_to_rounding(digits, settings):
    base, _ = train_base(settings, digits, CPU)
    adapted, history = train_on_digit(base, "a", 9, settings, digits)

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
    def fingerprint(seed):
        torch.rand(3)  # whatever was drawn before
        return fingerprint_model(train_base(settings.model_copy(update={"seed": seed}), digits, CPU)[0])

    assert fingerprint(0) == fingerprint(0)
    assert fingerprint(0) != fingerprint(1)


def test_images_are_drawn_the_more_often_the_less_sure_the_network_is_of_them(base, digits, settings):
    with torch.no_grad():
        p = softmax(base(normalise(digits.train.images)).double().numpy(), axis=1)
    uncertainty = least_confidence(base, digits.train.images)
    assert uncertainty.numpy() == pytest.approx(1 - p.max(axis=1), abs=1e-5)  # whatever the label says

    def batches(weights):
        generator = torch.Generator().manual_seed(settings.seed)
        return mixed_batches(digits.train.labels == 9, settings.finetune.focus, 10, 12, generator, weights)

    hard = with_(settings, hard_examples=0.7)
    assert torch.equal(finetuning_data(9, hard, digits, uncertainty).batches, batches(uncertainty**0.7))
    assert torch.equal(finetuning_data(9, settings, digits, uncertainty).batches, batches(None))  # all alike


# Many at once ---------------------------------------------------------------------------------------------------------


def job(seed=0, **tuning):
    small = {"model": {"hidden": [40, 30]}, "seed": seed}
    usual = {"steps": 40, "batch_size": 10, "rank": 2, **tuning}
    return resolve([load_config("default"), small, {"finetune": usual}], "mnist-5k")


def with_(settings, **tuning):
    return settings.model_copy(update={"finetune": settings.finetune.model_copy(update=tuning)})


JOBS = [
    (3, job()),
    (7, job(5)),
    (7, job(5, learning_rate=0.01)),
    (1, job(2, focus=0.5, hard_examples=0.0, logit_adjustment=1.0, rotate=3.0)),
    (1, job(2, learning_rate=0.01)),
]


@pytest.mark.parametrize("common", [{}, {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "constant"}])
def test_every_job_ends_where_it_ends_alone(base, digits, common):
    jobs = [(digit, with_(one, **common)) for digit, one in JOBS]
    uncertainty = least_confidence(base, digits.train.images)
    before = fingerprint_model(base)
    for (digit, one), tuned in zip(jobs, train_stack(base, jobs, digits, uncertainty=uncertainty), strict=True):
        alone, _ = train_on_digit(base, NAME, digit, one, digits)
        for path, update in updates_of(alone, NAME).items():
            ours = updates_of(tuned, NAME)[path]
            assert relative(ours.lora_A, update.lora_A) < 1e-3
            assert relative(ours.lora_B, update.lora_B) < 1e-3
    assert fingerprint_model(base) == before


def test_a_job_that_leaves_the_numbers_takes_no_other_with_it(base, digits):
    wild = (3, job(learning_rate=1e30, hard_examples=0.0))
    calm = (7, job(5, hard_examples=0.0))
    together = train_stack(base, [wild, calm], digits)
    finite = [all(bool(weight.isfinite().all()) for weight in network.parameters()) for network in together]
    assert finite == [False, True]
    (alone,) = train_stack(base, [calm], digits)
    for path, update in updates_of(alone, NAME).items():
        assert relative(updates_of(together[1], NAME)[path].lora_B, update.lora_B) < 1e-4


def test_the_shape_is_what_a_stack_has_in_common():
    recipe = job().finetune
    for other in ({"digit": 4}, {"learning_rate": 1.0}, {"focus": 0.9}, {"hard_examples": 0.0}, {"rotate": 3.0}):
        assert shape_of(recipe.model_copy(update=other)) == shape_of(recipe)
    still = {"shift": 0.0, "rotate": 0.0, "zoom": 0.0}
    for other in ({"rank": 3}, {"alpha": 3.0}, {"steps": 3}, {"batch_size": 3}, {"schedule": "constant"}, still):
        assert shape_of(recipe.model_copy(update=other)) != shape_of(recipe)
