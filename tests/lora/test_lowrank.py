"""Truncated SVD against numpy's, PEFT's and by hand; combinations against the sum of their parts."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora import (
    Approximation,
    LoRAConfig,
    LoRALinear,
    changes_left_out,
    combine_cat,
    combine_svd,
    extract,
    factorise,
    remove,
    strengths,
    switch,
    updates_of,
)
from lora_mnist.training.model import MLP

from ..conftest import relative
from ..models import LAYERS, Transformer, adapted, add, config

WEIGHTS = {"a": 0.7, "b": -1.5}


def two_adapters():
    """An MLP with adapters a (rank 3, all layers) and b (rank 2, two layers)."""
    model, base = adapted("a")
    add(model, "b", config(rank=2, alpha=3.0, targets=("linear1", "linear3")), seed=5)
    return model, base


def weighted_sum(model, path):
    total = 0
    for name, weight in WEIGHTS.items():
        if path in updates_of(model, name):
            update = updates_of(model, name)[path]
            total = total + weight * update.scaling * (update.lora_B @ update.lora_A).detach()
    return total


@pytest.mark.parametrize("shape", [(10, 10), (7, 12), (12, 7), (1, 5)])
@pytest.mark.parametrize("rank", [1, 3, 50])
def test_factorising_is_numpys_truncated_svd(shape, rank):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    a, b, kept = factorise(matrix, rank)
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    rank = min(rank, *shape)
    assert (a.shape, b.shape, kept.rank) == ((rank, shape[1]), (shape[0], rank), rank)
    np.testing.assert_allclose((b @ a).numpy(), u[:, :rank] * s[:rank] @ vh[:rank], atol=1e-12)
    np.testing.assert_allclose(a @ a.T, np.eye(rank), atol=1e-12)  # A = V_rᵀ, B = U_r S_r
    np.testing.assert_allclose(b.norm(dim=0), s[:rank])
    left = np.linalg.norm(matrix.double().numpy() - (b @ a).numpy())
    assert kept.error == pytest.approx(left / np.linalg.norm(s), abs=1e-12)
    assert kept.energy == pytest.approx((s[:rank] ** 2).sum() / (s**2).sum())


def test_no_change_keeps_everything():
    assert Approximation((0.0, 0.0), 1).energy == 1
    assert Approximation((0.0, 0.0), 1).error == 0
    a, b, kept = factorise(torch.zeros(3, 4), 2)
    assert torch.equal(b @ a, torch.zeros(3, 4).double())
    assert kept.error == 0


@pytest.mark.parametrize(
    ("value", "rank", "named"), [*[(1.0, rank, "`rank`") for rank in (0, -1, True, 1.0)], (math.nan, 1, "NaN")]
)
def test_a_rank_that_is_none_and_a_matrix_that_is_not_finite_are_refused(value, rank, named):
    with pytest.raises(LoRAError, match=named):
        factorise(torch.full((2, 2), value), rank)


def test_extracting_a_change_of_that_rank_is_exact():
    torch.manual_seed(0)
    base = MLP((12, 11))
    tuned = copy.deepcopy(base)
    for layer in tuned.children():
        layer.weight.data += torch.randn(layer.out_features, 2) @ torch.randn(2, layer.in_features) / 10
    model = copy.deepcopy(base)
    kept = extract(model, "x", tuned, 2)
    images = torch.randn(5, 28, 28)
    assert relative(model(images), tuned(images)) < 1e-5
    assert all(layer.energy == pytest.approx(1, abs=1e-9) for layer in kept.values())
    assert all(value == 0 for value in changes_left_out(base, tuned).values())


def test_extracting_less_is_worse_and_reports_by_how_much():
    torch.manual_seed(0)
    base, tuned = MLP((12, 11)), MLP((12, 11))
    energies = []
    for rank in (1, 4, 11):
        model = copy.deepcopy(base)
        kept = extract(model, "x", tuned, rank)
        update, change = updates_of(model, "x")["linear1"], tuned.linear1.weight - base.linear1.weight
        error = float(((update.weight() - change).norm() / change.norm()).detach())
        assert error == pytest.approx(kept["linear1"].error, rel=1e-4)
        energies.append(kept["linear1"].energy)
    assert energies == sorted(energies)
    # a rank above a small layer is that layer's own
    assert {path: layer.rank for path, layer in kept.items()} == {"linear1": 11, "linear2": 11, "linear3": 10}
    assert all(update.scaling == 1 for update in updates_of(model, "x").values())


def test_what_an_adapter_cannot_hold_is_measured():
    base = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].bias.mul_(1.5)
        tuned[0].weight.mul_(9)
        tuned[1].bias.add_(1)  # from 0
    assert changes_left_out(base, tuned) == {"0.bias": pytest.approx(0.5), "1.bias": math.inf, "1.weight": 0.0}


@pytest.mark.parametrize("other", [nn.Linear(4, 2), nn.Linear(4, 3, bias=False)])
def test_networks_of_other_shapes_or_tensors_are_refused(other):
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(LoRAError, match="different tensors"):
        extract(model, "x", nn.Sequential(other), 2)
    with pytest.raises(LoRAError, match="different tensors"):
        changes_left_out(model, nn.Sequential(other))
    assert not isinstance(model[0], LoRALinear)


def test_extracting_looks_past_adapters_that_are_on():
    torch.manual_seed(0)
    tuned = MLP((12, 11))
    model, base = adapted("a")
    extract(model, "x", tuned, 12)
    plain = copy.deepcopy(base)
    extract(plain, "x", tuned, 12)
    assert torch.equal(updates_of(model, "x")["linear1"].weight(), updates_of(plain, "x")["linear1"].weight())
    assert strengths(model) == {"a": 0.0, "x": 1.0}


def test_cat_is_the_weighted_sum_exactly_and_ranks_add_up():
    model, _ = two_adapters()
    switch(model, {"a": 0.1})  # strengths of now do not count
    updates = combine_cat(model, "c", WEIGHTS)
    assert {path: len(update.lora_A) for path, update in updates.items()} == {"linear1": 5, "linear2": 3, "linear3": 5}
    for path, update in updates.items():
        torch.testing.assert_close(update.weight(), weighted_sum(model, path), rtol=1e-5, atol=1e-7)
    assert strengths(model) == {"a": 0.0, "b": 0.0, "c": 1.0}
    image = torch.ones(1, 28, 28)
    with_parts = model(image)
    for name in WEIGHTS:
        remove(model, name)
    assert torch.equal(model(image), with_parts)


def test_svd_is_the_best_of_its_rank_and_reports_its_error():
    model, _ = two_adapters()
    kept = combine_svd(model, "c", WEIGHTS, 2)
    for path in LAYERS:
        total = weighted_sum(model, path).double().numpy()
        u, s, vh = np.linalg.svd(total, full_matrices=False)
        best = u[:, :2] * s[:2] @ vh[:2]
        np.testing.assert_allclose(updates_of(model, "c")[path].weight().detach(), best, atol=1e-5 * s[0])
        assert kept[path].error == pytest.approx(float(np.linalg.norm(total - best) / np.linalg.norm(total)), rel=1e-4)


def test_combining_may_exceed_a_small_layer():
    model = Transformer()
    for name, seed in (("a", 0), ("b", 1)):
        add(model, name, LoRAConfig(("head",), rank=6), seed)
    assert len(combine_cat(model, "c", {"a": 1.0, "b": 1.0})["head"].lora_A) == 12  # the head has 7 classes
    assert combine_svd(model, "s", {"a": 1.0, "b": 1.0}, 12)["head"].rank == 7


@pytest.mark.parametrize("weights", [{}, {"a": math.nan}, {"nobody": 1.0}])
@pytest.mark.parametrize("combine", [combine_cat, lambda *a: combine_svd(*a, 2)])
def test_nothing_sensible_to_combine_is_refused(combine, weights):
    model, _ = two_adapters()
    with pytest.raises(LoRAError):
        combine(model, "c", weights)
    with pytest.raises(LoRAError, match="already"):
        combine(model, "a", {"b": 1.0})
    assert strengths(model) == {"a": 1.0, "b": 1.0}


def test_an_update_too_large_for_its_layer_is_refused():
    model = nn.Sequential(nn.Linear(4, 3)).half()
    add(model, "a", LoRAConfig(rank=2, dtype=torch.float16))
    with pytest.raises(LoRAError, match="too large"):
        combine_cat(model, "b", {"a": 1e9})
    assert strengths(model) == {"a": 1.0}
    combine_cat(model, "b", {"a": 0.5})
    assert {factor.dtype for factor in updates_of(model, "b")["0"].parameters()} == {torch.float16}


def test_a_shared_layer_is_left_out_under_neither_name():
    shared = nn.Linear(4, 4)
    base = nn.Sequential(shared, nn.Sequential(shared))
    tuned = copy.deepcopy(base)
    tuned[0].weight.data.add_(1)
    assert set(changes_left_out(base, tuned)) == {"0.bias", "1.0.bias"}
