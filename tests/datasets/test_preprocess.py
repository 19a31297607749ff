"""A picture of one digit becomes what MNIST would have made of it, whatever its size, place, colours and file."""

import io
import os
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from lora_mnist.datasets import preprocess
from lora_mnist.datasets.embedded import read_mnist_5k
from lora_mnist.datasets.preprocess import prepare, read_image
from lora_mnist.errors import DataError

SEVEN = np.zeros((12, 8), np.uint8)
SEVEN[:2], SEVEN[:, 6:] = 200, 250  # not symmetric, so that a turned or mirrored one is another
DIGITS = read_mnist_5k()[0][::500]  # one of each, in their order


def drawn(image, size=(240, 320), at=(30, 50), factor=9, ink=255, paper=0):
    """`image` on a canvas, every pixel of it a square."""
    canvas = np.full(size, float(paper))
    big = np.kron(image, np.ones((factor, factor)))
    canvas[at[0] : at[0] + len(big), at[1] : at[1] + big.shape[1]] += big / 255 * (ink - paper)
    return np.rint(canvas).astype(np.uint8)


def difference(a, b) -> float:
    """Mean over all pixels."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


# Preparation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [(0, 0), (3, 200), (130, 20)])
@pytest.mark.parametrize(("ink", "paper"), [(255, 0), (0, 255), (60, 180), (190, 90)])
def test_place_and_colours_do_not_matter(at, ink, paper):
    expected = prepare(drawn(SEVEN))
    assert np.abs(prepare(drawn(SEVEN, at=at, ink=ink, paper=paper)).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("factor", [1, 2, 5, 13])
def test_size_does_not_matter_when_every_pixel_becomes_a_square(factor):
    """Means over areas are the same, exactly, whatever the number of equal parts."""
    once = prepare(drawn(SEVEN, factor=1))
    assert np.abs(prepare(drawn(SEVEN, factor=factor)).astype(int) - once).max() <= 1


def test_the_longer_side_is_20_and_the_centre_of_mass_in_the_middle():
    for digit in read_mnist_5k()[0][::125]:
        picture = prepare(digit)
        rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)  # a faint row may round to nothing
        mass = picture.astype(float)
        for axis in (0, 1):
            centre = (mass.sum(1 - axis) * np.arange(28)).sum() / mass.sum()
            assert abs(centre - 14) <= 0.51
        assert picture.max() == 255
        assert picture.dtype == np.uint8


def test_shrinking_takes_the_mean_of_each_area():
    """30 pixels to 20: each takes one and a half."""
    stripes = np.zeros((30, 30), np.uint8)
    stripes[:, ::3], stripes[:, 2::3] = 240, 120  # 240, 0, 120, 240, 0, 120, …
    picture = prepare(np.pad(stripes, 20))
    row = picture[picture.any(1)][0]
    assert set(row[row > 0]) == {255, 128}  # (240 + 0 / 2) and (0 / 2 + 120) over 1.5, the brightest at 255


def test_a_thin_line_is_as_bright_as_a_broad_one():
    line = np.zeros((300, 200), np.uint8)
    line[20:280, 100] = 80
    assert prepare(line).max() == 255


@pytest.mark.parametrize("kind", ["noise", "light", "jpeg", "dust"])
def test_paper_is_not_taken_for_ink(kind):
    random = np.random.default_rng(0)
    clean = drawn(DIGITS[3], factor=6, ink=60, paper=190)
    seen = clean.astype(float)
    if kind == "noise":
        seen += random.normal(0, 6, seen.shape)
    elif kind == "light":
        seen += np.linspace(-40, 40, seen.shape[1]) + np.linspace(-15, 15, len(seen))[:, None]
    elif kind == "jpeg":
        file = io.BytesIO()
        Image.fromarray(clean).save(file, "JPEG", quality=40)
        seen = np.asarray(Image.open(file)).astype(float)
    else:
        seen[5:8, 5:8] = seen[230:233, 310:313] = 60
    assert difference(prepare(seen.clip(0, 255).astype(np.uint8)), prepare(clean)) < 6
    assert difference(prepare(DIGITS[4]), prepare(clean)) > 20  # what another digit makes


def test_bits_and_shares_are_grey_levels_too():
    grey = drawn(SEVEN)
    assert (prepare(grey / 255) == prepare(grey)).all()
    assert (prepare(grey > 100) == prepare(np.where(grey > 100, 255, 0))).all()


def test_a_large_picture_is_the_same_digit(monkeypatch):
    grey = drawn(DIGITS[5], at=(5, 5), factor=8)
    expected = prepare(grey)
    monkeypatch.setattr(preprocess, "WORKING", 160)  # means of two by two
    assert difference(prepare(grey), expected) < 6


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 2), (28, 28), (300, 200)])
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_one_grey_is_blank(shape, grey):
    with pytest.raises(DataError, match="blank"):
        prepare(np.full(shape, grey, np.uint8))


@pytest.mark.parametrize("size", [(28, 28), (200, 300)])
@pytest.mark.parametrize("kind", ["normal", "uniform", "slope", "faint"])
def test_nothing_but_paper_is_blank(size, kind):
    random = np.random.default_rng(1)
    pictures = {
        "normal": random.normal(128, 12, size).clip(0, 255),
        "uniform": random.uniform(0, 255, size),
        "slope": np.broadcast_to(np.linspace(20, 230, size[1]), size),
        "faint": np.pad(np.full((8, 8), 15.0), 10),
    }
    with pytest.raises(DataError, match="blank"):
        prepare(pictures[kind])


@pytest.mark.parametrize("picture", [np.zeros(5), np.zeros((2, 2, 2, 2)), np.zeros((0, 5))])
def test_what_has_no_rows_and_columns_is_no_picture(picture):
    with pytest.raises(DataError, match="rows and columns"):
        prepare(picture)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 300.0, 1e30])
def test_numbers_that_are_no_grey_levels_are_refused(value):
    with pytest.raises(DataError, match="0 to 255"):
        prepare(np.full((5, 5), value))


# One digit or several -------------------------------------------------------------------------------------------------


def beside(gap, axis, first=SEVEN, second=SEVEN):
    """Two drawings with so many pixels of a hundred and twenty between them."""
    big = [np.kron(part, np.ones((10, 10), np.uint8)) for part in (first, second)]
    space = np.zeros((gap, big[0].shape[1]) if axis == 0 else (len(big[0]), gap), np.uint8)
    return np.pad(np.concatenate([big[0], space, big[1]], axis), 25)


@pytest.mark.parametrize("axis", [0, 1])
def test_two_digits_are_refused(axis):
    for picture in (beside(40, axis), 255 - beside(120, axis)):
        with pytest.raises(DataError, match="2 digits"):
            prepare(picture)


def test_three_are_counted():
    with pytest.raises(DataError, match="3 digits"):
        prepare(np.hstack([beside(60, 1), np.pad(np.kron(SEVEN, np.ones((10, 10), np.uint8)), 25)]))


def test_a_broken_stroke_is_one_digit():
    whole = np.kron(SEVEN, np.ones((10, 10), np.uint8))
    whole[60:75] = 0  # the stem in two
    prepare(np.pad(whole, 25))


def test_a_five_may_have_its_bar_apart():
    five = np.zeros((120, 90), np.uint8)
    five[30:45, :60] = five[30:75, :15] = five[60:75, :60] = five[60:120, 60:75] = five[105:120, :75] = 255
    five[0:14, 35:90] = 255  # 16 pixels above the rest
    assert prepare(np.pad(five, 30))[4:6].any()


# Files ----------------------------------------------------------------------------------------------------------------

GREY = drawn(DIGITS[0], size=(200, 200), at=(10, 20), factor=6)
EXPECTED = prepare(GREY)
COLOURS = np.dstack([GREY] * 3)
CLEAR = np.zeros_like(COLOURS)
CORNERS = np.dstack([255 - COLOURS, np.full_like(GREY, 255)])
CORNERS[:12, :12, 3] = CORNERS[-12:, -12:, 3] = 0


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 3  # orientation: turned by 180 degrees
    return exif


PICTURES = {
    "grey.png": lambda file: Image.fromarray(GREY).save(file),
    "dark.png": lambda file: Image.fromarray(255 - GREY).save(file),
    "palette.png": lambda file: Image.fromarray(GREY).convert("P").save(file),
    "16bit.png": lambda file: Image.fromarray(GREY.astype(np.uint16) * 257).save(file),
    "colours.webp": lambda file: Image.fromarray(COLOURS).save(file, lossless=True),
    "colours.jpg": lambda file: Image.fromarray(COLOURS).save(file, quality=95),
    "print.jpg": lambda file: Image.fromarray(COLOURS).convert("CMYK").save(file, quality=95),
    "turned.jpg": lambda file: Image.fromarray(COLOURS).rotate(180).save(file, quality=95, exif=upside_down()),
    "black-on-clear.png": lambda file: Image.fromarray(np.dstack([CLEAR, GREY])).save(file),
    "white-on-clear.png": lambda file: Image.fromarray(np.dstack([255 - CLEAR, GREY])).save(file),
    "clear-grey.png": lambda file: Image.fromarray(np.dstack([CLEAR[..., 0], GREY]), "LA").save(file),
    "card-with-corners.png": lambda file: Image.fromarray(CORNERS).save(file),
    "levels.npy": lambda file: np.save(file, GREY),
    "shares.npy": lambda file: np.save(file, (GREY / 255).astype(np.float32)),
    "colours.npy": lambda file: np.save(file, COLOURS),
    "named.dat": lambda file: Image.fromarray(GREY).save(file, "PNG"),
}


@pytest.mark.filterwarnings("ignore:.*mode.*parameter:DeprecationWarning")
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_read(tmp_path, name):
    PICTURES[name](tmp_path / name)
    grey = read_image(tmp_path / name)
    assert grey.dtype == np.uint8
    assert grey.shape == GREY.shape
    assert difference(prepare(grey), EXPECTED) < (0.5 if name.endswith(".jpg") else 0.01)


def png(picture=GREY) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def array(value, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, value, **options)
    return file.getvalue()


def header(shape) -> bytes:
    """Of an array much larger than the file."""
    text = str({"descr": "<f8", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as provenance:
        provenance.writestr("a.npy", array(GREY))
    return file.getvalue()


def gif() -> bytes:
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "GIF")
    return file.getvalue()


BROKEN = {
    "empty": b"",
    "text": b"not a picture",
    "cut off": png()[:200],
    "changed": png()[:60] + bytes(40) + png()[100:],
    "another kind": gif(),
    "pickled": array(np.array([{}], object), allow_pickle=True),
    "strings": array(np.array([["a"]])),
    "complex": array(np.full((5, 5), 1j)),
    "NaN": array(np.full((5, 5), np.nan)),
    "flat": array(GREY[0]),
    "far too large": header((10**6, 10**6)),
    "shorter than it says": header((1000, 1000)) + bytes(100),
    "an archive": archive(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_picture_is_refused_by_name(tmp_path, kind):
    file = tmp_path / "three.png"
    file.write_bytes(BROKEN[kind])
    with pytest.raises(DataError, match=r"three\.png") as error:
        read_image(file)
    assert "0x" not in str(error.value)  # an address in memory


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("missing", "pipe", "device", "."):
        with pytest.raises(DataError, match="cannot be read"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["large.png", "large.npy"])
@pytest.mark.parametrize("limit", [GREY.size // 3, GREY.size - 1])  # Pillow refuses the one and warns of the other
def test_pillows_limit_holds(tmp_path, monkeypatch, name, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (tmp_path / name).write_bytes(png() if name.endswith("png") else array(GREY))
    with pytest.raises(DataError, match=f"more than {limit:,} pixels"):
        read_image(tmp_path / name)


def test_a_file_is_not_read_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess, "LARGEST", 100)
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(DataError, match="more than 100 bytes"):
        read_image(tmp_path / "a.png")
