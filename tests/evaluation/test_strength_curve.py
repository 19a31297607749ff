"""What an adapter does at every strength, on networks whose answers are known by hand."""

import copy

import pytest
import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.evaluation.metrics import counts_of
from lora_mnist.evaluation.predict import logits_of
from lora_mnist.evaluation.results import StrengthPoint
from lora_mnist.evaluation.strength_curve import STRENGTHS, asking, measure_strength_curve
from lora_mnist.lora import LoRAConfig, inject, updates_of

from ..models import DIGIT, labelled_by_a_network


@pytest.fixture
def turned():
    """A base, the same with an adapter that does something, and random images in two splits."""
    base, images, labels = labelled_by_a_network(600, 80)
    adapted = copy.deepcopy(base)
    update = inject(adapted, "a", LoRAConfig(("linear2",), rank=2, alpha=3.0))["linear2"]
    torch.nn.init.normal_(update.lora_B.data, std=0.3)
    return base, adapted, {"val": Split(images[::2], labels[::2]), "test": Split(images[1::2], labels[1::2])}


def by_hand(base, adapted, strength, split):
    """Counts of a plain network with W + strength · scaling · B A written out."""
    plain, update = copy.deepcopy(base), updates_of(adapted, "a")["linear2"]
    with torch.no_grad():
        plain.linear2.weight += strength * 1.5 * (update.lora_B @ update.lora_A)
    found = counts_of(logits_of(plain, split.images), split.labels, DIGIT)
    return StrengthPoint(strength=strength, **dict(found))


def start(base, held_out):
    return {name: [by_hand(base, base_with_nothing(base), 0.0, split)] for name, split in held_out.items()}


def base_with_nothing(base):
    model = copy.deepcopy(base)
    inject(model, "a", LoRAConfig(("linear2",), rank=2, alpha=3.0))
    return model


def turned_strength_curve(adapted, held_out, known):
    labels = {name: split.labels for name, split in held_out.items()}
    return measure_strength_curve(asking(adapted, "a", held_out), labels, DIGIT, known)


def test_every_strength_is_what_the_merged_network_does(turned):
    base, adapted, held_out = turned
    strength_curve = turned_strength_curve(adapted, held_out, start(base, held_out))
    assert strength_curve.measured_on == "val"
    assert strength_curve.splits["val"] == tuple(by_hand(base, adapted, s, held_out["val"]) for s in STRENGTHS)
    wanted = sorted({*STRENGTHS, strength_curve.recommended})
    assert strength_curve.splits["test"] == tuple(by_hand(base, adapted, s, held_out["test"]) for s in wanted)


def test_the_recommended_strength_is_the_best_of_those_without_more_errors(turned):
    base, adapted, held_out = turned
    strength_curve = turned_strength_curve(adapted, held_out, start(base, held_out))
    points = {one.strength: one for one in strength_curve.splits["val"]}
    fewest = min(one.errors for one in points.values())
    assert strength_curve.recommended == max(s for s, one in points.items() if one.errors == fewest)


def test_without_val_it_is_measured_on_test_and_says_so(turned):
    base, adapted, held_out = turned
    del held_out["val"]
    strength_curve = turned_strength_curve(adapted, held_out, start(base, held_out))
    assert (strength_curve.measured_on, list(strength_curve.splits)) == ("test", ["test"])
    assert [one.strength for one in strength_curve.splits["test"]] == list(STRENGTHS)


def test_what_is_known_is_not_measured_again(turned):
    base, adapted, held_out = turned
    known = start(base, held_out)
    known["val"] += [StrengthPoint(strength=s, missed=1, false_alarms=2, errors=3) for s in (0.5, 0.6)]
    points = turned_strength_curve(adapted, held_out, known).splits["val"]
    assert [one.strength for one in points] == [0.0, 0.25, 0.5, 0.6, 0.75, 1.0, 1.25, 1.5]
    assert list(points[2:4]) == known["val"][1:]


def test_it_ends_where_logits_are_no_longer_finite(turned):
    base, adapted, held_out = turned
    updates_of(adapted, "a")["linear2"].lora_B.data.fill_(3e38)
    strength_curve = turned_strength_curve(adapted, held_out, start(base, held_out))
    measured = [one.strength for one in strength_curve.splits["val"]]
    assert measured == list(STRENGTHS[: len(measured)])
    assert len(measured) < len(STRENGTHS)
    assert strength_curve.recommended in measured
