"""How much of an adapter is kept, on a network whose errors are known."""

import math

import pytest
import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import logits_of
from lora_mnist.evaluation.strength import STRENGTHS, choose
from lora_mnist.lora import LoRAConfig, inject, strengths, updates_of
from lora_mnist.training.model import MLP

DIGIT = 3


@pytest.fixture
def model():
    """A network, the images it is judged by, many of them missed images of the digit, and its logits."""
    torch.manual_seed(0)
    network = MLP((12,)).eval()
    images = torch.randint(256, (400, 28, 28), dtype=torch.uint8)
    labels = logits_of(network, images).argmax(1)
    labels[:250] = DIGIT
    before = logits_of(network, images)
    inject(network, "a", LoRAConfig(("linear2",), rank=1, alpha=1.0))
    return network, Split(images, labels), before


def lift(network, digit, amount):
    """Let the adapter add about so much to one logit of every image."""
    update = updates_of(network, "a")["linear2"]
    with torch.no_grad():
        update.lora_A.fill_(1.0)
        update.lora_B.zero_()
        update.lora_B[digit] = amount
    return update


def counts(logits, labels):
    wrong = logits.argmax(1) != labels
    return {"errors": int(wrong.sum()), "missed": int((wrong & (labels == DIGIT)).sum())}


def by_hand(network, val, update, whole, strength):
    with torch.no_grad():
        update.lora_B.copy_(whole * strength)
    return counts(logits_of(network, val.images), val.labels)


@pytest.mark.parametrize("amount", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("rule", ["errors", "digit"])
def test_the_best_strength_that_meets_the_rule_is_put_into_the_weights(model, amount, rule):
    network, val, before = model
    update = lift(network, DIGIT, amount)
    whole = update.lora_B.detach().clone()
    found = choose(network, "a", rule, before, val, DIGIT)
    kept = update.lora_B.detach().clone()
    by_strength = {strength: by_hand(network, val, update, whole, strength) for strength in STRENGTHS}
    limit = counts(before, val.labels)
    count = {"errors": "errors", "digit": "missed"}[rule]
    allowed = {s: c for s, c in by_strength.items() if c[count] <= limit[count]}
    allowed = {s: c for s, c in allowed.items() if s >= 0.5} or allowed
    best = min(allowed, key=lambda s: (allowed[s]["errors"] + 2 * allowed[s]["missed"], -s))
    assert found["strength"] == best
    assert torch.equal(kept, whole * best)
    assert strengths(network) == {"a": 1.0}
    assert all(one["errors"] == by_strength[one["strength"]]["errors"] for one in found["tried"])


def test_nothing_is_kept_if_every_strength_is_worse(model):
    network, val, before = model
    lift(network, 7, 1e4)
    found = choose(network, "a", "errors", before, val, DIGIT)
    assert found["strength"] is None
    assert all(one["errors"] > found["before"]["errors"] for one in found["tried"])
    assert strengths(network) == {"a": 1.0}


def test_a_gain_can_be_demanded(model):
    network, val, before = model
    lift(network, DIGIT, 0.0)  # changes nothing: not worse, but no gain either
    assert choose(network, "a", "errors", before, val, DIGIT)["strength"] == 1.0
    assert choose(network, "a", "errors", before, val, DIGIT, gain=1)["strength"] is None


def test_without_a_rule_it_is_kept_as_trained(model):
    network, val, before = model
    update = lift(network, 7, 1e4)
    whole = update.lora_B.detach().clone()
    found = choose(network, "a", "none", before, val, DIGIT)
    assert found == {"rule": "none", "counted": None, "gain": 0, "strength": 1.0, "before": None, "tried": []}
    assert torch.equal(update.lora_B, whole)


def test_logits_that_are_not_finite_are_an_error(model):
    network, val, before = model
    lift(network, DIGIT, math.inf)
    with pytest.raises(UsageError, match="finite"):
        choose(network, "a", "errors", before, val, DIGIT)


def test_a_rule_needs_images_to_judge_by(model):
    network, val, _ = model
    with pytest.raises(UsageError, match="--guard none"):
        choose(network, "a", "errors", None, Split(val.images[:0], val.labels[:0]), DIGIT)
