"""What an adapter does at every strength, and how much of it is kept, on networks whose answers are known by hand."""

import copy
import math

import pytest
import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.predict import logits_of
from lora_mnist.evaluation.results import Counts, GuardDecision
from lora_mnist.evaluation.strength import GUARD_STRENGTHS, Guard, choose
from lora_mnist.lora import LoRAConfig, inject, strengths, updates_of

from ..models import DIGIT, labelled_by_a_network


@pytest.fixture
def judged():
    """A network, the images it is judged by, many of them missed images of the digit, and its logits."""
    network, images, labels = labelled_by_a_network(400, 250)
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
    false_alarms = (logits.argmax(1) == DIGIT) & wrong
    return Counts(
        missed=int((wrong & (labels == DIGIT)).sum()), false_alarms=int(false_alarms.sum()), errors=int(wrong.sum())
    )


def with_factor(network, val, update, whole, strength):
    with torch.no_grad():
        update.lora_B.copy_(whole * strength)
    return counts(logits_of(network, val.images), val.labels)


@pytest.mark.parametrize("amount", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("rule", ["errors", "digit"])
def test_the_best_strength_that_meets_the_rule_is_put_into_the_weights(judged, amount, rule):
    network, val, before = judged
    update = lift(network, DIGIT, amount)
    whole = update.lora_B.detach().clone()
    found = choose(network, "a", Guard(rule), before, val, DIGIT)
    kept = update.lora_B.detach().clone()
    by_strength = {strength: with_factor(network, val, update, whole, strength) for strength in GUARD_STRENGTHS}
    limit = counts(before, val.labels)
    count = {"errors": "errors", "digit": "missed"}[rule]
    allowed = {s: c for s, c in by_strength.items() if c.of(count) <= limit.of(count)}
    allowed = {s: c for s, c in allowed.items() if s >= 0.5} or allowed
    best = min(allowed, key=lambda s: (allowed[s].errors, -s))
    assert found.strength == best
    assert found.before == limit
    assert torch.equal(kept, whole * best)
    assert strengths(network) == {"a": 1.0}
    assert all(one.numbers == by_strength[one.strength].numbers for one in found.tried)


def test_a_digit_that_pays_is_found_by_a_test_of_its_own(judged):
    """All errors fall by far, and yet the other digits that are taken for the target now keep the adapter out."""
    from scipy.stats import binomtest

    network, val, before = judged
    lift(network, DIGIT, 3.0)
    with_none = choose(copy.deepcopy(network), "a", Guard("errors"), before, val, DIGIT)
    assert with_none.strength is not None
    found = choose(network, "a", Guard("every-digit"), before, val, DIGIT)
    was_right = before.argmax(1) == val.labels
    for tried in found.tried:
        model = copy.deepcopy(network)
        with torch.no_grad():
            updates_of(model, "a")["linear2"].lora_B.mul_(tried.strength / (found.strength or 1.0))
        is_right = logits_of(model, val.images).argmax(1) == val.labels
        hurt = []
        for digit in range(10):
            of_digit = val.labels == digit
            broken = int((was_right & ~is_right & of_digit).sum())
            fixed = int((~was_right & is_right & of_digit).sum())
            if broken > fixed and binomtest(broken, broken + fixed, 0.5).pvalue <= 0.05:
                hurt.append(digit)
        assert list(tried.hurt) == hurt
        assert tried.errors <= found.before.errors
    assert any(tried.hurt for tried in found.tried)
    assert found.strength is None or not next(t for t in found.tried if t.strength == found.strength).hurt


def test_nothing_is_kept_if_every_strength_is_worse(judged):
    network, val, before = judged
    lift(network, 7, 1e4)
    found = choose(network, "a", Guard("errors"), before, val, DIGIT)
    assert found.strength is None
    assert [one.strength for one in found.tried] == list(GUARD_STRENGTHS)
    assert all(one.errors > found.before.errors for one in found.tried)
    assert strengths(network) == {"a": 1.0}


def test_the_strongest_that_is_allowed_can_be_asked_for(judged):
    network, val, before = judged
    update = lift(network, 7, 0.1)
    whole = update.lora_B.detach().clone()
    found = choose(network, "a", Guard("errors", strongest=True), before, val, DIGIT)
    limit = counts(before, val.labels).errors
    allowed = [s for s in GUARD_STRENGTHS if with_factor(network, val, update, whole, s).errors <= limit]
    assert 0 < len(allowed) < len(GUARD_STRENGTHS)
    assert found.strength == max(allowed)
    assert found.tried[-1].strength == found.strength  # what is weaker is not looked at


def test_a_gain_can_be_demanded(judged):
    network, val, before = judged
    lift(network, DIGIT, 0.0)  # changes nothing: not worse, but no gain either
    assert choose(network, "a", Guard("errors"), before, val, DIGIT).strength == 1.0
    assert choose(network, "a", Guard("errors", gain=1), before, val, DIGIT).strength is None


def test_without_a_rule_it_is_kept_as_trained(judged):
    network, val, before = judged
    update = lift(network, 7, 1e4)
    whole = update.lora_B.detach().clone()
    found = choose(network, "a", Guard("none"), before, val, DIGIT)
    assert found == GuardDecision(rule="none", counted=None, gain=0, before=None, tried=(), strength=1.0)
    assert torch.equal(update.lora_B, whole)


def test_logits_that_are_not_finite_are_an_error(judged):
    network, val, before = judged
    lift(network, DIGIT, math.inf)
    with pytest.raises(UsageError, match="finite"):
        choose(network, "a", Guard("errors"), before, val, DIGIT)


def test_a_rule_needs_images_to_judge_by(judged):
    network, val, _ = judged
    with pytest.raises(UsageError, match="--guard none"):
        choose(network, "a", Guard("errors"), None, Split(val.images[:0], val.labels[:0]), DIGIT)
