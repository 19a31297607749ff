import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion

from lora_mnist.evaluation.metrics import (
    compare,
    confusion_matrix,
    logits_of,
    missed_claimed_errors,
    summarise,
    weakest_digit,
)
from lora_mnist.training.model import MLP, normalise


def random_logits(seed, count=500):
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))


LABELS = torch.randint(10, (500,), generator=torch.Generator().manual_seed(9))


def test_confusion_is_scikit_learns():
    logits = random_logits(0)
    expected = sklearn_confusion(LABELS, logits.argmax(1), labels=range(10))
    assert confusion_matrix(logits, LABELS).tolist() == expected.tolist()


def test_the_summary_counts_what_it_says():
    logits = random_logits(0)
    summary = summarise(logits, LABELS)
    wrong = logits.argmax(1) != LABELS
    assert summary["count"] == 500
    assert summary["accuracy"] == pytest.approx(1 - float(wrong.float().mean()))
    assert summary["wrong"] == [int((wrong & (digit == LABELS)).sum()) for digit in range(10)]


def test_missed_claimed_and_errors():
    predicted = random_logits(0).argmax(1)
    counts = missed_claimed_errors(confusion_matrix(random_logits(0), LABELS).tolist(), 4)
    assert counts == {
        "missed": int(((LABELS == 4) & (predicted != 4)).sum()),
        "claimed": int(((LABELS != 4) & (predicted == 4)).sum()),
        "errors": int((predicted != LABELS).sum()),
    }


def test_logits_do_not_depend_on_how_many_images_come_at_once():
    torch.manual_seed(0)
    model, images = MLP((9, 8)), torch.randint(256, (2300, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(logits_of(model, images), model(normalise(images)).detach())
    assert logits_of(model, images[:0]).shape == (0, 10)


def test_the_weakest_digit_is_a_rate_not_a_count():
    labels = torch.tensor([1] * 10 + [2] * 2)
    logits = torch.nn.functional.one_hot(labels, 10).float() * 5
    logits[0] = logits[1] = logits[10] = 0  # argmax 0: 2 of 10 ones wrong, 1 of 2 twos
    assert weakest_digit(logits, labels) == 2


def test_ties_go_to_the_higher_loss():
    labels = torch.tensor([3, 3, 4, 4])
    logits = torch.nn.functional.one_hot(labels, 10).float() * 5
    logits[0, 7], logits[2, 7] = 6.0, 9.0
    assert weakest_digit(logits, labels) == 4


def test_compare_counts_the_same_images():
    before, after = {"test": random_logits(0)}, {"test": random_logits(1)}
    result = compare(before, after, {"test": LABELS}, 4)["test"]
    was, now = before["test"].argmax(1) == LABELS, after["test"].argmax(1) == LABELS
    assert sum(result["fixed"]) == int((~was & now).sum())
    assert sum(result["broken"]) == int((was & ~now).sum())
    assert result["after"]["errors"] - result["before"]["errors"] == sum(result["broken"]) - sum(result["fixed"])
