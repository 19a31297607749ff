import torch

from lora_mnist.evaluation.analysis import MOST, changed_images


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
