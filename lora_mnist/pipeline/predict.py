"""What a picture is taken for: by the base, and with each adapter on it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lora_mnist.errors import DataError, UsageError
from lora_mnist.evaluation.metrics import require_finite
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.runs.atomic import require_no_file, write_file
from lora_mnist.runs.schemas import AppliedAdapter
from lora_mnist.settings.config import Count, Digit, Document, Many, Maybe
from lora_mnist.settings.request import Applied
from lora_mnist.training.model import logits_of


@dataclass(frozen=True)
class Picture:
    """A digit as the networks see it, uint8 (28, 28), from a file, or a test image with its index and true digit."""

    image: np.ndarray
    file: str | None = None
    index: int | None = None
    label: int | None = None


class NetworkGuess(Document):
    """What one network takes a picture for."""

    adapter: AppliedAdapter | None  # None for the base
    on_top_of: Many[str]  # on with it, since it was trained so
    digit: Digit  # the likeliest
    probabilities: Many[float]  # of 0 to 9


class Prediction(Document):
    """What each network takes a picture for, the base first; `file`, `index` and `label` as in `Picture`."""

    file: Maybe[str] = None
    index: Maybe[Count] = None
    label: Maybe[Digit] = None
    guesses: Many[NetworkGuess]


class Predictions(Document):
    """Of the pictures in their order. `dataset` is what the base was trained on."""

    dataset: str
    predictions: Many[Prediction]
    refused: Maybe[dict[str, str]] = None  # other files, each with the reason, if there are any


def pictures_in(files: Sequence[Path]) -> tuple[list[Picture], dict[str, str]]:
    """Drawings or photographs of one digit each, prepared as `dataset` prepared its own.

    Also the files that cannot be read, are blank or hold several digits, each with the reason. Raises DataError if that
    is the only one.
    """
    from lora_mnist.datasets.preprocess import prepare_file  # with scipy's ndimage, which most commands do not need

    pictures, refused = list[Picture](), dict[str, str]()
    for file in files:
        try:
            pictures.append(Picture(prepare_file(file), str(file)))
        except DataError as error:
            if len(files) == 1:
                raise
            refused[str(file)] = str(error)
    return pictures, refused


def pictures_of(work: Workspace, indices: Sequence[int]) -> list[Picture]:
    """Test images, as they are. Raises UsageError if there is none of such an index."""
    test = work.dataset.test
    if wrong := [index for index in indices if not 0 <= index < len(test)]:
        raise UsageError(
            f"`index` (={wrong[0]}) must be from 0 to {len(test) - 1}: there are {len(test):,} test images.",
            "Choose another --index.",
        )
    return [Picture(test.images[i].cpu().numpy(), index=i, label=int(test.labels[i])) for i in indices]


def require_one_picture(count: int, file: Path, force: bool) -> None:
    """Check that `write_picture` can do what it is asked, before any work is spent.

    Raises UsageError if there are several pictures or `file` is no PNG, and what `require_no_file` raises.
    """
    if count != 1:
        raise UsageError(f"{file} can show one picture, and there are {count}.", "Name one, or leave --show out.")
    if file.suffix.lower() != ".png":
        raise UsageError(f"{file} does not end in .png, which is what it would be.", "Choose another name.")
    require_no_file(file, force)


def write_picture(picture: Picture, file: Path) -> None:
    """Write what the networks see as PNG, light on dark, 28×28. Raises DiskError."""
    content = io.BytesIO()
    Image.fromarray(picture.image).save(content, "PNG")
    write_file(file, content.getvalue())


def predict(
    work: Workspace, pictures: Sequence[Picture], adapters: Sequence[Applied] = (), allow_unverified: bool = False
) -> Predictions:
    """What the base takes each picture for, and the base with each of `adapters`: one at a time, not all together.

    Raises:
        UsageError: the logits are not finite.
        LoRAError: a strength is not finite.
        RunError: an adapter, or one that it was trained on top of, is missing, damaged, or made on another base.
    """
    if not pictures:
        return Predictions(dataset=work.dataset.name, predictions=())
    images = torch.from_numpy(np.stack([picture.image for picture in pictures])).to(work.device)  # (N, 28, 28)
    guesses: list[list[NetworkGuess]] = []  # by network, then by picture
    for one in (None, *adapters):
        below = work.run.on_top_of(one.reference) if one else ()
        model, used = work.adapted([*map(Applied, below), one] if one else [], allow_unverified)
        logits = logits_of(model, images)  # (N, 10)
        require_finite({"": logits}, "Choose a smaller --strength.")
        on, rows = used[-1] if one else None, logits.double().softmax(1).tolist()
        guesses.append(
            [
                NetworkGuess(adapter=on, on_top_of=below, digit=row.index(max(row)), probabilities=tuple(row))
                for row in rows
            ]
        )
    predictions = tuple(
        Prediction(file=picture.file, index=picture.index, label=picture.label, guesses=of_networks)
        for picture, of_networks in zip(pictures, zip(*guesses, strict=True), strict=True)
    )
    return Predictions(dataset=work.dataset.name, predictions=predictions)
