"""A picture of one digit becomes what MNIST would have made of it, whatever its size, place, colours and file."""

import io
import os
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw

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
def test_several_digits_are_refused_and_counted(axis):
    for picture in (beside(40, axis), 255 - beside(120, axis)):
        with pytest.raises(DataError, match="2 digits"):
            prepare(picture)
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


# Photographs ----------------------------------------------------------------------------------------------------------

SIDE, PAPER, INK = 400, 220.0, 40.0
DOWN, ACROSS = np.mgrid[0:SIDE, 0:SIDE]
NOISE = np.random.default_rng(2)


def on_paper(image, paper=PAPER, ink=INK):
    """A digit of 240 pixels in the middle of a sheet of 400, float."""
    big = np.asarray(Image.fromarray(image).resize((240, 240), Image.Resampling.BICUBIC)) / 255
    return paper + (ink - paper) * np.pad(big, 80)


def ruled(sheet, grey, every=40, width=2.0, slope=0.0, bend=0.0, squared=False, margin=0):
    """Lines under the ink, each `slope` pixels lower from column to column."""
    lines = (DOWN + slope * ACROSS + bend * np.sin(ACROSS / 130)) % every < width
    if squared:
        lines |= (ACROSS - slope * DOWN) % every < width
    lines &= np.abs(ACROSS - (SIDE - 1) / 2) < SIDE / 2 - margin
    return np.minimum(sheet, np.where(lines, grey, 255.0))


def on_table(sheet, level=60.0, sides=(0, 40, 0, 0), texture=0.0):
    """With so many pixels of table above, below, left and right of it."""
    top, bottom, left, right = sides
    table = np.full((SIDE + top + bottom, SIDE + left + right), float(level))
    table += NOISE.normal(0, 1, table.shape) * texture + texture * np.sin(np.arange(len(table)) / 7)[:, None]
    table[top : top + SIDE, left : left + SIDE] = sheet
    return table


def framed(sheet, away, width=4, radius=0, shape="rounded_rectangle"):
    frame = Image.new("L", (SIDE, SIDE), 255)
    more = {"radius": radius} if shape == "rounded_rectangle" else {}
    near, far = 80 - away, 319 + away
    getattr(ImageDraw.Draw(frame), shape)((near, near, far, far), outline=int(INK), width=width, **more)
    return np.minimum(sheet, np.asarray(frame))


def shaded(sheet, share, across=1.0, down=1.0, soft=15.0):
    """The light falls by `share` at a line through the middle."""
    along = (ACROSS - SIDE / 2) * across + (DOWN - SIDE / 2) * down
    return sheet * (1 - share / (1 + np.exp(-(along / soft).clip(-50, 50))))


def vignette(sheet, share):
    return sheet * (1 - share * ((ACROSS - SIDE / 2) ** 2 + (DOWN - SIDE / 2) ** 2) / (SIDE**2 / 2))


def noisy(picture):
    file = io.BytesIO()
    Image.fromarray(grey_levels(picture + NOISE.normal(0, 4, picture.shape))).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file)).astype(float)


def grey_levels(picture):
    return np.rint(picture.clip(0, 255)).astype(np.uint8)


ON_PAPER = [prepare(grey_levels(on_paper(digit))) for digit in DIGITS]
PHOTOGRAPHS = {
    "ruled, faint": lambda sheet: ruled(sheet, 205),
    "ruled": lambda sheet: ruled(sheet, 150),
    "ruled, black": lambda sheet: ruled(sheet, INK, every=50),
    "ruled, broad": lambda sheet: ruled(sheet, 170, every=57, width=5),
    "ruled, slanted": lambda sheet: ruled(sheet, 150, slope=0.06),
    "ruled, bent": lambda sheet: ruled(sheet, 150, bend=8),
    "ruled, with margins": lambda sheet: ruled(sheet, 150, margin=30),
    "ruled, with a line for the margin": lambda sheet: np.where(ACROSS // 4 == 15, 140, ruled(sheet, 170)),
    "ruled, light on dark": lambda sheet: 255 - ruled(sheet, 150),
    "squared": lambda sheet: ruled(sheet, 195, squared=True),
    "squared, narrow": lambda sheet: ruled(sheet, 180, every=20, width=1, squared=True),
    "squared, slanted, noisy": lambda sheet: noisy(ruled(sheet, 160, every=33, slope=0.03, squared=True)),
    "millimetre paper": lambda sheet: ruled(ruled(sheet, 190, 8, 1, squared=True), 150, 80, squared=True),
    "one thick line": lambda sheet: np.where((DOWN >= 330) & (DOWN < 344), INK, sheet),
    "a table on one side": on_table,
    "a textured table": lambda sheet: on_table(sheet, 80, (0, 0, 40, 0), texture=15),
    "a table on two sides": lambda sheet: on_table(sheet, sides=(0, 40, 0, 40)),
    "a table on three sides": lambda sheet: on_table(sheet, 150, sides=(0, 60, 60, 60)),
    "on a table": lambda sheet: on_table(sheet, sides=(40, 40, 40, 40)),
    "on a large table": lambda sheet: on_table(sheet, sides=(180, 180, 180, 180)),
    "on a lighter table": lambda sheet: on_table(sheet - 40, 240, (40, 40, 40, 40)),
    "on a textured table": lambda sheet: on_table(sheet, 90, (40, 40, 40, 40), texture=15),
    "a dark card": lambda sheet: 255 - on_table(sheet, sides=(40, 40, 40, 40)),
    "ruled, on a table": lambda sheet: on_table(ruled(sheet, 170), sides=(40, 40, 40, 40)),
    "in a box": lambda sheet: framed(sheet, 30),
    "in a box that it touches": lambda sheet: framed(sheet, -33),
    "in a close box": lambda sheet: framed(sheet, -20),
    "in a box of thick strokes": lambda sheet: framed(sheet, 30, width=16),
    "in a box at the border": lambda sheet: framed(sheet, 79),
    "in two boxes": lambda sheet: framed(framed(sheet, 30), 50),
    "in a rounded box": lambda sheet: framed(sheet, 20, width=6, radius=40),
    "in a circle": lambda sheet: framed(sheet, 30, shape="ellipse"),
    "in a box, light on dark": lambda sheet: 255 - framed(sheet, 30),
    "half in shadow": lambda sheet: shaded(sheet, 0.2),
    "half in deep shadow": lambda sheet: shaded(sheet, 0.5),
    "a sharp shadow": lambda sheet: shaded(sheet, 0.3, soft=1),
    "a shadow from below": lambda sheet: shaded(sheet, 0.35, across=0, soft=8),
    "a shadow, noisy": lambda sheet: noisy(shaded(sheet, 0.3, down=0.4)),
    "a shadow, light on dark": lambda sheet: shaded(255 - sheet, 0.4),
    "ruled, in shadow": lambda sheet: shaded(ruled(sheet, 170), 0.25),
    "dark corners": lambda sheet: vignette(sheet, 0.5),
    "dark corners, noisy": lambda sheet: noisy(vignette(sheet, 0.6)),
    "a fold": lambda sheet: sheet * np.where(ACROSS > 200, 0.93, 1),
}


@pytest.mark.parametrize("kind", PHOTOGRAPHS)
def test_only_the_digit_is_read(kind):
    for number, digit in enumerate(DIGITS):
        seen = prepare(grey_levels(PHOTOGRAPHS[kind](on_paper(digit))))
        far = [difference(seen, picture) for picture in ON_PAPER]
        assert far[number] == min(far)
        assert far[number] < 30


def test_a_sheet_may_lie_at_an_angle():
    for digit in DIGITS:
        sheet = Image.fromarray(grey_levels(on_paper(digit)))
        alone = sheet.rotate(8, Image.Resampling.BICUBIC, fillcolor=int(PAPER))
        on_it = Image.new("L", (520, 520), 60)
        on_it.paste(sheet.rotate(8, Image.Resampling.BICUBIC, expand=True, fillcolor=60), (33, 33))
        assert difference(prepare(np.asarray(on_it)), prepare(np.asarray(alone))) < 9


@pytest.mark.parametrize("factor", [1, 8, 14])
@pytest.mark.parametrize("light_on_dark", [True, False])
def test_a_digit_that_fills_the_picture_is_no_paper(factor, light_on_dark):
    """Its strokes along the border are neither table nor lines, and its loops are no frames and no sheets."""
    for digit in read_mnist_5k()[0][::100]:
        rows, columns = np.flatnonzero(digit.any(1)), np.flatnonzero(digit.any(0))
        cut = np.kron(digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], np.ones((factor, factor), np.uint8))
        if (np.concatenate([cut[0], cut[-1], cut[:, 0], cut[:, -1]]) > 12).mean() < 0.35:  # else ink may be paper
            seen = prepare(cut if light_on_dark else 255 - cut)
            assert difference(seen, prepare(np.pad(cut, 4 * factor))) < 1


@pytest.mark.parametrize("across", [True, False])
def test_a_stroke_may_reach_the_border(across):
    one = np.zeros((280, 280), np.uint8)
    one[:, 130:154] = 255
    seven = one.copy()
    seven[20:44, :154] = 255
    for drawing, columns in ((one, 2), (seven, 7)):
        picture = prepare(drawing.T if across else drawing)
        assert ((picture if not across else picture.T) > 100).any(0).sum() >= columns
        assert ((picture if not across else picture.T) > 100).any(1).sum() == 20


def test_a_closed_loop_is_no_frame():
    zero = np.zeros((300, 300), np.uint8)
    zero[50:250, 80:220] = 255
    zero[70:230, 100:200] = 0
    dotted = zero.copy()
    dotted[140:160, 140:160] = 255
    for drawing in (zero, dotted):
        picture = prepare(drawing)
        assert (picture > 100).any(1).sum() == 20
        assert picture[14, 8:20].max() == 255


def test_empty_paper_in_shadow_is_told_as_uneven_light():
    with pytest.raises(DataError, match="uneven"):
        prepare(grey_levels(shaded(np.full((SIDE, SIDE), PAPER), 0.4, soft=1)))


# Dots and patterns ----------------------------------------------------------------------------------------------------


def lamps(lit, every=40, size=26, off=0):
    """An LED matrix, light on dark, of bools (h, w)."""
    height, width = lit.shape
    panel = Image.new("L", (width * every + 80, height * every + 80))
    draw = ImageDraw.Draw(panel)
    for (down, across), on in np.ndenumerate(lit):
        place = 40 + across * every, 40 + down * every
        draw.ellipse((*place, place[0] + size, place[1] + size), fill=255 if on else off)
    return np.asarray(panel)


@pytest.mark.parametrize(("every", "size", "off"), [(40, 26, 0), (40, 20, 40), (24, 16, 0), (60, 24, 0)])
def test_dots_that_lie_close_together_are_one_digit(every, size, off):
    for digit in DIGITS:
        lit = digit[4:24, 4:24].reshape(10, 2, 10, 2).mean((1, 3)) > 90
        solid = np.kron(lit, np.full((20, 20), 255, np.uint8))
        assert difference(prepare(lamps(lit, every, size, off)), prepare(np.pad(solid, 40))) < 22


def test_two_digits_of_dots_are_two():
    three = np.array([[1, 1, 1], [0, 0, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1]], bool)
    apart = np.hstack([three, np.zeros((5, 3), bool), three])
    with pytest.raises(DataError, match="2 digits"):
        prepare(lamps(apart))


def text() -> np.ndarray:
    page = Image.new("L", (600, 400), 255)
    draw = ImageDraw.Draw(page)
    for line in range(10, 390, 14):
        draw.text((10, line), "the quick brown fox jumps over the lazy dog 0123456789", fill=0)
    return np.asarray(page)


PATTERNS = {
    "all lamps lit": lambda: lamps(np.ones((9, 9), bool), size=12),
    "dots": lambda: np.where((DOWN % 20 == 10) & (ACROSS % 20 == 10), 0, 255),
    "text": text,
    "squared paper": lambda: ruled(np.full((SIDE, SIDE), PAPER), 150, every=20, width=1, squared=True),
    "ruled paper": lambda: ruled(np.full((SIDE, SIDE), PAPER), 150),
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_pattern_is_no_digit(kind):
    for picture in (PATTERNS[kind](), 255 - PATTERNS[kind]()):
        with pytest.raises(DataError):
            prepare(grey_levels(picture))


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
    "12bit.png": lambda file: Image.fromarray((GREY / 255 * 4095).astype(np.uint16)).save(file),
    "10bit.png": lambda file: Image.fromarray((GREY / 255 * 1023).astype(np.uint16)).save(file),
    "8bit-in-16.png": lambda file: Image.fromarray(GREY.astype(np.uint16)).save(file),
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
    "12bit.npy": lambda file: np.save(file, (GREY / 255 * 4095).astype(np.uint16)),
    "channel-first.npy": lambda file: np.save(file, GREY[None]),
    "channel-last.npy": lambda file: np.save(file, GREY[..., None]),
    "shares-in-a-batch.npy": lambda file: np.save(file, (GREY / 255)[None, None].astype(np.float32)),
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


def picture(kind) -> bytes:
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, kind)
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
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a.npy", array(GREY))
    return file.getvalue()


BROKEN = {
    "empty": b"",
    "text": b"not a picture",
    "cut off": picture("PNG")[:200],
    "changed": picture("PNG")[:60] + bytes(40) + picture("PNG")[100:],
    "another kind": picture("GIF"),
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
    (tmp_path / name).write_bytes(picture("PNG") if name.endswith("png") else array(GREY))
    with pytest.raises(DataError, match=f"more than {limit:,} pixels"):
        read_image(tmp_path / name)


def test_a_file_is_not_read_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess, "LARGEST", 100)
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    with pytest.raises(DataError, match="more than 100 bytes"):
        read_image(tmp_path / "a.png")
