import torch

from lora_mnist.evaluation.analysis import MOST, MOST_WRONG, Control, analyse, changed_images, wrong_images


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


def test_of_many_only_the_largest_swings():
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(500, 10, generator=generator) for _ in range(2))
    labels = torch.randint(10, (500,), generator=generator)
    rows = changed_images(before, after, labels)
    for kind, sign in (("fixed", 1), ("broken", -1)):
        swings = [sign * (r.after.probability - r.before.probability) for r in rows if r.kind == kind]
        assert len(swings) == MOST
        assert swings == sorted(swings, reverse=True)


def test_nothing_changed():
    same = torch.randn(20, 10)
    assert changed_images(same, same, torch.zeros(20, dtype=torch.int64)) == ()


def test_images_that_are_wrong_before_or_after():
    before, after = torch.eye(10)[[1, 2, 3, 3]], torch.eye(10)[[1, 1, 3, 2]]
    assert wrong_images(before, after, torch.tensor([1, 1, 3, 3])).tolist() == [1, 3]
    assert wrong_images(before, before, torch.tensor([1, 2, 3, 3])).tolist() == []


def test_of_too_many_wrong_images_every_way_keeps_some():
    labels = torch.zeros(MOST_WRONG + 3, dtype=torch.int64)
    before = torch.eye(10)[[1] * MOST_WRONG + [2, 2, 3]]
    chosen = wrong_images(before, before, labels).tolist()
    assert len(chosen) == MOST_WRONG
    assert chosen == sorted(chosen)
    assert {MOST_WRONG, MOST_WRONG + 1, MOST_WRONG + 2} <= set(chosen)


def test_a_control_stands_there_with_one_number_too():
    generator = torch.Generator().manual_seed(1)
    labels = {split: torch.randint(10, (300,), generator=generator) for split in ("val", "test")}
    before, after, control = (
        {
            split: torch.randn(300, 10, generator=generator) + size * torch.eye(10)[truth]
            for split, truth in labels.items()
        }
        for size in (1.0, 3.0, 2.0)
    )
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
