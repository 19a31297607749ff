"""A drawing or photograph of one digit, whatever its size and colours → the picture that MNIST would have made of it.

MNIST scaled the digit's own box to 20 pixels along its longer side and put it into 28×28 by its centre of mass
(LeCun et al., "Gradient-based learning applied to document recognition", 1998, section III A). `prepare` does the same.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from lora_mnist.datasets import paper
from lora_mnist.datasets.paper import CERTAIN, EDGE, FAINTEST
from lora_mnist.errors import DataError
from lora_mnist.files import read_regular

SIDE = 28  # pixels of what the network sees
INNER = 20  # pixels of the longer side of the digit in it
WORKING = 2048  # pixels: a larger picture is averaged down first; of a digit that leaves 20 at a hundredth of the side

FORMATS = ("PNG", "JPEG", "WEBP")
NUMPY = b"\x93NUMPY"  # how a saved array begins
SAVE_AS = "Save it as PNG, JPEG, WebP or .npy."
LARGEST = 64 << 20  # bytes of a file; a photograph has a tenth

NOISE = 5.0  # standard deviations of the paper that are not taken for ink: one pixel in three million
SPECK = 0.03  # of all the ink: an isolated piece with less is dust
MAIN = 0.6  # of all the ink: what is left without the dust; text and patterns are nothing but small pieces
DOTS = (6, 400)  # how many make up a digit on an LED matrix
GAP = 0.2  # of the larger one's longer side: pieces with less between them are one digit, as a 5 and its bar
LIKE = 0.5  # of the larger one's longer side: smaller pieces are parts, not other digits
SHARE = 0.1  # of the larger one's ink: likewise, and a 1 beside a broad 0 has more

WAY_OUT = "Give a picture of one digit, dark on light or light on dark."
BETTER_LIGHT = "Take it in even light, without a shadow on it."


def read_image(path: Path) -> np.ndarray:
    """The picture in a PNG, JPEG, WebP or NumPy file as grey levels uint8 (H, W), upright, without transparency.

    Raises DataError if it cannot be read, is none of these, is damaged, or has more pixels than Pillow takes for safe.
    """
    try:
        content = read_regular(path, LARGEST)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Name the file of a picture.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a file and does no harm
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _array_in(content) if content.startswith(NUMPY) else _picture_in(content)
    except DataError as error:
        raise DataError(f"{path}: {error.cause}", error.way_out) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels.", "Make it smaller.") from error
    except Exception as error:  # damaged files make Pillow and NumPy raise errors of many kinds
        why = "it is of another kind" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path} is no picture that can be read: {why}.", SAVE_AS) from error


def prepare_file(path: Path) -> np.ndarray:
    """`prepare` of the picture in a file. Raises DataError as `read_image` and `prepare` do; it names the file."""
    grey = read_image(path)
    try:
        return prepare(grey)
    except DataError as error:
        raise DataError(f"{path}: {error.cause}", error.way_out) from error


def prepare(grey: np.ndarray) -> np.ndarray:
    """The picture that MNIST would have made of a digit.

    Args:
        grey: (H, W), also (1, H, W) or (H, W, 1); uint8 or other numbers from 0 to 255, floats or bools from 0 to 1,
            or uint16 of 8 to 16 bits; dark on light or light on dark.

    Returns:
        uint8 (28, 28), light on dark: the digit's box scaled by area averaging to 20 pixels along its longer side,
        placed by its centre of mass.

    Raises DataError if it is blank, too unevenly lit, holds several digits or a pattern, or is no picture.
    """
    # a photograph's paper first; on a clean canvas these two change nothing
    ink, noise, uneven = paper.ink_of(paper.without_table(_averaged(grey_levels(grey))))
    ink = paper.without_lines(ink, noise)
    ink, pieces = _pieces(ink, noise, uneven)
    around = paper.surroundings(ink, pieces) if pieces.max() > 1 else ()
    if len(around):
        ink, pieces = _pieces(np.where(np.isin(pieces, around), 0, ink), noise, uneven)
    if (dots := _spacing(pieces)) is not None:
        ink, pieces = _pieces(_joined(ink * (pieces > 0), *dots), noise, uneven)
    pieces, box = _without_specks(ink, pieces)
    _refuse_several(ink[box], pieces[box])
    digit = _scaled(np.where(pieces[box], ink[box], 0))
    return _centred(digit, ndimage.center_of_mass(digit))


def grey_levels(picture: np.ndarray) -> np.ndarray:
    """Grey levels float32 (H, W) from 0 to 255 of numbers as `prepare` takes them. Raises DataError for others."""
    while picture.ndim > 2 and 1 in (picture.shape[0], picture.shape[-1]):  # a channel of grey, or a batch of one
        picture = picture[0] if picture.shape[0] == 1 else picture[..., 0]
    if picture.ndim != 2 or not picture.size:
        raise DataError(f"A picture has rows and columns; here the shape is {picture.shape}.", WAY_OUT)
    if picture.dtype.kind not in "buif":
        raise DataError(f"A picture is made of numbers, not of {picture.dtype}.", WAY_OUT)
    low, high = float(picture.min()), float(picture.max())
    if picture.dtype == np.uint16:  # of which cameras and scanners fill 10, 12, 14 or all 16 bits
        return picture.astype(np.float32) * np.float32(255 / (2 ** max(int(high).bit_length(), 8) - 1))
    if not 0 <= low <= high <= 255:  # nor if one is NaN
        raise DataError(f"Grey levels reach from 0 to 255; here from {low:g} to {high:g}.", WAY_OUT)
    scale = 255 if picture.dtype.kind in "bf" and high <= 1 else 1
    return picture.astype(np.float32) * np.float32(scale)


def _array_in(content: bytes) -> np.ndarray:
    array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if array.size > (Image.MAX_IMAGE_PIXELS or array.size):
        raise Image.DecompressionBombError
    if array.ndim == 3 and array.shape[2] in (2, 3, 4) and array.dtype == np.uint8:  # with or without transparency
        return _grey(Image.fromarray(array))
    return np.rint(grey_levels(array)).astype(np.uint8)


def _picture_in(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
            return np.rint(grey_levels(np.asarray(upright).clip(0, 65535).astype(np.uint16))).astype(np.uint8)
        return _grey(upright)


def _grey(image: Image.Image) -> np.ndarray:
    """uint8 (H, W); where the image is transparent, on a ground that lets what is drawn stand out."""
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"))
    image = image.convert("RGBA")
    opacity, grey = image.getchannel("A"), image.convert("RGB").convert("L")
    opaque = np.asarray(opacity) > 127
    usual = int(np.median(np.asarray(grey)[opaque])) if opaque.any() else 0
    contrary = 0 if usual > 127 else 255
    # an image that is mostly opaque is paper with transparent corners
    ground = Image.new("L", image.size, usual if opaque.mean() > 0.5 else contrary)
    ground.paste(grey, mask=opacity)
    return np.asarray(ground)


def _averaged(grey: np.ndarray) -> np.ndarray:
    """float32 (H, W), by means of blocks if it is larger than `WORKING`, so that a photograph takes no longer."""
    factor = -(-max(grey.shape) // WORKING)
    if factor == 1:
        return grey
    height, width = (max(side // factor, 1) for side in grey.shape)
    blocks = grey[: height * factor, : width * factor].reshape(height, -1, width, min(factor, grey.shape[1]))
    return blocks.mean((1, 3))


def _pieces(ink: np.ndarray, noise: float, uneven: bool) -> tuple[np.ndarray, np.ndarray]:
    """`ink`, and its connected pieces of which a part certainly is ink: their numbers, int (H, W), 0 for none.

    Raises DataError if there are none.
    """
    peak = float(ink.max())
    edge = max(EDGE * peak, NOISE * noise)
    if peak < FAINTEST or edge > CERTAIN * peak:
        if uneven:
            raise DataError("The light on the paper is too uneven to tell ink from shadow.", BETTER_LIGHT)
        raise DataError("The picture is blank: nothing in it stands out from its background.", WAY_OUT)
    touching = np.ones((3, 3))  # also by a corner
    pieces, _ = ndimage.label(ink >= edge, touching)
    strong = np.unique(pieces[ink >= CERTAIN * peak])
    return ink, np.where(np.isin(pieces, strong), pieces, 0)


def _spacing(pieces: np.ndarray) -> tuple[float, float] | None:
    """Side and distance in pixels of dots, as on an LED matrix; None if `pieces` int (H, W) are not such."""
    if pieces.max() < DOTS[0]:
        return None
    boxes = [box for box in ndimage.find_objects(pieces) if box]
    if not DOTS[0] <= len(boxes) <= DOTS[1]:
        return None
    sides = np.array([[part.stop - part.start for part in box] for box in boxes])
    side = float(np.median(sides))
    full = np.bincount(pieces.ravel())[1:]
    full = full[full > 0] / sides.prod(1)
    if np.mean((np.abs(sides / side - 1) <= 0.5).all(1) & (full >= 0.6)) < 0.8:
        return None
    centres = np.array([[(part.start + part.stop) / 2 for part in box] for box in boxes])
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)
    return side, float(np.median(np.sort(apart, 0)[1]))


def _joined(ink: np.ndarray, side: float, apart: float) -> np.ndarray:
    """Strokes of dots: each grows until it meets the next one. Raises DataError if they fill an area."""
    margin = round(apart)
    strokes = ndimage.maximum_filter(np.pad(ink, margin), round(apart - side) + 1)
    (box,) = ndimage.find_objects((strokes >= CERTAIN * ink.max()).astype(np.int8))
    height, width = (part.stop - part.start for part in box)
    if (strokes[box] >= CERTAIN * ink.max()).mean() > 0.85 and max(height, width) < 3 * min(height, width):
        raise DataError("The picture holds a pattern of dots and no digit.", WAY_OUT)
    return ndimage.gaussian_filter(strokes, apart / 4)


def _without_specks(ink: np.ndarray, pieces: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice]]:
    """`pieces` without those that are too small to belong to a digit, and the box around what is left."""
    marked = pieces > 0
    amounts = np.bincount(pieces[marked], ink[marked])
    kept = amounts >= SPECK * amounts.sum()
    if amounts[kept].sum() < MAIN * amounts.sum():
        count = len(np.unique(pieces[marked]))
        raise DataError(f"The picture holds {count} small pieces, as text or a pattern does, and no digit.", WAY_OUT)
    pieces = np.where(kept[pieces] & marked, pieces, 0)
    (box,) = ndimage.find_objects((pieces > 0).astype(np.int8))
    return pieces, box


def _refuse_several(ink: np.ndarray, pieces: np.ndarray) -> None:
    """Raises DataError if two groups of `pieces` stand apart, and each is as large as a digit beside the other."""
    longer = [max(part.stop - part.start for part in box) for box in ndimage.find_objects(pieces) if box]
    if len(longer) == 1:
        return
    near = ndimage.distance_transform_edt(pieces == 0) <= GAP * max(longer) / 2
    groups = np.where(pieces, ndimage.label(near, np.ones((3, 3)))[0], 0)
    sides = np.array([max(part.stop - part.start for part in box) for box in ndimage.find_objects(groups)])
    amounts = np.bincount(groups.ravel(), ink.ravel())[1:]
    digits = int(((sides >= LIKE * sides.max()) & (amounts >= SHARE * amounts.max())).sum())
    if digits > 1:
        raise DataError(f"The picture holds {digits} digits, side by side or one below the other.", WAY_OUT)


def _scaled(digit: np.ndarray) -> np.ndarray:
    """float (h, w) → the same with a longer side of `INNER` pixels, the brightest of them at 255."""
    longer = max(digit.shape)
    height, width = (max(round(INNER * side / longer), 1) for side in digit.shape)
    small = _shares(len(digit), height) @ digit @ _shares(digit.shape[1], width).T
    return small * (255 / small.max())


def _shares(before: int, after: int) -> np.ndarray:
    """float32 (after, before): how much of each of `before` equal parts lies in each of `after`; rows sum to 1."""
    edges = np.linspace(0, before, after + 1)
    starts, ends, parts = edges[:-1, None], edges[1:, None], np.arange(before)
    overlap = np.minimum(ends, parts + 1) - np.maximum(starts, parts)
    return (overlap.clip(0) * after / before).astype(np.float32)


def _centred(digit: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """float (h, w), at most 28 each → uint8 (28, 28) with its `centre` in the middle, as far as there is room."""
    picture = np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = (
        slice(start, start + side)
        for side, middle in zip(digit.shape, centre, strict=True)
        for start in [min(max(round(SIDE / 2 - middle), 0), SIDE - side)]
    )
    picture[rows, columns] = np.rint(digit)
    return picture
