"""What follows from logits before and after, what the adapter learnt, and what it does at every strength."""

import copy

import numpy as np
import pytest
import torch

from lora_mnist.datasets.dataset import Split
from lora_mnist.evaluation.analysis import (
    MOST,
    MOST_WRONG,
    PICTURES,
    STRENGTHS,
    analyse,
    changed_images,
    first_directions,
    layer_effects,
    strength_curve,
    wrong_images,
)
from lora_mnist.evaluation.baselines import Control
from lora_mnist.evaluation.metrics import counts_of, summarise
from lora_mnist.evaluation.results import StrengthPoint
from lora_mnist.lora import LoRAConfig, inject, strengths, updates_of
from lora_mnist.training.model import MLP, logits_of

from ..models import DIGIT, adapted, add, by_hand, config, labelled_by_a_network


def logits(*rows):
    return torch.tensor(rows, dtype=torch.float32).log()


def test_fixed_and_broken_images_with_both_probabilities():
    before = logits([0.6, 0.4], [0.1, 0.9], [0.7, 0.3], [0.2, 0.8])
    after = logits([0.3, 0.7], [0.8, 0.2], [0.4, 0.6], [0.2, 0.8])
    fixed, broken, other = changed_images(before, after, torch.tensor([1, 1, 0, 1]))
    assert (fixed.index, fixed.kind, fixed.label) == (0, "fixed", 1)
    assert fixed.before.prediction == 0
    assert abs(fixed.before.probability - 0.4) < 1e-6
    assert fixed.after.prediction == 1
    assert abs(fixed.after.probability - 0.7) < 1e-6
    assert [broken.index, other.index] == [1, 2]  # the larger swing first
    assert {broken.kind, other.kind} == {"broken"}
    assert changed_images(before, before, torch.tensor([1, 1, 0, 1])) == ()


def test_of_many_only_the_largest_swings():
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(500, 10, generator=generator) for _ in range(2))
    labels = torch.randint(10, (500,), generator=generator)
    rows = changed_images(before, after, labels)
    for kind, sign in (("fixed", 1), ("broken", -1)):
        swings = [sign * (r.after.probability - r.before.probability) for r in rows if r.kind == kind]
        assert len(swings) == MOST
        assert swings == sorted(swings, reverse=True)


def test_images_that_are_wrong_before_or_after():
    before, after = torch.eye(10)[[1, 2, 3, 3]], torch.eye(10)[[1, 1, 3, 2]]
    assert wrong_images(before, after, torch.tensor([1, 1, 3, 3])).tolist() == [1, 3]
    assert wrong_images(before, before, torch.tensor([1, 2, 3, 3])).tolist() == []
    # of too many, every way to be wrong keeps some
    labels = torch.zeros(MOST_WRONG + 3, dtype=torch.int64)
    before = torch.eye(10)[[1] * MOST_WRONG + [2, 2, 3]]
    chosen = wrong_images(before, before, labels).tolist()
    assert len(chosen) == MOST_WRONG
    assert chosen == sorted(chosen)
    assert {MOST_WRONG, MOST_WRONG + 1, MOST_WRONG + 2} <= set(chosen)


def test_a_control_is_compared_with_a_shifted_threshold_of_its_own():
    generator = torch.Generator().manual_seed(1)
    labels = {split: torch.randint(10, (300,), generator=generator) for split in ("val", "test")}

    def logits_of_size(size):
        noise = {split: torch.randn(300, 10, generator=generator) for split in labels}
        return {split: noise[split] + size * torch.eye(10)[truth] for split, truth in labels.items()}

    before, after, control = map(logits_of_size, (1.0, 3.0, 2.0))
    found = analyse(before, after, labels, 4, Control(1.0, control)).control
    assert found.threshold.chosen_on == "val"
    assert found.threshold.shift > 0
    moved = {split: part + found.threshold.shift * torch.eye(10)[4] for split, part in control.items()}
    for split, truth in labels.items():
        missed = int((moved[split].argmax(1) != truth)[truth == 4].sum())
        wrong = int((moved[split].argmax(1) != truth).sum())
        assert (found.threshold.splits[split].missed, found.threshold.splits[split].errors) == (missed, wrong)
    of_adapter = int((after["val"].argmax(1) != 4)[labels["val"] == 4].sum())
    assert found.threshold.splits["val"].missed <= of_adapter
    assert analyse(before, after, labels, 4).control is None


# What it learnt -------------------------------------------------------------------------------------------------------


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


def test_directions_are_the_right_singular_vectors_strongest_first():
    model, _ = adapted(rank=PICTURES + 2, hidden=(40, 11))
    directions = first_directions(model, "a").flatten(1).double().numpy()
    _, _, vectors = np.linalg.svd(delta(model, "linear1"), full_matrices=False)
    assert len(directions) == PICTURES
    assert np.abs((directions * vectors[:PICTURES]).sum(1)) == pytest.approx(1, abs=1e-5)
    assert all(one[np.abs(one).argmax()] > 0 for one in directions)


def test_without_the_first_layer_there_is_no_direction():
    model = MLP((12, 11))
    add(model, "a", config(targets=("linear2",)))
    assert len(first_directions(model, "a")) == 0
    inject(model, "b", LoRAConfig(("linear1",), rank=1))
    assert len(first_directions(model, "b")) == 1


# The strength curve ---------------------------------------------------------------------------------------------------


@pytest.fixture
def turned():
    """A base, the same with an adapter that does something, and random images in two splits."""
    base, images, labels = labelled_by_a_network(600, 80)
    network = copy.deepcopy(base)
    update = inject(network, "a", LoRAConfig(("linear2",), rank=2, alpha=3.0))["linear2"]
    torch.nn.init.normal_(update.lora_B.data, std=0.3)
    return base, network, {"val": Split(images[::2], labels[::2]), "test": Split(images[1::2], labels[1::2])}


def point_by_hand(base, network, strength, split):
    """Counts of a plain network with W + strength · scaling · B A written out."""
    logits = logits_of(by_hand(base, updates_of(network, "a"), strength * 1.5), split.images)
    wrong = split.labels[logits.argmax(1) != split.labels].bincount(minlength=10)
    counts = counts_of(logits, split.labels, DIGIT)
    return StrengthPoint(strength=strength, **dict(counts), wrong=tuple(wrong.tolist()))


def curve_of(base, network, held_out):
    known = {
        strength: {name: summarise(logits_of(one, split.images), split.labels) for name, split in held_out.items()}
        for strength, one in ((0.0, base), (1.0, network))
    }
    return strength_curve(network, "a", held_out, DIGIT, known)


def test_every_strength_is_what_the_merged_network_does_and_the_best_on_val_is_recommended(turned):
    base, network, held_out = turned
    curve = curve_of(base, network, held_out)
    points = {s: point_by_hand(base, network, s, held_out["val"]) for s in STRENGTHS}
    assert (curve.measured_on, curve.splits["val"]) == ("val", tuple(points.values()))
    fewest = min(one.errors for one in points.values())
    assert curve.recommended == max(s for s, one in points.items() if one.errors == fewest)
    wanted = sorted({*STRENGTHS, curve.recommended})
    assert curve.splits["test"] == tuple(point_by_hand(base, network, s, held_out["test"]) for s in wanted)
    del held_out["val"]
    curve = curve_of(base, network, held_out)
    assert (curve.measured_on, list(curve.splits)) == ("test", ["test"])
    assert [one.strength for one in curve.splits["test"]] == list(STRENGTHS)


def test_it_ends_where_logits_are_no_longer_finite(turned):
    base, network, held_out = turned
    updates_of(network, "a")["linear2"].lora_B.data.fill_(3e38)
    curve = curve_of(base, network, held_out)
    measured = [one.strength for one in curve.splits["val"]]
    assert measured == list(STRENGTHS[: len(measured)])
    assert len(measured) < len(STRENGTHS)
    assert curve.recommended in measured
