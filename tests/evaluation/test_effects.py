import numpy as np
import pytest
import torch

from lora_mnist.evaluation.effects import PICTURES, first_directions, layer_effects
from lora_mnist.evaluation.predict import logits_of
from lora_mnist.lora import LoRAConfig, inject, strengths, updates_of
from lora_mnist.training.model import MLP

from ..models import adapted, add, config


def delta(model, path):
    """ΔW by hand, fp64."""
    update = updates_of(model, "a")[path]
    product = update.lora_B.detach().double().numpy() @ update.lora_A.detach().double().numpy()
    return update.config.alpha / update.config.rank * product


@pytest.fixture
def images():
    return torch.randint(256, (50, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_norms_and_singular_values_are_those_of_the_written_out_update(images):
    model, base = adapted()
    for path, effect in layer_effects(model, "a", images, 4).items():
        values = np.linalg.svd(delta(model, path), compute_uv=False)[:3]
        assert effect.singular_values == pytest.approx(values, rel=1e-6)
        weight = base.get_submodule(path).weight.detach().double().numpy()
        expected = np.linalg.norm(delta(model, path)) / np.linalg.norm(weight)
        assert effect.relative_norm == pytest.approx(expected, rel=1e-6)


def test_missed_without_a_layer_is_counted_with_that_layer_as_in_the_base(images):
    model, base = adapted()
    digit = int(logits_of(model, images).argmax(1).mode().values)
    found = layer_effects(model, "a", images, digit)
    for path in found:
        by_hand = MLP(base.hidden)
        by_hand.load_state_dict(base.state_dict())
        with torch.no_grad():
            for other in found.keys() - {path}:
                by_hand.get_submodule(other).weight += torch.from_numpy(delta(model, other)).float()
        missed = int((logits_of(by_hand, images).argmax(1) != digit).sum())
        assert found[path].missed_without == missed
    assert len({effect.missed_without for effect in found.values()}) > 1  # or the test could not fail
    assert strengths(model) == {"a": 1.0}


def test_at_rank_1_the_direction_is_lora_a():
    model, _ = adapted(rank=1)
    row = updates_of(model, "a")["linear1"].lora_A.detach()[0]
    direction = first_directions(model, "a").flatten()
    assert abs(float(direction @ (row / row.norm()))) == pytest.approx(1, abs=1e-5)
    assert direction[direction.abs().argmax()] > 0


def test_directions_are_the_right_singular_vectors_strongest_first():
    model, _ = adapted(rank=PICTURES + 2, hidden=(40, 11))
    directions = first_directions(model, "a").flatten(1).double().numpy()
    _, _, vectors = np.linalg.svd(delta(model, "linear1"), full_matrices=False)
    assert len(directions) == PICTURES
    assert np.abs((directions * vectors[:PICTURES]).sum(1)) == pytest.approx(1, abs=1e-5)


def test_without_the_first_layer_there_is_no_direction():
    model = MLP((12, 11))
    add(model, "a", config(targets=("linear2",)))
    assert len(first_directions(model, "a")) == 0
    inject(model, "b", LoRAConfig(("linear1",), rank=1))
    assert len(first_directions(model, "b")) == 1
