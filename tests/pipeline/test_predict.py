import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from scipy.special import softmax

from lora_mnist.errors import RunError, UsageError
from lora_mnist.pipeline import Applied, finetune
from lora_mnist.pipeline.predict import Picture, pictures_in, pictures_of, predict, require_one_picture, write_picture
from lora_mnist.runs.atomic import remove_folder
from lora_mnist.runs.run import Run

from ..conftest import workspace


def test_a_test_image_is_guessed_as_it_was_evaluated(finished_run):
    """Against the logits that were stored with base and adapter."""
    work, run = workspace(finished_run), Run(finished_run)
    (adapter,) = run.adapters()
    found = predict(work, pictures_of(work, [3, 17]), [Applied(adapter.name)])
    assert found.dataset == "mnist-5k"
    for prediction, index in zip(found.predictions, (3, 17), strict=True):
        assert (prediction.index, prediction.label) == (index, int(work.dataset.test.labels[index]))
        assert prediction.file is None
        for guess, saved in zip(prediction.guesses, (run.base, adapter), strict=True):
            logits = load_file(saved.file("logits.safetensors"))["test"][index]
            assert guess.probabilities == pytest.approx(softmax(logits.double()), abs=1e-6)
            assert guess.digit == int(logits.argmax())
        assert [guess.adapter and guess.adapter.name for guess in prediction.guesses] == [None, adapter.name]
    (off,) = predict(work, pictures_of(work, [0]), [Applied(adapter.name, 0.0)]).predictions
    assert off.guesses[0].probabilities == off.guesses[1].probabilities  # at strength 0 it is the base


def test_an_adapter_is_on_those_it_was_trained_on(run_copy, adapter):
    upper = finetune(workspace(run_copy, digit=1, name="upper"), on_top_of=[adapter.name]).record.name
    work = workspace(run_copy)
    (found,) = predict(work, pictures_of(work, [5]), [Applied(upper)]).predictions
    assert found.guesses[1].on_top_of == (adapter.name,)
    stored = load_file(run_copy / "adapters" / upper / "logits.safetensors")["test"][5]  # of both together
    assert found.guesses[1].probabilities == pytest.approx(softmax(stored.double()), abs=1e-6)
    remove_folder(adapter)
    work = workspace(run_copy)
    with pytest.raises(RunError, match=adapter.name):
        predict(work, pictures_of(work, [5]), [Applied(upper)])


def test_a_drawing_is_prepared_and_named(finished_run, tmp_path):
    work = workspace(finished_run)
    place = tmp_path / "seven.png"
    canvas = np.full((200, 300), 240, np.uint8)
    canvas[40:60, 100:180] = canvas[40:160, 160:180] = 10
    Image.fromarray(canvas).save(place)
    (picture,), _ = pictures_in([place])
    assert picture.image.shape == (28, 28)
    assert picture.image[0, 0] == 0
    (found,) = predict(work, [picture]).predictions
    assert found.file == str(place)
    assert sum(found.guesses[0].probabilities) == pytest.approx(1)


@pytest.mark.parametrize("index", [-1, 1000, 10**12])
def test_there_is_no_such_test_image(finished_run, index):
    with pytest.raises(UsageError, match=r"from 0 to 999"):
        pictures_of(workspace(finished_run), [index])


def test_show_writes_what_the_networks_see_and_replaces_nothing_unasked(tmp_path):
    image = np.arange(784, dtype=np.uint16).astype(np.uint8).reshape(28, 28)
    write_picture(Picture(image), tmp_path / "seen.png")
    with Image.open(tmp_path / "seen.png") as seen:
        assert (np.asarray(seen) == image).all()
    for count, file, message in ((2, "new.png", "one"), (1, "new.jpg", "png"), (1, "seen.png", "exists already")):
        with pytest.raises(UsageError, match=message):
            require_one_picture(count, tmp_path / file, force=False)
    require_one_picture(1, tmp_path / "seen.png", force=True)
