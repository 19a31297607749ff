"""Each claim holds for an honest adapter, and each is seen to fail when it is broken on purpose."""

import copy

import pytest
import torch
from torch import nn

from lora_mnist.evaluation.proof import TOLERANCE, failures, prove
from lora_mnist.evaluation.results import OffClaim
from lora_mnist.lora import LoRAConfig, LoRALinear, LoRAUpdate, inject, updates_of
from lora_mnist.lora.fingerprint import compute_fingerprint
from lora_mnist.training.model import MLP, logits_of

CONFIG = LoRAConfig(("linear1", "linear3"), rank=3, alpha=5.0)
IMAGES = {"test": torch.randint(256, (50, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))}


@pytest.fixture
def pair():
    torch.manual_seed(0)
    base = MLP((12, 11))
    adapted = copy.deepcopy(base)
    for update in inject(adapted, "a", CONFIG, torch.Generator().manual_seed(0)).values():
        nn.init.normal_(update.lora_B.data, std=0.1)
    return base, adapted


def findings(pair):
    return examine(*pair)[0]


def examine(base, adapted, fingerprint=None):
    plain = {split: logits_of(base, images) for split, images in IMAGES.items()}
    return prove(base, IMAGES, plain, fingerprint or compute_fingerprint(base.state_dict()), adapted)


def test_an_honest_adapter_passes(pair):
    found, logits = examine(*pair)
    assert found.passed
    assert failures(found) == []
    assert found.frozen.tensors == 6
    assert torch.equal(logits["test"], logits_of(pair[1], IMAGES["test"]))


@pytest.mark.parametrize("tensor", ["linear1.weight", "linear2.weight", "linear3.bias"])
def test_one_flipped_bit_of_the_base_is_caught_and_named(pair, tensor):
    bits = pair[1].state_dict()[tensor].view(torch.int32).view(-1)
    bits[len(bits) // 2] ^= 1
    found = findings(pair)
    assert not found.passed
    assert found.frozen.changed_bytes == {tensor: 1}
    assert "changed" in failures(found)[0]


def test_a_base_that_changed_together_with_its_copy_is_caught(pair):
    fingerprint = compute_fingerprint(pair[0].state_dict())
    pair[0].state_dict()["linear2.weight"].view(torch.int32)[0, 0] ^= 1
    pair[1].state_dict()["linear2.weight"].view(torch.int32)[0, 0] ^= 1
    found, _ = examine(*pair, fingerprint)
    assert found.frozen.changed_bytes == {}
    assert failures(found) == ["base tensor linear2.weight is not the recorded one"]


def updated_twice(honest, layer):
    return honest(layer) + sum(update.weight() for update in layer.updates.values())


@pytest.mark.parametrize(
    ("kind", "method", "wrong", "clause"),
    [
        (LoRALinear, "forward", lambda honest, *given: honest(*given) + 1e-6, "switched off, "),
        (LoRAUpdate, "forward", lambda honest, *given: 1.001 * honest(*given), "its logits differ"),
        (LoRALinear, "merged_weight", updated_twice, "the weight of linear1 is not W + scaling · B A"),
    ],
)
def test_a_layer_that_does_something_else_is_caught(pair, monkeypatch, kind, method, wrong, clause):
    honest = getattr(kind, method)
    monkeypatch.setattr(kind, method, lambda *given: wrong(honest, *given))
    found = findings(pair)
    assert found.frozen.passed
    assert not found.passed
    assert failures(found)[0].startswith(clause)


def test_it_says_how_many_images_have_other_logits(pair, monkeypatch):
    def logits(model, images):
        honest = logits_of(model, images).clone()
        honest[3:10, 4] += (model is pair[1]) * 1e-6
        return honest

    monkeypatch.setattr("lora_mnist.evaluation.proof.logits_of", logits)
    found = findings(pair)
    assert found.off.images_that_differ == 7
    assert "switched off, 7 of 50 images have other logits" in failures(found)


@pytest.mark.parametrize("size", [0.01, 100])
@pytest.mark.parametrize(("share", "passes"), [(0.5, True), (2, False)])
def test_rounding_is_measured_by_the_largest_logit(pair, monkeypatch, size, share, passes):
    base, adapted = pair
    with torch.no_grad():
        for network in (base, adapted.linear3):
            getattr(network, "linear3", network).weight *= size
        updates_of(adapted, "a")["linear3"].lora_B *= size
    off_by = share * TOLERANCE * float(logits_of(adapted, IMAGES["test"]).abs().max())

    def logits(model, images):
        return logits_of(model, images) + (model is adapted) * off_by

    monkeypatch.setattr("lora_mnist.evaluation.proof.logits_of", logits)
    assert findings(pair).on.passed == passes


@pytest.mark.parametrize(
    "damage",
    [
        lambda logits: {},
        lambda logits: {"test": logits[:-1]},
        lambda logits: {"test": -logits},
        lambda logits: {"test": logits * (1 + 1e-6)},  # as another machine rounds
    ],
)
def test_the_base_decides_where_stored_logits_are_missing_or_others(pair, damage):
    base, adapted = pair
    honest = logits_of(base, IMAGES["test"])
    found, _ = prove(base, IMAGES, damage(honest), compute_fingerprint(base.state_dict()), adapted)
    assert found.off == OffClaim(passed=True, images=50, images_that_differ=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_adapter_whose_logits_are_no_numbers_fails(pair, value):
    with torch.no_grad():
        updates_of(pair[1], "a")["linear3"].lora_B[0, 0] = value
    found = findings(pair)
    assert found.frozen.passed
    assert not found.on.passed
    assert not found.passed


def test_one_of_several_splits_whose_logits_are_no_numbers_is_enough(pair, monkeypatch):
    base, adapted = pair
    images = {"val": IMAGES["test"], "test": IMAGES["test"][:3]}  # of which each is smaller than the one before

    def logits(network, batch):
        found = logits_of(network, batch)
        return found if len(batch) > 3 or network is base else found * float("nan")

    monkeypatch.setattr("lora_mnist.evaluation.proof.logits_of", logits)
    plain = {split: logits(base, batch) for split, batch in images.items()}
    found, _ = prove(base, images, plain, compute_fingerprint(base.state_dict()), adapted)
    assert not found.on.passed


def test_a_merged_weight_with_another_scaling_is_caught(pair):
    updates_of(pair[1], "a")["linear1"].scaling = 5.0  # alpha left undivided
    found = findings(pair)
    assert found.on.layers_off_the_formula == ("linear1",)
    assert not found.passed


def test_an_adapter_merged_into_the_base_and_applied_again_is_caught(pair):
    with torch.no_grad():
        pair[1].linear1.weight += updates_of(pair[1], "a")["linear1"].weight()
    assert "base tensor linear1.weight changed" in failures(findings(pair))
