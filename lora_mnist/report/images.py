"""Single test images: what each is taken for before and after, how sure that is, and one sheet with all their pictures.

Predictions come from the stored logits, so they are there for runs of any age; pictures of wrong images only where the
adapter stored them.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from lora_mnist.datasets.mnist import DOUBTFUL
from lora_mnist.errors import AlteredError
from lora_mnist.evaluation.results import Analysis
from lora_mnist.report.document import SureGuess, WrongImage
from lora_mnist.runs.artifact import LOGITS, Artifact
from lora_mnist.runs.atomic import RESTORE
from lora_mnist.runs.run import Run

SIDE = 28
COLUMNS = 40  # of the sheet: 1,120 pixels wide
MOST_PICTURES = 3000  # on one page: 0.5 MB of it
SHADES = 16  # four bits a pixel, half of what eight take, and no eye sees it


@dataclass(frozen=True)
class Unseen:
    """Probabilities (N, 10) float64 of all test images before and after, and what is stored of the wrong ones.

    Attributes:
        index, label: int64 (n,) of the wrong ones; None where the adapter stored none.
        doubtful: by index, how many of five people agree with the label.
    """

    before: np.ndarray
    after: np.ndarray
    index: np.ndarray | None
    label: np.ndarray | None
    doubtful: Mapping[int, int]

    def examples(self, analysis: Analysis) -> tuple[WrongImage, ...]:
        """The examples of the analysis, in its order."""
        return tuple(self._image(one.index, one.label) for one in analysis.examples)

    def wrong_images(self) -> tuple[WrongImage, ...] | None:
        """In the order of the data set, as their pictures are."""
        if self.index is None or self.label is None:
            return None
        return tuple(self._image(int(i), int(label)) for i, label in zip(self.index, self.label, strict=True))

    def _image(self, index: int, label: int) -> WrongImage:
        before, after = _guess(self.before[index], label), _guess(self.after[index], label)
        kind: Literal["fixed", "broken", "wrong"] = "wrong"
        if after.prediction == label:
            kind = "fixed"
        elif before.prediction == label:
            kind = "broken"
        agreed = self.doubtful.get(index)
        return WrongImage(index=index, kind=kind, label=label, before=before, after=after, agreed=agreed)


def judged_of(run: Run, saved: Artifact) -> Unseen:
    """Of an adapter, with its base or the adapters below as what was before.

    Raises:
        RunError: a file cannot be read.
        AlteredError: images and logits do not belong together.
    """
    below = run.adapter(saved.finetune.on_top_of[-1]) if saved.finetune.on_top_of else run.base
    before, after = (_probabilities(one) for one in (below, saved))
    pictures = saved.pictures()
    index, label = pictures.get("wrong_index"), pictures.get("wrong_label")
    last = max([one.index for one in saved.analysis.examples] + ([] if index is None else index.tolist()), default=-1)
    if before.shape != after.shape or last >= len(after):
        raise AlteredError(f"{saved.folder / LOGITS} is not of the images that the adapter was judged by.", RESTORE)
    return Unseen(before, after, index, label, DOUBTFUL if run.record.dataset.name == "mnist" else {})


def _probabilities(saved: Artifact) -> np.ndarray:
    """Softmax (N, 10) of its logits on `test`."""
    logits = saved.arrays(LOGITS, {"test"})["test"].astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(1, keepdims=True)
    return shares


def _guess(shares: np.ndarray, label: int) -> SureGuess:
    taken = int(shares.argmax())
    return SureGuess(prediction=taken, probability=float(shares[label]), confidence=float(shares[taken]))


# Pictures -------------------------------------------------------------------------------------------------------------


def picture(image: np.ndarray) -> bytes:
    """An image, uint8 (28, 28), as a PNG: ink on paper."""
    return _png(Image.fromarray(255 - image))


@dataclass(frozen=True)
class Sheet:
    """Pictures of several adapters, uint8 (28, 28), each once. `places`: by index, the place, row by row."""

    images: Sequence[np.ndarray]
    places: Mapping[int, int]

    @property
    def png(self) -> bytes:
        """All in one."""
        return _sheet(self.images)


def sheet_of(adapters: Iterable[Artifact]) -> Sheet | None:
    """The wrong images of all of them, up to `MOST_PICTURES`; None where nothing is stored."""
    found: dict[int, np.ndarray] = {}
    for saved in adapters:
        pictures = saved.pictures()
        if "wrong" in pictures:
            found |= dict(zip(pictures["wrong_index"].tolist(), pictures["wrong"], strict=True))
    chosen = sorted(found)[:MOST_PICTURES]
    if not chosen:
        return None
    return Sheet([found[index] for index in chosen], {index: i for i, index in enumerate(chosen)})


def _sheet(images: Sequence[np.ndarray]) -> bytes:
    rows = -(-len(images) // COLUMNS)
    ink = np.zeros((rows * SIDE, COLUMNS * SIDE), np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, COLUMNS)
        ink[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = image
    shades = Image.fromarray(SHADES - 1 - (ink.astype(np.uint16) * SHADES // 256).astype(np.uint8), "P")
    shades.putpalette([level * 17 for level in range(SHADES) for _ in range(3)])
    return _png(shades, bits=4, optimize=True)


def _png(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()
