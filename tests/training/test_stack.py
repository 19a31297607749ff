"""A stack of fine-tunings against the same ones alone."""

import pytest
import torch

from lora_mnist.datasets.dataset import load
from lora_mnist.lora import fingerprint_model, updates_of
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.training.stack import NAME, can_be_stacked, shape_of, train_stack
from lora_mnist.training.train import train_adapter, train_base, uncertainty_of
from tests.conftest import relative


def settings(seed=0, **tuning):
    small = {"model": {"hidden": [40, 30]}, "pretrain": {"epochs": 3}, "seed": seed}
    usual = {"steps": 40, "batch_size": 10, "rank": 2, **tuning}
    return resolve([load_config("default"), small, {"finetune": usual}], "digits")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("digits", tmp_path_factory.mktemp("none"), 0.25, 0)


@pytest.fixture(scope="module")
def base(digits):
    return train_base(settings(), digits, torch.device("cpu"))[0]


JOBS = [
    (digit, settings(seed, **recipe))
    for digit, seed, recipe in [
        (3, 0, {}),
        (7, 5, {}),
        (7, 5, {"learning_rate": 0.01}),
        (1, 2, {"focus": 0.5, "hard_examples": 0.0, "logit_adjustment": 1.0, "rotate": 3.0}),
        (1, 2, {"learning_rate": 0.01}),
    ]
]


@pytest.mark.parametrize("common", [{}, {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "constant"}])
def test_every_job_ends_where_it_ends_alone(base, digits, common):
    jobs = [(digit, with_(job, **common)) for digit, job in JOBS]
    uncertainty = uncertainty_of(base, digits.train.images)
    before = fingerprint_model(base)
    for (digit, job), tuned in zip(jobs, train_stack(base, jobs, digits, uncertainty=uncertainty), strict=True):
        alone, _ = train_adapter(base, NAME, digit, job, digits)
        assert tuned.finite
        for path, update in updates_of(alone, NAME).items():
            ours = updates_of(tuned.network, NAME)[path]
            assert relative(ours.lora_A, update.lora_A) < 1e-3
            assert relative(ours.lora_B, update.lora_B) < 1e-3
    assert fingerprint_model(base) == before


def with_(job, **tuning):
    return job.model_copy(update={"finetune": job.finetune.model_copy(update=tuning)})


def test_each_starts_with_the_bits_that_it_draws_alone(base, digits):
    jobs = [(digit, with_(job, learning_rate=1e-30)) for digit, job in JOBS]  # nothing moves
    uncertainty = uncertainty_of(base, digits.train.images)
    for (digit, job), tuned in zip(jobs, train_stack(base, jobs, digits, uncertainty=uncertainty), strict=True):
        alone, _ = train_adapter(base, NAME, digit, job, digits)
        for path, update in updates_of(alone, NAME).items():
            assert torch.equal(updates_of(tuned.network, NAME)[path].lora_A, update.lora_A)


def test_a_job_that_leaves_the_numbers_takes_no_other_with_it(base, digits):
    wild = (3, settings(learning_rate=1e30, hard_examples=0.0))
    calm = (7, settings(5, hard_examples=0.0))
    together = train_stack(base, [wild, calm], digits)
    assert [tuned.finite for tuned in together] == [False, True]
    (alone,) = train_stack(base, [calm], digits)
    for path, update in updates_of(alone.network, NAME).items():
        assert relative(updates_of(together[1].network, NAME)[path].lora_B, update.lora_B) < 1e-4


def test_the_shape_is_what_a_stack_has_in_common():
    recipe = settings().finetune
    for other in ({"digit": 4}, {"learning_rate": 1.0}, {"focus": 0.9}, {"hard_examples": 0.0}, {"rotate": 3.0}):
        assert shape_of(recipe.model_copy(update=other)) == shape_of(recipe)
    for other in ({"rank": 3}, {"alpha": 3.0}, {"steps": 3}, {"batch_size": 3}, {"schedule": "constant"}):
        assert shape_of(recipe.model_copy(update=other)) != shape_of(recipe)
    assert shape_of(recipe.model_copy(update={"shift": 0.0, "rotate": 0.0, "zoom": 0.0})) != shape_of(recipe)
    assert can_be_stacked(recipe)
    assert not can_be_stacked(recipe.model_copy(update={"dropout": 0.1}))
