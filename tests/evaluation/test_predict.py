import pytest
import torch

from lora_mnist.datasets.dataset import load
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.predict import held_out_logits, logits_of, require_finite
from lora_mnist.training.model import MLP, normalise


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
    dataset = load("digits", tmp_path, val_share, 0)
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
