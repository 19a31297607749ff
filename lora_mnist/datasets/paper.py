"""What a photograph shows besides the digit, taken away: table, uneven light, ruled or squared lines, drawn frames.

A drawing on a clean canvas passes through unchanged, and so does a digit that fills its picture. All sizes are relative
to the picture's.
"""

import numpy as np
from scipy import ndimage

FAINTEST = 24.0  # grey levels of 255 by which ink stands out at least; paper and JPEG blocks vary by fewer
EDGE = 0.05  # of the darkest ink: where strokes end; low, since MNIST's boxes hold its faintest pixels too
CERTAIN = 0.4  # of the darkest ink: what certainly is some; each stroke holds a pixel that is darker

COARSE = 100  # pixels of the longer side at which a sheet is looked for
SMOOTH = 12.0  # grey levels between neighbours there: light changes by fewer, a sheet's edge by more
SHEET = 0.1  # of the picture: what a sheet covers at least
RECTANGULAR = 0.85  # of the smallest rectangle around it: a sheet covers more, an ellipse (a thick 0) π/4
WINDOW = 0.25  # of the longer side: wider than a stroke of usual size, narrower than a shadow
BROAD = 0.4  # of the longer side: wider than the thickest stroke of a digit that fills the picture
PHOTOGRAPH = 64  # pixels: no smaller picture is one of paper
LINE = 0.02  # of the longer side: printed lines and drawn frames are no thicker
STRIPS = 24  # in which a line is followed from border to border
FOLLOWED = 0.75  # of them that must show it; a digit, a fold or a margin may hide the others


def without_table(grey: np.ndarray) -> np.ndarray:
    """The sheet that lies on something else, float32 (H, W): the smallest even, rectangular part with ink inside."""
    if min(grey.shape) < PHOTOGRAPH:
        return grey
    small, factor = _coarse(grey)
    height, width = small.shape
    sides = [np.median(side) for side in (small[:2], small[-2:], small[:, :2], small[:, -2:])]
    if np.ptp(sides) < FAINTEST / 2 and (np.abs(small - np.median(sides)) > FAINTEST / 2).mean() < SHEET:
        return grey
    small = ndimage.median_filter(small, 5)  # without lines and thin strokes
    even = ndimage.maximum_filter(small, 3) - ndimage.minimum_filter(small, 3) < SMOOTH
    parts, _ = ndimage.label(even)
    sheets = []
    for number in np.flatnonzero(np.bincount(parts[even]) >= SHEET / 2 * small.size):
        part = ndimage.binary_fill_holes(parts == number)
        if SHEET * small.size <= part.sum() < 0.97 * (height - 2) * (width - 2) and _rectangular(part):
            sheets.append(part)
    for part in sorted(sheets, key=np.sum):
        if part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any():
            continue  # nothing lies along any side
        outside = ~ndimage.binary_dilation(part, iterations=3)
        if (np.abs(small[outside] - np.median(small[part])) < SMOOTH).mean() > 0.2:
            continue  # the paper goes on beyond, as it does around a digit's loop
        sheet = part.repeat(factor, 0).repeat(factor, 1)
        (box,) = ndimage.find_objects(sheet.astype(np.int8))
        inside = sheet[box]
        level = np.median(grey[box][inside])
        found = np.where(inside, grey[box], level)
        rim = inside & ~ndimage.binary_erosion(inside, iterations=2 * factor)
        ink = np.abs(found - level)
        peak = np.percentile(ink, 99.5)
        if peak >= FAINTEST and (ink[rim] >= CERTAIN * peak).mean() < 0.01:
            return found
    return grey


def _rectangular(part: np.ndarray) -> bool:
    """Whether a part bool (h, w) fills the smallest rectangle around it, turned by any angle, as a sheet does."""
    points = np.argwhere(part & ~ndimage.binary_erosion(part))
    angles = np.radians(np.arange(0, 90, 3))
    across = points @ np.array([np.cos(angles), np.sin(angles)])
    down = points @ np.array([-np.sin(angles), np.cos(angles)])
    sides = np.array([np.ptp(across, 0), np.ptp(down, 0)]) + 1
    best = sides.prod(0).argmin()
    return part.sum() >= RECTANGULAR * sides[:, best].prod() and sides[:, best].max() < 3 * sides[:, best].min()


def ink_of(grey: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """How far every pixel stands out from the paper to the side where the ink is, float32 (H, W), never negative.

    Also the standard deviation of the paper's noise, and whether the light is uneven. Ink is where most departs from
    the paper: the third power keeps the sign and lets noise, which goes both ways, cancel out.
    """
    away = grey - np.median(_border(grey))
    grain = noise = 0.0
    if _noise(away):
        away = min(away, grey - _slope(grey), key=_noise)
        grain, noise = _grain(grey), _noise(away)
    ink = (away if np.vdot(away * away, away) > 0 else -away).clip(0)
    if min(grey.shape) < PHOTOGRAPH or not (noise > 3 * grain + 2 or _uneven(away, float(ink.max()), grain)):
        return ink, noise, False
    ink = _in_local_light(grey)
    return ink, max(_noise(ink), grain), True


def _uneven(away: np.ndarray, peak: float, grain: float) -> bool:
    """Whether something at the border, broader than strokes, is lighter or darker than paper."""
    small = np.abs(_coarse(away)[0])
    other, strong = small > max(EDGE * peak, 2 * grain), small > CERTAIN * peak
    for mask, share in ((other & ~strong, WINDOW), (strong, BROAD)):
        side = round(share * max(mask.shape))
        if mask.sum() > side * side:
            broad = ndimage.minimum_filter(mask, side, mode="constant")
            broad[side // 2 + 2 : -side // 2 - 2, side // 2 + 2 : -side // 2 - 2] = False  # a digit's greyish loop
            if broad.any():
                return True
    return False


def _coarse(picture: np.ndarray) -> tuple[np.ndarray, int]:
    """Means of blocks, at most `COARSE` along the longer side, and the side of a block."""
    factor = -(-max(picture.shape) // COARSE)
    height, width = (side // factor for side in picture.shape)
    blocks = picture[: height * factor, : width * factor].reshape(height, factor, width, factor)
    return np.einsum("iajb->ij", blocks) / np.float32(factor * factor), factor


def _in_local_light(grey: np.ndarray) -> np.ndarray:
    """Ink, float32 (H, W), where the paper is what a window wider than any stroke cannot enter from the ink's side.

    Morphological closing and opening keep the edge of a shadow where it is, however sharp.
    """
    window = max(round(WINDOW * max(grey.shape)), 3)
    even = ndimage.uniform_filter(grey, 3) if _grain(grey) else grey
    away = even - ndimage.uniform_filter(even, window)
    dark = np.vdot(away * away, away) < 0
    rim = window // 2 + 1
    wide = np.pad(even, rim, mode="edge")  # a shadow goes on beyond the border
    light = (ndimage.grey_closing if dark else ndimage.grey_opening)(wide, window, mode="nearest")
    light = light[rim:-rim, rim:-rim]
    gain = light.max() / light.clip(max(light.max() / 4, 1))  # as it would be in the brightest light
    ink = (light - even if dark else even - light) * gain
    return (ink - np.median(_border(ink))).clip(0)


def _slope(grey: np.ndarray) -> np.ndarray:
    """Paper in uneven light, float32 (H, W): what the sides' medians say, since a stroke may touch the border."""
    top, bottom, left, right = (np.median(side) for side in _sides(grey))
    down, across = (np.linspace(-0.5, 0.5, side, dtype=np.float32) for side in grey.shape)
    middle = np.float32((top + bottom + left + right) / 4)
    return middle + (bottom - top) * down[:, None] + (right - left) * across


def _noise(away: np.ndarray) -> float:
    """Standard deviation along the border by the median of its size, which strokes that touch it hardly change."""
    return 1.4826 * float(np.median(np.abs(_border(away))))  # the factor is that of a normal distribution


def _grain(grey: np.ndarray) -> float:
    """Standard deviation of the noise from one pixel of the border to the next, whatever the light."""
    return 1.4826 / 2**0.5 * float(np.median(np.abs(np.diff(_border(grey)))))


def _sides(picture: np.ndarray) -> tuple[np.ndarray, ...]:
    """The strips along the four sides, each as one row: thicker than a printed line that happens to run there."""
    depth = max(min(picture.shape) // 64, 1)
    return tuple(turned[:depth].ravel() for turned in (picture, picture[::-1], picture.T, picture.T[::-1]))


def _border(picture: np.ndarray) -> np.ndarray:
    return np.concatenate(_sides(picture))


def without_lines(ink: np.ndarray, noise: float) -> np.ndarray:
    """`ink` (H, W) without thin lines from border to border, in either direction, a little slanted or bent."""
    if min(ink.shape) < PHOTOGRAPH or not (ink > 0).any():
        return ink
    thick = max(round(LINE * max(ink.shape)), 3)
    ink = _without_grid(ink, thick, noise)
    strong = ink >= CERTAIN * ink.max()
    (box,) = ndimage.find_objects(strong.astype(np.int8))
    rims = [rim for turned in (strong[box], strong[box].T) for rim in (turned[:thick], turned[-thick:])]
    if min(rim.any(0).mean() for rim in rims) >= FOLLOWED and min(strong[box].shape) >= PHOTOGRAPH:
        ink = ink.copy()  # a frame, which the digit may touch
        ink[box] = _without_grid(ink[box], thick, noise)
    return ink


def _without_grid(ink: np.ndarray, thick: int, noise: float) -> np.ndarray:
    for turned in (False, True):
        across = ink.T if turned else ink
        cleaned = _without_rows(across, thick, noise)
        if cleaned is not across:
            cleaned = _without_rows(cleaned, thick, noise)  # bold ones hide faint ones, or the other way round
        ink = cleaned.T if turned else cleaned
    return ink


def _without_rows(ink: np.ndarray, thick: int, noise: float) -> np.ndarray:
    """`ink` without lines from left to right: what is thin from above to below along a path that is thin throughout.

    The picture is cut into vertical strips; a path goes from strip to strip and a few rows up or down. Of all paths
    through a place, dynamic programming from both borders finds how much of the best one shows a line.
    """
    height, width = ink.shape
    peak = float(ink.max())
    faint = max(0.04 * peak, 3 * noise, 3.0)
    if (ink >= faint).any(0).mean() < FOLLOWED - 2 / STRIPS:
        return ink
    step = width // STRIPS
    end = step * STRIPS

    def share(what: np.ndarray) -> np.ndarray:
        return what[:, :end].reshape(height, STRIPS, step).mean(2, dtype=np.float32)

    seen = share(ndimage.maximum_filter1d(ink >= faint, 3, axis=0))
    if (seen.max(0) >= 0.6).sum() < FOLLOWED * STRIPS:  # most drawings end here
        return ink
    body = ndimage.grey_opening(ink, (thick + 1, 1))  # without what is thin from above to below
    line = ndimage.maximum_filter1d(ink - body >= faint, 3, axis=0)
    hidden = body >= CERTAIN * peak
    shown = share(line)
    score = np.where(shown >= 0.6, 1.0, np.where(share(line | hidden) >= 0.6, 0.7, 0.0))  # (H, STRIPS)
    if score.max(0).sum() < FOLLOWED * STRIPS:  # no path can have more
        return ink
    reach = 2 * max(round(0.035 * step), 1) + 1  # rows up and down from strip to strip: a slope of some degrees

    def followed(score: np.ndarray) -> np.ndarray:
        best = score.copy()
        for i in range(1, STRIPS):
            best[:, i] += ndimage.maximum_filter1d(best[:, i - 1], reach)
        return best

    total = followed(score) + followed(score[:, ::-1])[:, ::-1] - score
    on = (total >= FOLLOWED * STRIPS) & (score > 0)
    if not on.any():
        return ink
    mask = np.zeros(ink.shape, bool)
    mask[:, :end] = on.repeat(step, 1)
    mask[:, end:] = on[:, -1:]
    mask = ndimage.maximum_filter1d(mask, 3, axis=0)
    thin = ink - body
    # darker ones are ink that crosses a line
    level = float(np.percentile(thin[mask & (thin >= faint)], 80))
    cleaned = np.where(mask & (thin > 0) & (ink <= 1.6 * level + 3 * noise), body, ink)
    # one or two lines as dark and as thick as all else are strokes: the bar of a 7, the base of a 2
    count = int(ndimage.label(ndimage.maximum_filter1d((on & (shown >= 0.6)).any(1), 3))[1])
    if count < 3:
        rest = ndimage.grey_opening(cleaned, (thick + 1, thick + 1))
        if level > 0.6 * peak and rest.max() < 0.5 * peak:
            return ink
    return cleaned


def surroundings(ink: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """Which numbers of `pieces` int (H, W) surround the digit: a frame, or a table that takes up a whole side."""
    boxes = ndimage.find_objects(pieces)
    found: list[np.intp] = []
    amounts = np.bincount(pieces.ravel(), ink.ravel(), len(boxes) + 1)
    longer = np.array([0] + [max(part.stop - part.start for part in box) if box else 0 for box in boxes])
    for n in np.argsort(-longer):
        if longer[n] < 0.2 * max(ink.shape):
            break
        parts = (longer >= 0.2 * longer[n]) & (amounts >= 0.02 * amounts[n])
        others = [boxes[m - 1] for m in np.flatnonzero(parts) if m not in (n, *found)]
        box = boxes[n - 1]
        if others and (_along_border(pieces == n, box) or _frames(pieces[box] == n, box, others)):
            found.append(n)
    return np.array(found, int)


def _along_border(piece: np.ndarray, box: tuple[slice, slice]) -> bool:
    """Whether a piece bool (H, W) takes up a whole side, or goes straight from border to border."""
    if max(side.mean() for side in (piece[0], piece[-1], piece[:, 0], piece[:, -1])) >= 0.9:
        return True
    shares = [(part.stop - part.start) / side for part, side in zip(box, piece.shape, strict=True)]
    return max(shares) == 1 and min(shares) <= 0.1


def _frames(piece: np.ndarray, box: tuple[slice, slice], others: list[tuple[slice, slice]]) -> bool:
    """Whether a piece bool (h, w) runs along all four sides of its `box`, leaves the middle free, and holds another."""
    holds = any(all(a.start < b.start and b.stop < a.stop for a, b in zip(box, other, strict=True)) for other in others)
    if not holds:
        return False
    height, width = piece.shape
    down, across = height // 5, width // 5
    if piece[down : height - down, across : width - across].sum() > 0.02 * piece.sum():
        return False
    bands = (piece[:down].any(0), piece[-down:].any(0), piece[:, :across].any(1), piece[:, -across:].any(1))
    return all(band.mean() >= 0.6 for band in bands)
