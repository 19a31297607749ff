"""What is asked between two strengths that are known, on a network whose answers are known by hand."""

import copy

import pytest
import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.evaluation import between
from lora_mnist.evaluation.between import Between, lead, same_points, tied
from lora_mnist.evaluation.results import StrengthPoint
from lora_mnist.evaluation.strength_curve import asking
from lora_mnist.lora import LoRAConfig, inject

from ..models import labelled_by_a_network


@pytest.fixture
def turned():
    base, images, labels = labelled_by_a_network(600, 80)
    adapted = copy.deepcopy(base)
    update = inject(adapted, "a", LoRAConfig(("linear2",), rank=2, alpha=3.0))["linear2"]
    torch.nn.init.normal_(update.lora_B.data, std=0.3)
    held_out = {"val": Split(images, labels)}
    ask = asking(adapted, "a", held_out)
    return adapted, held_out, ask, {"val": {0.0: ask("val", 0.0), 1.0: ask("val", 1.0)}}


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.25, 1.5, 2.0])
def test_it_takes_images_for_what_the_network_takes_them_for(turned, strength):
    adapted, held_out, ask, known = turned
    found = Between(adapted, "a", held_out, known)("val", strength)
    assert torch.equal(found.argmax(1), ask("val", strength).argmax(1))


def test_only_what_is_open_is_asked(turned, monkeypatch):
    adapted, held_out, _, known = turned
    asked, honest = [], between.logits_at
    monkeypatch.setattr(between, "SURE", 0.5)
    monkeypatch.setattr(between, "logits_at", lambda *a: asked.append(len(a[3])) or honest(*a))
    ask = Between(adapted, "a", held_out, known)
    ask("val", 0.5)
    below, above = known["val"].values()
    is_open = (below.argmax(1) != above.argmax(1)) | (lead(below) <= 0.5) | (lead(above) <= 0.5)
    assert asked == [int(is_open.sum())]
    assert 0 < asked[0] < 600


def test_counts_may_differ_by_what_rounding_decides():
    logits = torch.tensor([[10.0, 10.0 - 1e-5, *[0.0] * 8], [10.0, 9.0, *[0.0] * 8]])
    assert tied(logits) == 1
    points = [[StrengthPoint(strength=0.5, missed=m, false_alarms=0, errors=m)] for m in (3, 4, 5)]
    assert same_points(points[0], points[1], lambda strength: logits)
    assert not same_points(points[0], points[2], lambda strength: logits)
    assert not same_points(points[0], points[1], lambda strength: logits[1:])
    assert not same_points(points[0], (), lambda strength: logits)
