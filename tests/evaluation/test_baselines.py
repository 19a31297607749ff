import pytest
import torch

from lora_mnist.evaluation.baselines import find_shift, shifted_threshold, shifted_to_miss
from lora_mnist.evaluation.results import Counts

from ..models import counts_by_hand


def splits(seed, count=400):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, 10, generator=generator) * 3 for name in ("val", "test")}


LABELS = {name: torch.arange(400) % 10 for name in ("val", "test")}


def moved(logits, digit, shift):
    return logits.double() + shift * torch.nn.functional.one_hot(torch.tensor(digit), 10)


@pytest.mark.parametrize("missed_after", [0, 3, 17, 30])
def test_the_shift_is_the_smallest_that_misses_no_more(missed_after):
    digit, before = 4, splits(0)
    after = {name: 50.0 * torch.nn.functional.one_hot(labels, 10) for name, labels in LABELS.items()}
    for logits in after.values():
        wrong = (LABELS["val"] == digit).nonzero()[:missed_after, 0]
        logits[wrong] = 0
        logits[wrong, 7] = 9
    found = shifted_threshold(before, after, LABELS, digit)
    assert found.chosen_on == "val"
    for name in ("val", "test"):
        assert found.splits[name] == counts_by_hand(moved(before[name], digit, found.shift), LABELS[name], digit)
    assert found.splits["val"].missed == missed_after
    a_little_less = counts_by_hand(moved(before["val"], digit, found.shift - 1e-4), LABELS["val"], digit)
    assert a_little_less.missed == missed_after + 1


def test_it_is_chosen_on_val_and_test_is_only_reported():
    before, after = splits(0), splits(1)
    changed = {"val": before["val"], "test": splits(2)["test"]}
    one = shifted_threshold(before, after, LABELS, 4).shift
    assert shifted_threshold(changed, {**after, "test": splits(3)["test"]}, LABELS, 4).shift == one


def test_without_val_it_is_chosen_on_test_and_says_so():
    before, after = ({"test": splits(seed)["test"]} for seed in (0, 1))
    found = shifted_threshold(before, after, {"test": LABELS["test"]}, 4)
    assert found.chosen_on == "test"
    assert set(found.splits) == {"test"}


def test_a_repair_that_misses_more_needs_no_shift():
    before = {name: 50.0 * torch.nn.functional.one_hot(labels, 10) for name, labels in LABELS.items()}
    found = shifted_threshold(before, splits(1), LABELS, 4)
    assert found.shift == 0
    assert found.splits["test"] == Counts(missed=0, false_alarms=0, errors=0)


def test_splits_stand_in_the_order_of_the_labels():
    """Logits read from a file come in another order every time."""
    before, after = splits(0), splits(1)
    copies = {name: logits.clone() for name, logits in before.items()}
    for order in (("val", "test"), ("test", "val")):
        found = shifted_threshold({name: before[name] for name in order}, after, LABELS, 4)
        assert list(found.splits) == ["val", "test"]
    assert all(torch.equal(before[name], copies[name]) for name in before)  # and are left alone


def test_to_miss_so_many_is_the_threshold_of_a_network_that_misses_so_many():
    generator = torch.Generator().manual_seed(0)
    labels = {split: torch.randint(0, 10, (400,), generator=generator) for split in ("val", "test")}
    network = {split: torch.randn(400, 10, generator=generator) for split in labels}
    found = shifted_to_miss(network, labels, 3)
    of_digit = (labels["val"] == 3).nonzero()[:, 0]
    assert len(found) == int((network["val"][of_digit].argmax(1) != 3).sum()) + 1
    for missed in (0, 5, len(found) - 1):
        repaired = {split: torch.nn.functional.one_hot(truth, 10).float() for split, truth in labels.items()}
        repaired["val"][of_digit[:missed]] = torch.nn.functional.one_hot(torch.tensor(4), 10).float()
        assert found[missed] == find_shift(network, repaired, labels, 3).splits["test"]
    assert shifted_to_miss({"test": network["test"]}, labels, 3) == ()
