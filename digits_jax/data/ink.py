"""Ink from paper: the digits of a picture, cut out, scaled and centred as MNIST's are.

All lengths are in parts of the digits' height, which is found first: the picture is searched at
several scales. A pixel's darkness is measured against the paper around it, the brightest within
what no stroke is wide enough to fill (a grey closing; Serra, Image Analysis and Mathematical
Morphology, 1982), so that light that falls off and a shadow's edge leave no trace.
"""

import math
from typing import NamedTuple

import numpy as np

from digits_jax.data.numbers import WIDE, WIDEST, WIDTH

LEAST_CONTRAST = 0.06  # between ink and paper, of the paper's brightness
LONGEST = 1000  # px of the largest picture that is searched
SIZES = 10, 72  # px: heights of digits that are searched for at each scale
MOST = 1000  # pieces of a picture; smaller ones are left out
SMALL = 100  # px: up to here a picture is taken as cut out around its digits
SIZE = 64  # px: about the height to which larger digits are reduced before they are cut out
CORE = 0.45  # of the ink's darkness: this is ink, and what it touches is one piece
FAINT = 0.25  # of the ink's darkness: this and less is paper
WEAK = 0.4  # of the darkness of most of the ink: a weaker piece is a trace of line or shadow


class Piece(NamedTuple):
    """Connected ink of one digit, or of several that touch.

    box: left, top, right, bottom in px of the picture; image: [28, 56] uint8, bright ink on dark.
    """

    box: tuple[int, int, int, int]
    image: np.ndarray


class Part(NamedTuple):
    """Connected ink: its place in px, the ink in it, [h, w] float32 from 0 paper to 1, and how much
    darker than paper it is where it is 1.
    """

    left: int
    top: int
    right: int
    bottom: int
    ink: np.ndarray
    level: float

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


def find(picture: np.ndarray, ink: str = "auto") -> list[list[Piece]]:
    """The lines from top to bottom, their pieces from left to right; [] where there is no ink.

    picture: [h, w, 3] or [h, w] uint8; ink: 'bright' on dark, 'dark' on bright, or 'auto'. A piece
    is connected ink, or several that only one digit can be, as of a broken five. Its image is as
    MNIST has it: it fits 20x20 px, with the centre of mass in the middle. One that is more than 1.1
    times as wide as high is 20 px high instead, but at most 48 wide.
    """
    found, factor, corner = cut(brightness(picture, ink))
    lines: list[list[Piece]] = []
    for line in _lines(_joined(found)):
        lines.append([])
        for part in line:
            edges = factor * np.array(part[:4]).reshape(2, 2) + corner
            edges = np.clip(edges, 0, picture.shape[1::-1])
            x, y, right, bottom = map(int, edges.ravel())
            lines[-1].append(Piece((x, y, right, bottom), normalised(part.ink)))
    return lines


def cut(light: np.ndarray) -> tuple[list[Part], int, tuple[int, int]]:
    """The connected pieces of ink in [h, w] brightness, without specks, at most MOST.

    -> (parts, factor, (left, top)): a pixel of a part is a square of `factor` px of `light`, and
    its place counts from that corner of `light`.
    """
    margin = SMALL if max(light.shape) <= SMALL else 0  # digits may fill a small picture
    light = np.pad(light, margin, constant_values=1)
    size, box = _search(light)
    if not size:
        return [], 1, (0, 0)
    factor = max(round(size / SIZE), 1)
    around = factor * math.ceil(1.5 * size / factor)
    left, top = (max(start // factor * factor - around, 0) for start in box[:2])
    view = _reduced(light[top : box[3] + around, left : box[2] + around], factor)
    found = parts(
        view, 16 * math.ceil(size / factor / 16)
    )  # in steps: similar pictures are cut alike
    if not found:
        return [], 1, (0, 0)
    most = max(found, key=lambda part: part.level * part.ink.sum())
    found = [part for part in found if part.level > WEAK * most.level]
    size = _height(found)
    found = [part for part in found if max(part.height, part.width) > 0.3 * size]
    found = sorted(found, key=lambda part: -part.height)[:MOST]
    return found, factor, (left - margin, top - margin)


def brightness(picture: np.ndarray, ink: str = "auto") -> np.ndarray:
    """[h, w] float32: about 1 where there is paper, less where there is ink, of whatever colour."""
    light = np.asarray(picture, np.float32) / 255
    light = light.reshape(*light.shape[:2], -1)
    if ink == "bright" or (ink == "auto" and not is_dark(light.mean(axis=2))):
        light = 1 - light
    paper = np.median(light[:: len(light) // 200 + 1, :: light.shape[1] // 200 + 1], axis=(0, 1))
    if paper.max() < LEAST_CONTRAST:  # nothing can be darker
        return np.ones(light.shape[:2], np.float32)
    return (light / np.maximum(paper, LEAST_CONTRAST)).min(axis=2)


def is_dark(grey: np.ndarray) -> bool:
    """Whether ink is darker than paper: ink is what is narrow."""
    grey = _reduced(grey, math.ceil(max(grey.shape) / 200))
    dark, bright = (
        sum(((_closed(side, wide) - side) ** 2).sum() / wide**1.5 for wide in (3, 5, 9, 17, 33))
        for side in (grey, 1 - grey)
    )
    return bool(dark >= bright)


def _closed(light: np.ndarray, wide: int) -> np.ndarray:
    """`light` without what is dark and too narrow for a square of `wide` px.

    Beyond the picture all is dark: a table at its border, or a shadow, is not narrow.
    """
    from scipy import ndimage

    paper = np.pad(light, wide)
    paper = ndimage.minimum_filter(ndimage.maximum_filter(paper, wide), wide)
    return paper[wide:-wide, wide:-wide]


def _reduced(light: np.ndarray, factor: int) -> np.ndarray:
    """[h, w] with the means of squares of `factor` x `factor` px, those cut off at the end, too."""
    for axis in (0, 1):
        side = light.shape[axis]
        starts = np.arange(0, side, factor)
        sums = np.add.reduceat(light, starts, axis)
        counts = np.diff([*starts, side]).astype(np.float32)
        light = sums / np.expand_dims(counts, 1 - axis)
    return light


def _search(light: np.ndarray) -> tuple[float, list[int]]:
    """The height of the digits in px, 0 where there are none; the box that holds them all.

    Of all scales the finest that shows most of the ink.
    """
    found = []
    factor = math.ceil(max(light.shape) / LONGEST)
    while max(light.shape) >= factor * SIZES[0]:
        seen = parts(_reduced(light, factor), 40)
        seen = [part for part in seen if SIZES[0] <= part.height <= SIZES[1]]
        if seen:
            mass = sum(float(part.ink.sum()) for part in seen) * factor**2
            edges = np.array([part[:4] for part in seen]) * factor
            box = [*edges.min(axis=0)[:2], *edges.max(axis=0)[2:]]
            found.append((mass, _height(seen) * factor, [int(edge) for edge in box]))
        factor *= 2
    most = max((mass for mass, *_ in found), default=0)
    return next(((size, box) for mass, size, box in found if mass > 0.8 * most), (0, []))


def _height(seen: list[Part]) -> float:
    """The height of digits: the median of all at least half as high as the highest."""
    heights = [part.height for part in seen]
    return float(np.median([height for height in heights if height >= 0.5 * max(heights)]))


def darkness(light: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray, float]:
    """[h, w] brightness -> darkness, 0 paper to 1 black, without lines that are fainter than ink.

    Returns it smooth and sharp, and the standard deviation of the smooth one's noise. size: the
    height of digits in px.
    """
    from scipy import ndimage

    smooth = ndimage.uniform_filter(light, 2 * int(0.035 * size) + 1, mode="nearest")
    paper = np.maximum(_closed(smooth, 2 * round(0.35 * size) + 3), 0.02)
    dark, sharp = 1 - smooth / paper, 1 - light / paper
    middle = np.median(dark)
    dark -= middle
    noise = 1.5 * float(np.median(np.abs(dark)))
    lines, long = np.zeros_like(dark), 2 * round(size)
    thick = 2 * round(0.08 * size) + 1
    for axis in (0, 1):  # straight, nearly along this axis, longer and thinner than strokes
        wide = ndimage.minimum_filter1d(dark, thick, 1 - axis, mode="nearest")
        thin = dark - ndimage.maximum_filter1d(wide, thick, 1 - axis, mode="nearest")
        near = ndimage.maximum_filter(thin, (5, thick + 2) if axis else (thick + 2, 5))
        runs = ndimage.minimum_filter1d(near, long, axis, mode="nearest")
        lines = np.maximum(lines, ndimage.maximum_filter1d(runs, long, axis, mode="nearest"))
    faint = dark < 1.5 * lines
    return np.where(faint, 0, dark), np.where(faint, 0, sharp - middle), noise


def parts(light: np.ndarray, size: float) -> list[Part]:
    """The connected ink of digits about `size` px high in [h, w] brightness, without specks."""
    from scipy import ndimage

    dark, sharp, noise = darkness(light, size)
    least = max(LEAST_CONTRAST, 5 * noise)
    touching, reach = np.ones((3, 3)), max(round(0.04 * size), 1)

    def large(label: np.ndarray) -> list:
        places = enumerate(ndimage.find_objects(label), 1)
        return [
            (k, at) for k, at in places if at and max(x.stop - x.start for x in at) > 0.2 * size
        ]

    # Each piece has its own level of ink: that of most of its darker half.
    label, _ = ndimage.label(dark > least, touching)
    level = np.zeros_like(dark)
    for k, place in large(label):
        inside = label[place] == k
        values = dark[place][inside]
        level[place][inside] = np.median(values[values > 0.5 * values.max()])
    label, _ = ndimage.label((level > 0) & (dark > CORE * level), touching)
    level = np.maximum(ndimage.maximum_filter(level, 2 * reach + 1), LEAST_CONTRAST)
    ink = np.clip((sharp / level - FAINT) / (1 - FAINT), 0, 1)
    found = []
    for k, (rows, columns) in large(label):
        full = float(level[rows, columns].max())
        top, left = max(rows.start - reach, 0), max(columns.start - reach, 0)
        place = (slice(top, rows.stop + reach), slice(left, columns.stop + reach))
        near = ndimage.maximum_filter(label[place] == k, 2 * reach + 1)
        piece = ink[place] * (near & ((label[place] == k) | (label[place] == 0)))
        inside = [np.flatnonzero(piece.max(axis) > 0.5).tolist() for axis in (1, 0)]
        if all(inside):
            (y, *_, bottom), (x, *_, right) = ([*where, where[-1] + 1] for where in inside)
            part = piece[y:bottom, x:right]
            found.append(Part(left + x, top + y, left + right, top + bottom, part, full))
    return found


def _joined(found: list[Part]) -> list[Part]:
    """Those that lie above each other, or are small and near, become one."""
    if not found:
        return []
    size = _height(found)
    left, top, right, bottom = np.array([part[:4] for part in found]).T
    across = np.maximum.outer(left, left) - np.minimum.outer(right, right)
    down = np.maximum.outer(top, top) - np.minimum.outer(bottom, bottom)
    narrow = np.minimum.outer(right - left, right - left)
    small = np.minimum.outer(bottom - top, bottom - top) < 0.6 * size
    near = np.where(
        small,
        np.maximum(across, down) < 0.12 * size,
        (down < 0.2 * size) & (-across > 0.5 * narrow),
    )
    group, before = np.arange(len(found)), np.zeros(0, int)
    while not np.array_equal(group, before):  # each takes the least number near it
        group, before = np.where(near, group, len(found)).min(axis=1), group
    groups = [np.flatnonzero(group == k) for k in np.unique(group)]
    return [union([found[i] for i in members]) for members in groups]


def laid(found: list[Part], shape: tuple[int, int]) -> np.ndarray:
    """[K, h, w]: each of K pieces in its place on a paper of that shape."""
    pieces = np.zeros((len(found), *shape), np.float32)
    for piece, part in zip(pieces, found, strict=True):
        piece[part.top : part.bottom, part.left : part.right] = part.ink
    return pieces


def union(found: list[Part]) -> Part:
    """All of them as one."""
    left, top = min(part.left for part in found), min(part.top for part in found)
    right, bottom = max(part.right for part in found), max(part.bottom for part in found)
    ink = np.zeros((bottom - top, right - left), np.float32)
    for part in found:
        place = ink[part.top - top : part.bottom - top, part.left - left : part.right - left]
        np.maximum(place, part.ink, out=place)
    return Part(left, top, right, bottom, ink, max(part.level for part in found))


def _lines(found: list[Part]) -> list[list[Part]]:
    """Lines from top to bottom of parts from left to right: each is beside the one before it."""
    lines: list[list[Part]] = []
    for part in sorted(found, key=lambda part: part.left):
        beside = []
        for line in lines:
            last = line[-1]
            shared = min(part.bottom, last.bottom) - max(part.top, last.top)
            beside.append(shared / min(part.height, last.height))
        if beside and max(beside) > 0.4:
            lines[int(np.argmax(beside))].append(part)
        else:
            lines.append([part])
    return sorted(lines, key=lambda line: np.mean([part.top + part.bottom for part in line]))


def split_pair(pieces: np.ndarray, axis: int) -> list[np.ndarray]:
    """Two digits: the pieces before and after the widest gap between centres along `axis`.

    Digits that touch are cut where there is least ink around the middle.
    """
    profiles = pieces.sum(axis=2 - axis)
    centres = profiles @ np.arange(profiles.shape[1]) / profiles.sum(1)
    order = np.argsort(centres)
    if len(pieces) > 1:
        gap = int(np.argmax(np.diff(centres[order]))) + 1
        groups = [pieces[order[:gap]].sum(0), pieces[order[gap:]].sum(0)]
        if min(group.sum() for group in groups) > 0.1 * pieces.sum():
            return groups
    profile = profiles.sum(0)
    first, last = np.flatnonzero(profile)[[0, -1]]
    quarter = (last - first + 1) // 4
    cut = first + quarter + int(np.argmin(profile[first + quarter : last + 1 - quarter]))
    before = np.arange(profiles.shape[1]) < cut
    before = before if axis == 1 else before[:, None]
    return [pieces.sum(0) * side for side in (before, ~before)]


def normalised(ink: np.ndarray) -> np.ndarray:
    """[h, w] -> [28, 56] uint8, as `find` has it."""
    rows, columns = (np.ptp(np.flatnonzero(ink.sum(axis))) + 1 for axis in (1, 0))
    if columns <= WIDE * rows:
        return _placed(ink, max(rows, columns) / 20, WIDTH)
    return _placed(ink, max(rows / 20, columns / WIDEST), WIDTH)


def centred(ink: np.ndarray) -> np.ndarray:
    """[h, w] -> [28, 28] uint8: ink scaled to fit 20x20, its centre of mass on pixel 14, 14."""
    rows, columns = (np.ptp(np.flatnonzero(ink.sum(axis))) + 1 for axis in (1, 0))
    return _placed(ink, max(rows, columns) / 20, 28)


def _placed(ink: np.ndarray, pixel: float, width: int) -> np.ndarray:
    """[h, w] -> [28, width] uint8, whose pixels are `pixel` px of the ink; its centre of mass is in
    the middle.
    """
    from PIL import Image

    (top, bottom), (left, right) = (np.flatnonzero(ink.sum(axis))[[0, -1]] for axis in (1, 0))
    ink = ink[top : bottom + 1, left : right + 1]
    box = []
    for profile, half in ((ink.sum(1), 14), (ink.sum(0), width / 2)):
        middle = profile @ (np.arange(len(profile)) + 0.5) / profile.sum()
        # All ink stays inside, however far its centre of mass is from the middle.
        middle = np.clip(middle, len(profile) - (half - 0.5) * pixel, (half + 0.5) * pixel)
        box.append([middle - (half + 0.5) * pixel, middle + (half - 0.5) * pixel])
    margin = math.ceil((width / 2 + 1) * pixel)
    (top, bottom), (left, right) = np.array(box) + margin
    canvas = Image.fromarray(np.pad(ink, margin).astype(np.float32))
    digit = np.asarray(
        canvas.resize((width, 28), Image.Resampling.HAMMING, box=(left, top, right, bottom))
    )
    # Thin strokes fade when they are scaled down.
    strong = np.median(digit[digit > 0.5 * digit.max()])
    return np.rint(255 * np.clip(digit / strong, 0, 1)).astype(np.uint8)
