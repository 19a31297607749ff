"""Single test images: what each is taken for before and after by the stored logits, and their pictures as PNG."""

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from lora_mnist.datasets.mnist import DOUBTFUL
from lora_mnist.errors import AlteredError
from lora_mnist.runs.artifact import LOGITS, Artifact
from lora_mnist.runs.atomic import RESTORE
from lora_mnist.runs.run import Run

SIDE = 28
COLUMNS = 40  # of the sheet: 1,120 pixels wide
MOST_PICTURES = 3000  # on one page: 0.5 MB of it
SHADES = 16  # four bits a pixel, half of what eight take, and no eye sees it


class Prediction(NamedTuple):
    """What an image is taken for; `probability` is that of its true digit, `confidence` that of the prediction."""

    prediction: int
    probability: float
    confidence: float


@dataclass(frozen=True)
class ImageResult:
    """A test image before and after."""

    index: int
    label: int
    before: Prediction
    after: Prediction
    agreed: int | None  # of five people, how many saw what the label says, where that is in doubt

    @property
    def kind(self) -> Literal["fixed", "broken", "wrong"]:
        """`wrong`: before and after."""
        if self.after.prediction == self.label:
            return "fixed"
        return "broken" if self.before.prediction == self.label else "wrong"


@dataclass(frozen=True)
class Images:
    """The images of one adapter."""

    examples: tuple[ImageResult, ...]  # those that changed; those first whose probability changed most
    wrong: tuple[ImageResult, ...]  # those wrong before or after, up to 2,000, in the order of the data set
    pictures: Mapping[str, np.ndarray]  # see `Artifact.pictures`; they are in the same order


def read_images(run: Run, adapter: Artifact) -> Images:
    """The images of `adapter`, with its base or the adapters below it as what was before.

    Raises:
        RunError: a file cannot be read.
        AlteredError: images and logits do not belong together.
    """
    on_top_of, pictures = adapter.finetune.on_top_of, adapter.pictures()
    before = _probabilities(run.adapter(on_top_of[-1]) if on_top_of else run.base)
    after = _probabilities(adapter)
    doubtful = DOUBTFUL if run.record.dataset.name == "mnist" else {}
    examples = [(one.index, one.label) for one in adapter.analysis.examples]
    wrong = list(zip(pictures["wrong_index"].tolist(), pictures["wrong_label"].tolist(), strict=True))
    if before.shape != after.shape or any(index >= len(after) for index, _ in (*examples, *wrong)):
        raise AlteredError(f"{adapter.folder / LOGITS} is not of the images that the adapter was judged by.", RESTORE)

    def result(index: int, label: int) -> ImageResult:
        seen_before, seen_after = (
            Prediction(int(one[index].argmax()), float(one[index][label]), float(one[index].max()))
            for one in (before, after)
        )
        return ImageResult(index, label, seen_before, seen_after, doubtful.get(index))

    return Images(tuple(result(*one) for one in examples), tuple(result(*one) for one in wrong), pictures)


def _probabilities(artifact: Artifact) -> np.ndarray:
    """Softmax (N, 10) float64 of its logits on `test`."""
    logits = artifact.arrays(LOGITS, {"test"})["test"].astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def sheet_of(adapters: Iterable[Images]) -> tuple[str, dict[int, int]]:
    """One PNG, as the source of an <img>, with the wrong images of all adapters, row by row, each once; and the place
    there of each image by its index. At most `MOST_PICTURES`; an empty source where there are none.

    As a file of its own each would take 0.3 KB more in the page, and again for every adapter.
    """
    found: dict[int, np.ndarray] = {}
    for one in adapters:
        found |= dict(zip(one.pictures["wrong_index"].tolist(), one.pictures["wrong"], strict=True))
    if not found:
        return "", {}
    chosen = sorted(found)[:MOST_PICTURES]
    ink = np.zeros((-(-len(chosen) // COLUMNS) * SIDE, COLUMNS * SIDE), np.uint8)
    for place, index in enumerate(chosen):
        row, column = divmod(place, COLUMNS)
        ink[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = found[index]
    shades = Image.fromarray(SHADES - 1 - (ink.astype(np.uint16) * SHADES // 256).astype(np.uint8), "P")
    shades.putpalette([level * 17 for level in range(SHADES) for _ in range(3)])
    return _source(shades, bits=4, optimize=True), {index: place for place, index in enumerate(chosen)}


def picture_source(image: np.ndarray) -> str:
    """An image, uint8 (28, 28), as the source of an <img>: ink on paper."""
    return _source(Image.fromarray(255 - image))


def _source(picture: Image.Image, **options: object) -> str:
    """As PNG within the page, which needs no other file."""
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
