"""How much of an adapter is kept, on a network whose answers are known by hand."""

import copy
import math

import pytest
import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.guard import SCALES, Guard, select_scale
from lora_mnist.evaluation.results import GuardDecision
from lora_mnist.lora import LoRAConfig, inject, strengths, updates_of
from lora_mnist.training.model import logits_of

from ..models import DIGIT, counts_by_hand, labelled_by_a_network


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


def logits_at(network, val, scale):
    """With its B multiplied by hand."""
    scaled = copy.deepcopy(network)
    updates_of(scaled, "a")["linear2"].lora_B.data *= scale
    return logits_of(scaled, val.images)


def counts_by_scale(network, val):
    return {scale: counts_by_hand(logits_at(network, val, scale), val.labels, DIGIT) for scale in SCALES}


@pytest.mark.parametrize("amount", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("rule", "count"), [("errors", "errors"), ("digit", "missed")])
def test_the_best_scale_that_meets_the_rule_is_selected(judged, amount, rule, count):
    network, val, before = judged
    lift(network, DIGIT, amount)
    found = select_scale(network, "a", Guard(rule), before, val, DIGIT)
    counts, limit = counts_by_scale(network, val), counts_by_hand(before, val.labels, DIGIT)
    allowed = [scale for scale, one in counts.items() if one.of(count) <= limit.of(count)]
    allowed = [scale for scale in allowed if scale >= 0.5] or allowed
    assert found.scale == min(allowed, key=lambda scale: (counts[scale].errors, -scale))
    assert found.before == limit
    assert all(one.numbers == counts[one.scale].numbers for one in found.tried)


def test_a_digit_that_gets_worse_is_found_by_a_test_of_its_own(judged):
    """All errors fall by far, and yet the other digits that are taken for the target now keep the adapter out."""
    from scipy.stats import binomtest
    from statsmodels.stats.multitest import multipletests

    network, val, before = judged
    lift(network, DIGIT, 3.0)
    assert select_scale(network, "a", Guard("errors"), before, val, DIGIT).scale is not None
    found = select_scale(network, "a", Guard("every-digit"), before, val, DIGIT)
    was_right = before.argmax(1) == val.labels
    for tried in found.tried:
        is_right = logits_at(network, val, tried.scale).argmax(1) == val.labels
        rose, ps = [], []
        for digit in range(10):
            of_digit = val.labels == digit
            broken = int((was_right & ~is_right & of_digit).sum())
            fixed = int((~was_right & is_right & of_digit).sum())
            rose.append(broken > fixed)
            ps.append(binomtest(broken, broken + fixed, 0.5).pvalue if broken + fixed else 1.0)
        beyond_chance = multipletests(ps, 0.05, method="holm")[0]
        assert list(tried.worse) == [digit for digit in range(10) if rose[digit] and beyond_chance[digit]]
        assert tried.errors <= found.before.errors
    assert any(tried.worse for tried in found.tried)
    assert found.scale is None or not next(t for t in found.tried if t.scale == found.scale).worse


def test_nothing_is_kept_if_every_scale_is_worse_unless_there_is_no_rule(judged):
    network, val, before = judged
    update = lift(network, 7, 1e4)
    whole = update.lora_B.detach().clone()
    found = select_scale(network, "a", Guard("errors"), before, val, DIGIT)
    assert found.scale is None
    assert [one.scale for one in found.tried] == list(SCALES)
    assert all(one.errors > found.before.errors for one in found.tried)
    found = select_scale(network, "a", Guard("none"), before, val, DIGIT)
    assert found == GuardDecision(rule="none", counted=None, gain=0, before=None, tried=(), scale=1.0)
    assert torch.equal(update.lora_B, whole)  # the adapter stays as it was
    assert update.config.alpha == 1.0
    assert strengths(network) == {"a": 1.0}


def test_the_largest_scale_that_is_allowed_can_be_asked_for(judged):
    network, val, before = judged
    lift(network, 7, 0.1)
    found = select_scale(network, "a", Guard("errors", strongest=True), before, val, DIGIT)
    limit = counts_by_hand(before, val.labels, DIGIT).errors
    allowed = [scale for scale, one in counts_by_scale(network, val).items() if one.errors <= limit]
    assert 0 < len(allowed) < len(SCALES)
    assert found.scale == max(allowed)
    assert found.tried[-1].scale == found.scale  # what is weaker is not looked at


def test_a_gain_can_be_demanded(judged):
    network, val, before = judged
    lift(network, DIGIT, 0.0)  # changes nothing: not worse, but no gain either
    assert select_scale(network, "a", Guard("errors"), before, val, DIGIT).scale == 1.0
    assert select_scale(network, "a", Guard("errors", gain=1), before, val, DIGIT).scale is None


def test_logits_that_are_not_finite_and_a_rule_without_images_are_errors(judged):
    network, val, before = judged
    with pytest.raises(UsageError, match="--guard none"):
        select_scale(network, "a", Guard("errors"), None, Split(val.images[:0], val.labels[:0]), DIGIT)
    lift(network, DIGIT, math.inf)
    with pytest.raises(UsageError, match="finite"):
        select_scale(network, "a", Guard("errors"), before, val, DIGIT)
