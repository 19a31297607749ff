"""The drawings that an adapter was taught ↔ PNGs in its folder, `drawings/7/0012.png`, which its manifest covers.

Importing this does not import torch: the report shows them.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lora_mnist.errors import AlteredError
from lora_mnist.files import write_file
from lora_mnist.runs.artifact import RESTORE, Artifact, ArtifactWriter

if TYPE_CHECKING:
    from lora_mnist.datasets.drawings import Drawings

DRAWINGS = "drawings"  # in the layout that `read_drawings` reads
NAME = re.compile(rf"{DRAWINGS}/([0-9])/([0-9]{{4}})\.png")
SIZE = (28, 28)


def save_drawings(draft: ArtifactWriter, drawings: Drawings) -> None:
    """Write each as a PNG below its digit, numbered in their order. Raises DiskError."""
    for number, (image, label) in enumerate(zip(drawings.images.cpu(), drawings.labels.tolist(), strict=True)):
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "PNG")
        write_file(draft.folder / DRAWINGS / str(label) / f"{number:04}.png", file.getvalue())


def labelled_pictures(saved: Artifact) -> list[tuple[int, np.ndarray]]:
    """What `saved` was taught, in its order: the digit, and uint8 (28, 28).

    Raises:
        RunError: one cannot be read.
        AlteredError: there is none, or one is not what `save_drawings` writes.
    """
    found = sorted((match[2], int(match[1]), name) for name in saved.hashes if (match := NAME.fullmatch(name)))
    if not found:
        raise AlteredError(f"{saved.folder} holds no drawings that it was taught.", RESTORE)
    return [(label, _image_in(saved, name)) for _, label, name in found]


def load_drawings(saved: Artifact) -> Drawings:
    """`labelled_pictures`, to compute with."""
    import torch

    from lora_mnist.datasets.drawings import Drawings

    labels, images = zip(*labelled_pictures(saved), strict=True)
    return Drawings(torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64))


def _image_in(saved: Artifact, name: str) -> np.ndarray:
    content = saved.content(name)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if (image.mode, image.size) != ("L", SIZE):
                raise ValueError(f"it is {image.mode} of {image.size}")
            return np.array(image)
    except Exception as error:  # damaged files make Pillow raise errors of many kinds
        raise AlteredError(f"{saved.folder / name} is no drawing of ours: {error}.", RESTORE) from error
