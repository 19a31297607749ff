"""Which snapshot is kept, on a network whose errors are known."""

import math

import pytest
import torch

from lora_mnist.data import Split
from lora_mnist.errors import UsageError
from lora_mnist.evaluate import logits_of
from lora_mnist.guard import choose
from lora_mnist.lora import LoRAConfig, inject, updates_of
from lora_mnist.model import MLP
from lora_mnist.recipe import Snapshot

DIGIT = 3


@pytest.fixture
def model():
    """A network with an adapter on its last layer, and the images it is judged by."""
    torch.manual_seed(0)
    network = MLP((12,)).eval()
    images = torch.randint(256, (300, 28, 28), dtype=torch.uint8)
    labels = logits_of(network, images).argmax(1)
    labels[::3] = (labels[::3] + 1) % 10  # a third is wrong
    labels[:30] = DIGIT
    val = Split(images, labels)
    before = logits_of(network, images)
    inject(network, "a", LoRAConfig(("linear2",), rank=1, alpha=1.0))
    return network, val, before


def snapshots(*strengths):
    """B that adds so much of one direction to all logits but the first's; 0 changes nothing."""
    a = torch.ones(1, 12)
    return [
        Snapshot(10 * (i + 1), {"linear2": (a, strength * torch.eye(10)[7][:, None])})
        for i, strength in enumerate(strengths)
    ]


def counts(logits, labels):
    wrong = logits.argmax(1) != labels
    return {"errors": int(wrong.sum()), "missed": int((wrong & (labels == DIGIT)).sum())}


@pytest.mark.parametrize(("strengths", "kept"), [((0.0, 0.0), 20), ((0.0, 1e4), 10), ((0.0, 1e4, 0.0), 30)])
def test_the_last_that_is_not_worse_is_kept_and_put_in(model, strengths, kept):
    network, val, before = model
    found = choose(network, "a", snapshots(*strengths), "errors", before, val, DIGIT)
    assert found["kept"] == kept
    assert found["before"]["errors"] == counts(before, val.labels)["errors"]
    assert torch.equal(logits_of(network, val.images), before)


def test_none_is_kept_if_all_are_worse(model):
    network, val, before = model
    found = choose(network, "a", snapshots(1e4, 1e5), "errors", before, val, DIGIT)
    assert found["kept"] is None
    assert [tried["step"] for tried in found["tried"]] == [20, 10]
    assert all(tried["errors"] > found["before"]["errors"] for tried in found["tried"])


def test_the_digit_alone_may_cost_the_others(model):
    network, val, before = model
    lift = [Snapshot(5, {"linear2": (torch.ones(1, 12), 1e4 * torch.eye(10)[DIGIT][:, None])})]
    found = choose(network, "a", lift, "digit", before, val, DIGIT)
    assert found["kept"] == 5
    assert found["tried"][0]["errors"] > found["before"]["errors"]
    assert choose(network, "a", lift, "errors", before, val, DIGIT)["kept"] is None


def test_without_a_rule_the_last_is_kept_unseen(model):
    network, val, before = model
    found = choose(network, "a", snapshots(1e4), "none", before, val, DIGIT)
    assert found == {"rule": "none", "kept": 10, "before": None, "tried": []}
    assert not updates_of(network, "a")["linear2"].lora_B.any()  # left as training left it


def test_logits_that_are_not_finite_are_an_error(model):
    network, val, before = model
    with pytest.raises(UsageError, match="finite"):
        choose(network, "a", snapshots(math.inf), "errors", before, val, DIGIT)
