"""Photographs of handwritten digits, made by a seed and not stored.

A photograph is made in the order in which one comes about: digits on a sheet, a pen's ink on a
paper, how the sheet lies, the light on it, and the camera. Each kind replaces some of these steps.
HELD_OUT are for an exam alone: nothing may be developed or chosen on them.
"""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

LAYOUTS = ("one", "separate", "touching")
Rng = np.random.Generator
Shape = tuple[int, int]
Colour = tuple[float, float, float]  # red, green, blue: the share of light that is reflected


class Sheet(NamedTuple):
    """ink: [h, w] float32, 0 paper to 1 ink; size: the digits' height in px; text: its lines."""

    ink: np.ndarray
    size: float
    text: str


# ---- Digits on a sheet


def stroke(digit: np.ndarray, scale: float) -> np.ndarray:
    """A digit [28, 28] uint8, `scale` times as large, as a pen draws it: [h, w] 0 to 1.

    Its borders are smooth and sharp; its margins are cut off.
    """
    rows, columns = (np.flatnonzero(digit.max(axis) > 60) for axis in (1, 0))
    part = np.pad(digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 2)
    part = ndimage.gaussian_filter(part.astype(np.float32) / 255, 0.6)
    fine = max(scale, 4)
    size = [round(fine * side) for side in part.shape[::-1]]
    grey = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BICUBIC))
    ink = np.clip((grey - 0.3) * fine / 0.5 + 0.5, 0, 1)
    if fine > scale:
        size = [max(round(scale * side), 1) for side in part.shape[::-1]]
        ink = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BOX))
    rows, columns = (np.flatnonzero(ink.max(axis) > 0.3) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _touching(left: np.ndarray, right: np.ndarray, reach: int) -> int:
    """How far right of `left` [h, w] the other one [h, w] begins where their ink just touches.

    Ink up to `reach` rows higher or lower counts as near.
    """
    ends = np.where(left > 0.5, np.arange(left.shape[1]), -(10**6)).max(axis=1)
    begins = np.where(right > 0.5, np.arange(right.shape[1]), 10**6).min(axis=1)
    near = np.pad(ends, reach, constant_values=-(10**6))
    ends = np.lib.stride_tricks.sliding_window_view(near, 2 * reach + 1).max(axis=1)
    return max(int((ends - begins).max()) + 1, 1)


def line(rng: Rng, digits: np.ndarray, size: float, touching: bool) -> np.ndarray:
    """Digits [N, 28, 28] in a row, about `size` px high: [h, w] float32, 0 to 1.

    touching: neighbours touch with probability 1/2, two of them certainly; else none do.
    """
    touches = rng.random(len(digits) - 1) < (0.5 if touching else 0)
    if touching and not touches.any():
        touches[rng.integers(len(touches))] = True
    strokes = [stroke(digit, size / 20 * rng.uniform(0.9, 1.1)) for digit in digits]
    drops = np.rint(rng.uniform(0, 0.1, len(digits)) * size).astype(int)
    height = max(len(ink) + drop for ink, drop in zip(strokes, drops, strict=True))
    strokes = [
        np.pad(ink, ((height - len(ink) - drop, drop), (0, 0)))
        for ink, drop in zip(strokes, drops, strict=True)
    ]
    starts = [0]
    for one, other, touch in zip(strokes, strokes[1:], touches, strict=False):
        step = _touching(one, other, reach=0 if touch else round(0.1 * size))
        if touch:
            step -= round(rng.uniform(0.01, 0.06) * size)
        else:  # a few overlap in columns, as slanted ones do
            step = max(step + rng.uniform(0.12, 0.5) * size, one.shape[1] - 0.05 * size)
        starts.append(starts[-1] + max(round(step), 1))
    ends = [start + ink.shape[1] for start, ink in zip(starts, strokes, strict=True)]
    row = np.zeros((height, max(ends)), np.float32)
    for start, end, ink in zip(starts, ends, strokes, strict=True):
        row[:, start:end] = np.maximum(row[:, start:end], ink)
    return row


def sheet(
    rng: Rng,
    images: np.ndarray,
    labels: np.ndarray,
    layout: str,
    share: float = 0,
    least: int = 600,
    most: int = 1600,
) -> Sheet:
    """Random digits of `images` [N, 28, 28] on a sheet of `least` to `most` px.

    share: of the picture's height that a digit's is; by default 0.12 to 0.5. Digits that would not
    fit are smaller. A fifth of the numbers have two lines.
    """
    width = int(rng.integers(least, most + 1))
    height = round(width * rng.choice([0.75, 0.75, 1, 0.6]))
    counts = [1]
    if layout != "one":
        counts = [int(n) for n in rng.integers(2, 7, size=1 + (rng.random() < 0.2))]
    room = min(0.92 * width / (1.15 * max(counts)), 0.92 * height / (2 * len(counts) - 0.9))
    size = max(min((share or rng.uniform(0.12, 0.5)) * height, room), 16)
    page = np.zeros((height, width), np.float32)
    rows, texts = [], []
    for count in counts:
        chosen = rng.integers(len(labels), size=count)
        rows.append(line(rng, images[chosen], size, layout == "touching"))
        texts.append("".join(str(label) for label in labels[chosen]))
    wide = max(row.shape[1] for row in rows) / (0.94 * width)
    if wide > 1:
        sides = [[max(int(side / wide), 1) for side in row.shape[::-1]] for row in rows]
        pairs = zip(rows, sides, strict=True)
        rows = [
            np.asarray(Image.fromarray(row).resize(to, Image.Resampling.BOX)) for row, to in pairs
        ]
        size /= wide
    steps = [round(rng.uniform(1.55, 1.9) * size) for _ in rows]
    tops = np.cumsum([0, *steps[:-1]])
    spare = max(height - int(tops[-1]) - max(map(len, rows)), 0)
    margin = round(0.03 * height)
    top = int(rng.integers(min(margin, spare // 2), max(spare - margin, spare // 2) + 1))
    for offset, row in zip(tops, rows, strict=True):
        free = max(width - row.shape[1], 0)
        left = int(rng.integers(min(margin, free // 2), max(free - margin, free // 2) + 1))
        part = page[top + offset :, left:][: len(row), : row.shape[1]]
        part[:] = np.maximum(part, row[: len(part), : part.shape[1]])
    return Sheet(page, size, "\n".join(texts))


# ---- Pens: (rng, sheet) -> (coverage [h, w] from 0 to 1, colour)


def clouds(rng: Rng, shape: Shape, period: float) -> np.ndarray:
    """Smooth noise of about that period in px: [h, w] from 0 to 1."""
    grid = rng.random([max(round(side / period), 1) + 1 for side in shape], np.float32)
    return np.asarray(Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC)).clip(
        0, 1
    )


def grain(rng: Rng, shape: Shape) -> np.ndarray:
    """Noise of single pixels: [h, w] float32 with mean 0 and standard deviation 1."""
    count = shape[0] * shape[1]
    two = np.frombuffer(rng.bytes(2 * count), np.uint8).reshape(2, *shape)
    return (two[0].astype(np.float32) + two[1] - 255) / 104.5


def dark_pen(rng: Rng, sheet: Sheet) -> tuple[np.ndarray, Colour]:
    grey = rng.uniform(0.05, 0.25)
    return sheet.ink, (grey, grey, grey * rng.uniform(1, 1.6))


def coloured_pen(rng: Rng, sheet: Sheet) -> tuple[np.ndarray, Colour]:
    colours = ((0.1, 0.2, 0.7), (0.8, 0.1, 0.1), (0.1, 0.5, 0.2), (0.5, 0.15, 0.6), (0.9, 0.45, 0))
    return sheet.ink, colours[rng.integers(len(colours))]


def pencil(rng: Rng, sheet: Sheet) -> tuple[np.ndarray, Colour]:
    """Its contrast is 0.15; the paper's grain shows."""
    rough = 0.75 + 0.5 * clouds(rng, sheet.ink.shape, 3)
    return 0.15 * sheet.ink * rough, (0, 0, 0)


# ---- Papers: (rng, sheet, contrast of the ink [3]) -> reflectance, [3] or [h, w, 3]


def white(rng: Rng, sheet: Sheet, contrast: np.ndarray) -> np.ndarray:
    return rng.uniform(0.85, 0.97) * np.array([1, 1, rng.uniform(0.9, 1)], np.float32)


def grey(rng: Rng, sheet: Sheet, contrast: np.ndarray) -> np.ndarray:
    return rng.uniform(0.4, 0.75) * rng.uniform(0.9, 1, 3).astype(np.float32)


def ruled(rng: Rng, sheet: Sheet, contrast: np.ndarray, squared: bool | None = None) -> np.ndarray:
    """Lines, or squares, at half the ink's contrast."""
    squared = rng.random() < 0.5 if squared is None else squared
    pitch = sheet.size * (rng.uniform(0.3, 0.8) if squared else rng.uniform(0.8, 1.6))
    pitch = max(pitch, 10)
    wide = max(rng.uniform(0.015, 0.04) * sheet.size, 1)
    profiles = []
    for side in sheet.ink.shape:
        across = (np.arange(side) + rng.uniform(0, pitch)) % pitch
        profiles.append(np.clip(wide / 2 + 0.5 - np.abs(across - pitch / 2), 0, 1))
    lines = np.repeat(profiles[0][:, None], sheet.ink.shape[1], axis=1)
    if squared:
        lines = np.maximum(lines, profiles[1])
    colour = np.array(((1, 0.8, 0.5), (1, 1, 1), (0.6, 0.9, 1))[rng.integers(3)]) * contrast.max()
    paper = white(rng, sheet, contrast)
    return (paper * (1 - 0.5 * lines[..., None] * colour)).astype(np.float32)


# ---- How the sheet lies, and light: (rng, photo [h, w, 3]) -> photo


def tilted(rng: Rng, photo: np.ndarray, degrees: float = 15) -> np.ndarray:
    """Seen at up to that angle and turned by up to 5 degrees, on a table or on more paper."""
    height, width = photo.shape[:2]
    tilt, axis = np.deg2rad(rng.uniform(0, degrees)), rng.uniform(0, 2 * np.pi)
    roll = np.deg2rad(rng.uniform(-5, 5))
    k = np.array([np.cos(axis), np.sin(axis), 0])
    cross = np.array([[0, 0, k[1]], [0, 0, -k[0]], [-k[1], k[0], 0]])
    turn = np.eye(3) + np.sin(tilt) * cross + (1 - np.cos(tilt)) * cross @ cross
    cos, sin = np.cos(roll), np.sin(roll)
    turn = turn @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    far = 1.3 * max(height, width)
    seen = np.diag([0.78 * far, 0.78 * far, 1]) @ np.stack([*turn.T[:2], [0, 0, far]], axis=1)
    centre = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    back = centre @ np.linalg.inv(seen) @ np.linalg.inv(centre)
    back /= back[2, 2]
    dark = np.array([0.35, 0.25, 0.18]) * rng.uniform(0.6, 1.4)
    around = dark if rng.random() < 0.5 else np.median(photo[::17, ::17], axis=(0, 1))
    image = Image.fromarray(np.rint(255 * photo.clip(0, 1)).astype(np.uint8)).transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        back.ravel()[:8].tolist(),
        Image.Resampling.BILINEAR,
        fillcolor=tuple(int(c) for c in np.rint(255 * around)),
    )
    return np.asarray(image, np.float32) / 255


def _across(rng: Rng, shape: Shape) -> np.ndarray:
    """Position along a random direction: [h, w] from 0 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.ogrid[: shape[0], : shape[1]]
    along = (np.cos(angle) * x + np.sin(angle) * y).astype(np.float32)
    return (along - along.min()) / np.ptp(along)


def falling(rng: Rng, photo: np.ndarray, least: float = 1 / 3) -> np.ndarray:
    """Light that falls off to a third."""
    return (
        photo * (1 - (1 - least) * _across(rng, photo.shape[:2]) ** rng.uniform(0.7, 2))[..., None]
    )


def shadowed(rng: Rng, photo: np.ndarray) -> np.ndarray:
    """A shadow with a bent edge."""
    shape = photo.shape[:2]
    bent = _across(rng, shape) + 0.08 * clouds(rng, shape, max(shape) / 3)
    edge, soft = rng.uniform(0.25, 0.8), rng.uniform(0.003, 0.03)
    lit = np.clip((bent - edge) / soft, 0, 1)
    return photo * (1 - rng.uniform(0.35, 0.6) * lit)[..., None]


def blurred(photo: np.ndarray, radius: float) -> np.ndarray:
    """By a Gaussian with that standard deviation in px."""
    image = Image.fromarray(np.rint(255 * photo.clip(0, 1)).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def noisy(rng: Rng, photo: np.ndarray, amount: float) -> np.ndarray:
    """A sensor's noise: most of it in all colours alike."""
    shape = photo.shape[:2]
    colour = np.stack([grain(rng, shape) for _ in range(3)], axis=2) if amount > 0.01 else 0
    return photo + amount * (0.8 * grain(rng, shape)[..., None] + 0.6 * colour)


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """[h, w, 3] uint8, stored as JPEG and opened again."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


# ---- Kinds


def _photo(
    rng: Rng,
    sheet: Sheet,
    pen: Callable[..., tuple[np.ndarray, Colour]] = dark_pen,
    paper: Callable[..., np.ndarray] = white,
    place: Callable[..., np.ndarray] | None = None,
    light: Callable[..., np.ndarray] | None = None,
    blur: bool = False,
    noise: bool = False,
    quality: int = 0,
) -> np.ndarray:
    """A photograph [h, w, 3] uint8 of `sheet`; by default a scan of black ink on white paper."""
    coverage, colour = pen(rng, sheet)
    contrast = coverage.max() * (1 - np.array(colour))
    ground = paper(rng, sheet, contrast)
    photo = ground * (1 - coverage[..., None] * (1 - np.array(colour, np.float32)))
    if place:
        photo = place(rng, photo)
    if light:
        photo = light(rng, photo)
    if blur:
        photo = blurred(photo, rng.uniform(0.02, 0.1) * sheet.size)
    photo = noisy(rng, photo, rng.uniform(0.02, 0.05) if noise else 0.005)
    pixels = (255 * photo + 0.5).clip(0, 255).astype(np.uint8)
    return jpeg(pixels, quality) if quality else pixels


def _several(rng: Rng, sheet: Sheet) -> np.ndarray:
    """Each difficulty with probability 1/3, but no faint pencil."""

    def perhaps(*choices):
        return choices[rng.integers(len(choices))] if rng.random() < 1 / 3 else None

    return _photo(
        rng,
        sheet,
        pen=perhaps(coloured_pen) or dark_pen,
        paper=perhaps(ruled, grey) or white,
        place=perhaps(tilted),
        light=perhaps(falling, shadowed),
        blur=bool(perhaps(True)),
        noise=bool(perhaps(True)),
        quality=int(rng.integers(30, 91)),
    )


Kind = Callable[[Rng, Sheet], np.ndarray]
DEVELOPMENT: dict[str, Kind] = {
    "clean": _photo,
    "falling light": lambda rng, sheet: _photo(rng, sheet, light=falling),
    "shadow": lambda rng, sheet: _photo(rng, sheet, light=shadowed),
    "lines": lambda rng, sheet: _photo(rng, sheet, paper=ruled),
    "perspective": lambda rng, sheet: _photo(rng, sheet, place=tilted),
    "blur": lambda rng, sheet: _photo(rng, sheet, blur=True),
    "jpeg": lambda rng, sheet: _photo(rng, sheet, quality=int(rng.integers(30, 91))),
    "pencil": lambda rng, sheet: _photo(rng, sheet, pen=pencil),
    "sizes": _photo,
    "colours": lambda rng, sheet: _photo(rng, sheet, pen=coloured_pen),
    "grey paper": lambda rng, sheet: _photo(rng, sheet, paper=grey),
    "noise": lambda rng, sheet: _photo(rng, sheet, noise=True),
    "several": _several,
}


# ---- Kinds of the exam alone


def _kraft(rng: Rng, sheet: Sheet) -> np.ndarray:
    """Brown paper of fibres."""

    def paper(rng: Rng, sheet: Sheet, contrast: np.ndarray) -> np.ndarray:
        shape = sheet.ink.shape
        fibres = Image.new("L", shape[::-1], 128)
        pencil = ImageDraw.Draw(fibres)
        for x, y, angle, length, level in rng.random((600, 5)) * [*shape[::-1], 6.3, 30, 1]:
            end = (x + length * np.cos(angle), y + length * np.sin(angle))
            pencil.line([(x, y), end], fill=int(90 + 76 * level), width=1)
        rough = np.asarray(fibres.filter(ImageFilter.GaussianBlur(0.7)), np.float32) / 128
        rough *= 0.94 + 0.12 * clouds(rng, shape, 12)
        base = np.array([0.7, 0.54, 0.38]) * rng.uniform(0.8, 1.1)
        return (rough[..., None] * base).astype(np.float32)

    return _photo(rng, sheet, paper=paper, light=falling if rng.random() < 0.3 else None)


def _chalk(rng: Rng, sheet: Sheet) -> np.ndarray:
    """Chalk on a blackboard that was wiped."""
    shape = sheet.ink.shape
    board = np.array(((0.1, 0.16, 0.13), (0.12, 0.12, 0.13))[rng.integers(2)], np.float32)
    dust = clouds(rng, (max(shape[0] // 6, 1), shape[1]), 40)
    wiped = np.asarray(Image.fromarray(dust).resize(shape[::-1]))
    ground = board + 0.06 * wiped[..., None]
    chalk = np.array(((0.9, 0.9, 0.88), (0.92, 0.85, 0.5), (0.9, 0.65, 0.7))[rng.integers(3)])
    rough = np.clip(0.55 + 0.9 * clouds(rng, shape, 2.5) - 0.25, 0, 1)
    cover = (sheet.ink * rough)[..., None]
    photo = ground * (1 - cover) + cover * chalk.astype(np.float32)
    if rng.random() < 0.5:
        photo = falling(rng, photo, least=0.6)
    return (255 * noisy(rng, photo, 0.008) + 0.5).clip(0, 255).astype(np.uint8)


def _whiteboard(rng: Rng, sheet: Sheet) -> np.ndarray:
    """A marker on a board that reflects a lamp."""
    colour = ((0.1, 0.1, 0.12), (0.1, 0.2, 0.65), (0.75, 0.1, 0.12))[rng.integers(3)]
    height, width = sheet.ink.shape
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    at, wide = rng.uniform(-0.8, 0.8, 2), rng.uniform(0.15, 0.35, 2)
    lamp = np.exp(-(((y - at[0]) / wide[0]) ** 2) - ((x - at[1]) / wide[1]) ** 2)
    glare = (rng.uniform(0.3, 0.5) * lamp)[..., None].astype(np.float32)
    streaks = 0.8 + 0.2 * clouds(rng, sheet.ink.shape, max(sheet.size / 12, 2))
    return _photo(
        rng,
        sheet,
        pen=lambda rng, sheet: (sheet.ink * streaks, colour),
        paper=lambda *_: np.array([0.75, 0.77, 0.78], np.float32),
        light=lambda rng, photo: photo + glare,
    )


def _dotted(rng: Rng, sheet: Sheet) -> np.ndarray:
    """A notebook with a grid of dots and a red margin."""

    def paper(rng: Rng, sheet: Sheet, contrast: np.ndarray) -> np.ndarray:
        height, width = sheet.ink.shape
        pitch, radius = max(rng.uniform(0.3, 0.6) * sheet.size, 9), max(0.03 * sheet.size, 1)
        y, x = np.ogrid[:height, :width]
        away = np.hypot(y % pitch - pitch / 2, x % pitch - pitch / 2)
        dots = np.clip(radius + 0.5 - away, 0, 1)[..., None] * 0.5 * contrast.max()
        ground = white(rng, sheet, contrast) * (1 - dots)
        margin = np.clip(radius - np.abs(x - rng.uniform(0.02, 0.12) * width), 0, 1)[..., None]
        return (ground * (1 - margin * np.array([0.1, 0.45, 0.4]))).astype(np.float32)

    return _photo(rng, sheet, paper=paper, quality=80)


def _highlighter(rng: Rng, sheet: Sheet) -> np.ndarray:
    """A transparent pen of a bright colour, wet at its borders."""
    colour = ((0.98, 0.95, 0.25), (1, 0.45, 0.75), (0.5, 0.95, 0.4), (1, 0.7, 0.25))[
        rng.integers(4)
    ]
    inside = np.asarray(
        Image.fromarray(sheet.ink).resize([max(s // 4, 1) for s in sheet.ink.shape[::-1]])
        .resize(sheet.ink.shape[::-1], Image.Resampling.BILINEAR)
    )  # fmt: skip
    wet = sheet.ink * (1 - 0.2 * inside)
    return _photo(rng, sheet, pen=lambda rng, sheet: (wet, colour))


def _ballpoint(rng: Rng, sheet: Sheet) -> np.ndarray:
    """A ball that does not always roll: gaps in the line."""
    rolls = clouds(rng, sheet.ink.shape, max(0.08 * sheet.size, 2))
    streaks = clouds(rng, sheet.ink.shape, max(0.02 * sheet.size, 1.5))
    wet = np.clip((rolls + 0.5 * streaks - 0.3) / 0.15, 0, 1)
    return _photo(rng, sheet, pen=lambda rng, sheet: (sheet.ink * wet, (0.12, 0.18, 0.5)))


def _marker(rng: Rng, sheet: Sheet) -> np.ndarray:
    """A felt pen whose ink is darker where it went twice."""
    colour = rng.uniform(0.05, 0.4, 3)
    twice = blurred(np.repeat(sheet.ink[..., None], 3, axis=2), 0.06 * sheet.size)[..., 0]
    dark = 0.55 + 0.4 * np.clip((twice - 0.72) / 0.1, 0, 1)
    return _photo(rng, sheet, pen=lambda rng, sheet: (sheet.ink * dark, tuple(colour)), quality=70)


HELD_OUT: dict[str, Kind] = {
    "kraft": _kraft,
    "chalk": _chalk,
    "whiteboard": _whiteboard,
    "dotted": _dotted,
    "highlighter": _highlighter,
    "ballpoint": _ballpoint,
    "marker": _marker,
}
KINDS = DEVELOPMENT | HELD_OUT


def picture(
    rng: Rng, kind: str, images: np.ndarray, labels: np.ndarray, layout: str
) -> tuple[np.ndarray, str]:
    """-> (photograph [h, w, 3] uint8, its digits, a line each) of a kind in KINDS.

    images: [N, 28, 28] uint8, of which digits are drawn; labels: [N]; layout: one of LAYOUTS.
    """
    if kind == "sizes":
        share = float(np.exp(rng.uniform(np.log(0.03), np.log(0.9))))
        drawn = sheet(rng, images, labels, layout, share, least=1200 if share < 0.1 else 600)
    else:
        drawn = sheet(rng, images, labels, layout)
    return KINDS[kind](rng, drawn), drawn.text
