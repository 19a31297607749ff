import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion

from lora_mnist.datasets.dataset import load
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import (
    compare,
    confusion_matrix,
    counts_in,
    counts_of,
    held_out_logits,
    require_finite,
    sample_by_outcome,
    summarise,
    weakest_digit,
)
from lora_mnist.evaluation.results import COUNTS, Counts
from lora_mnist.training.model import MLP, logits_of, normalise


def random_logits(seed, count=500):
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))


LABELS = torch.randint(10, (500,), generator=torch.Generator().manual_seed(9))


def test_counts_are_those_of_scikit_learns_confusion_matrix():
    logits = random_logits(0)
    expected = sklearn_confusion(LABELS, logits.argmax(1), labels=range(10))
    right, of_digit = expected.diagonal(), expected.sum(1)
    assert np.array_equal(confusion_matrix(logits, LABELS), expected)
    summary = summarise(logits, LABELS)
    assert (summary.count, summary.accuracy) == (500, right.sum() / 500)
    assert np.array_equal(summary.wrong, of_digit - right)
    assert (summary.errors, summary.images) == (500 - right.sum(), of_digit.tolist())
    counts = counts_in(summary.confusion, 4)
    false_alarms = expected[:, 4].sum() - right[4]
    assert counts == Counts(missed=summary.wrong[4], false_alarms=int(false_alarms), errors=summary.errors)
    assert counts_of(logits, LABELS, 4) == counts
    assert tuple(map(counts.of, COUNTS)) == counts.numbers == (counts.missed, counts.false_alarms, counts.errors)


def test_the_weakest_digit_has_the_highest_rate_and_of_equals_the_higher_loss():
    labels = torch.tensor([1] * 10 + [2] * 2)
    logits = torch.nn.functional.one_hot(labels, 10).float() * 5
    logits[0] = logits[1] = logits[10] = 0  # argmax 0: 2 of 10 ones wrong, 1 of 2 twos
    assert weakest_digit(logits, labels) == 2
    labels = torch.tensor([3, 3, 4, 4])
    logits = torch.nn.functional.one_hot(labels, 10).float() * 5
    logits[0, 7], logits[2, 7] = 6.0, 9.0
    assert weakest_digit(logits, labels) == 4


def test_compare_counts_the_same_images():
    before, after = {"test": random_logits(0)}, {"test": random_logits(1)}
    result = compare(before, after, {"test": LABELS}, 4)["test"]
    was, now = before["test"].argmax(1) == LABELS, after["test"].argmax(1) == LABELS
    assert sum(result.fixed) == int((~was & now).sum())
    assert sum(result.broken) == int((was & ~now).sum())
    assert result.after.errors - result.before.errors == sum(result.broken) - sum(result.fixed)
    assert (result.pairs.errors.fixed, result.pairs.errors.broken) == (sum(result.fixed), sum(result.broken))
    assert (result.pairs.missed.fixed, result.pairs.missed.broken) == (result.fixed[4], result.broken[4])
    alarms = [(logits["test"].argmax(1) == 4) & (LABELS != 4) for logits in (before, after)]
    assert result.pairs.false_alarms.fixed == int((alarms[0] & ~alarms[1]).sum())
    assert result.pairs.false_alarms.broken == int((alarms[1] & ~alarms[0]).sum())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MLP((9, 8))


def test_logits_do_not_depend_on_how_many_images_come_at_once(model):
    images = torch.randint(256, (2300, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(logits_of(model, images), model(normalise(images)).detach())
    assert logits_of(model, images[:0]).shape == (0, 10)


@pytest.mark.parametrize(("val_share", "splits"), [(0.25, ["val", "test"]), (0.0, ["test"])])
def test_what_is_held_out_is_looked_at_split_by_split(model, tmp_path, val_share, splits):
    dataset = load("mnist-5k", tmp_path, val_share, 0)
    logits = held_out_logits(model, dataset)
    assert list(logits) == splits
    assert torch.equal(logits["test"], logits_of(model, dataset.test.images))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_one_logit_that_is_no_number_is_an_error(value):
    logits = {"val": torch.zeros(3, 10), "test": torch.zeros(3, 10)}
    require_finite(logits, "Do this.")
    logits["test"][2, 9] = value
    with pytest.raises(UsageError, match="finite") as caught:
        require_finite(logits, "Do this.")
    assert "Do this." in str(caught.value)


def test_a_sample_holds_images_of_every_outcome():
    labels = torch.zeros(1000, dtype=torch.int64)
    base, adapted = labels.clone(), labels.clone()
    base[:200], adapted[100:350] = 1, 2  # 100 fixed, 100 both wrong, 150 broken
    sampled = sample_by_outcome(labels, base, adapted)
    parts = [(0, 100), (100, 200), (200, 350), (350, 1000)]
    assert [int(((sampled >= start) & (sampled < end)).sum()) for start, end in parts] == [60, 40, 40, 60]
    assert sampled.tolist() == sorted(set(sampled.tolist()))
    assert (sample_by_outcome(labels, base) < 200).sum() == 40  # of the base alone
