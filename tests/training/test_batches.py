import math

import pytest
import torch

from lora_mnist.errors import UsageError
from lora_mnist.training.batches import epoch_batches, mixed_batches, prior_offsets

LABELS = torch.arange(1000) % 10


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_epoch_sees_every_image_once_but_for_the_remainder():
    table = epoch_batches(103, 10, 3, seeded())
    assert table.shape == (30, 10)
    assert table.dtype == torch.int64
    for epoch in table.view(3, 100):
        assert len(epoch.unique()) == 100
        assert epoch.max() < 103
    assert not torch.equal(table[:10], table[10:20])


def test_a_batch_of_more_than_all_images_is_refused():
    with pytest.raises(UsageError, match="11"):
        epoch_batches(10, 11, 1, seeded())


@pytest.mark.parametrize(("focus", "of_digit"), [(1.0, 10), (0.3, 3)])
def test_every_batch_holds_the_share_asked_for(focus, of_digit):
    table = mixed_batches(LABELS == 9, focus, 10, 50, seeded())
    assert table.shape == (50, 10)
    assert ((LABELS[table] == 9).sum(1) == of_digit).all()


def test_a_share_of_no_image_is_refused_by_its_name():
    with pytest.raises(UsageError, match=r"`focus` \(=0.04\)"):
        mixed_batches(LABELS == 9, 0.04, 10, 50, seeded())
    with pytest.raises(UsageError, match="`share`"):
        mixed_batches(LABELS == 9, 0.04, 10, 50, seeded(), setting="share")


def test_no_image_comes_twice_before_its_pool_is_used_up():
    table = mixed_batches(LABELS == 9, 0.5, 10, 20, seeded())
    nines, others = table[LABELS[table] == 9], table[LABELS[table] != 9]
    assert len(nines) == len(nines.unique()) == 100
    assert len(others.unique()) == len(others)
    longer = mixed_batches(LABELS == 9, 0.5, 10, 60, seeded())
    assert (longer[LABELS[longer] == 9].bincount()[9::10] == 3).all()


def test_weights_say_how_often_an_image_is_drawn_from_its_pool():
    labels = torch.arange(10).repeat(2)
    weights = torch.zeros(20, dtype=torch.float64)
    weights[[9, 19]] = torch.tensor([1.0, 3.0]).double()  # the two nines
    weights[[2, 14]] = torch.tensor([0.2, 0.2]).double()  # two of the others
    table = mixed_batches(labels == 9, 0.25, 40, 1000, seeded(), weights)
    assert ((labels[table] == 9).sum(1) == 10).all()
    assert set(table.unique().tolist()) == {2, 9, 14, 19}
    times = table.flatten().bincount(minlength=20).double()
    assert float(times[19] / times[9]) == pytest.approx(3, rel=0.1)
    assert float(times[14] / times[2]) == pytest.approx(1, rel=0.1)
    assert torch.equal(table, mixed_batches(labels == 9, 0.25, 40, 1000, seeded(), weights))


def test_a_pool_of_which_the_network_is_wholly_sure_is_drawn_from_evenly():
    labels = torch.arange(10).repeat(2)
    table = mixed_batches(labels == 9, 0.5, 10, 200, seeded(), torch.zeros(20, dtype=torch.float64))
    assert len(table.unique()) == 20


def test_offsets_are_the_logarithm_of_how_much_more_a_digit_is_seen():
    labels = torch.arange(10).repeat_interleave(torch.tensor([10, 20, 30, 40, 10, 10, 10, 10, 10, 50]))  # 200 images
    batches = mixed_batches(labels == 9, 0.5, 20, 300, seeded())
    offsets = prior_offsets(labels, batches, 0.3)
    assert offsets.dtype == torch.float32
    assert float(offsets[9]) == pytest.approx(0.3 * math.log(0.5 / (50 / 200)), abs=1e-6)
    for digit in range(9):  # the others share what is left as they did before
        assert float(offsets[digit]) == pytest.approx(0.3 * math.log(0.5 / (150 / 200)), abs=0.02)
    assert torch.equal(prior_offsets(labels, batches, 0.0), torch.zeros(10))


def test_a_digit_that_is_never_seen_gets_no_offset():
    offsets = prior_offsets(LABELS, mixed_batches(LABELS == 9, 1.0, 10, 5, seeded()), 1.0)
    assert torch.equal(offsets[:9], torch.zeros(9))
    assert float(offsets[9]) == pytest.approx(math.log(10))
