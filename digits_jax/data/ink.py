"""Ink from paper: the digits of a picture, cut out, scaled and centred as MNIST's are."""

import math
from typing import NamedTuple

import numpy as np

LEAST_CONTRAST = 0.1  # between ink and paper, of the full range
SPECK = 0.03  # a connected piece with a smaller share of the ink is dirt


class Piece(NamedTuple):
    """Connected ink: a digit, or several that touch.

    box: left, top, right, bottom in px of the picture; image: [28, W] uint8, bright ink on dark.
    """

    box: tuple[int, int, int, int]
    image: np.ndarray


def find(picture: np.ndarray, ink: str = "auto") -> list[list[Piece]]:
    """The lines of a picture, from top to bottom, each with its pieces from left to right.

    picture: [h, w, 3] or [h, w] uint8; ink: 'auto', 'bright' or 'dark'. [] where there is no ink.
    """
    from scipy import ndimage

    light = picture.astype(np.float32) / 255
    light = light.mean(axis=2) if light.ndim == 3 else light
    paper = np.median(light)
    dark = ink == "dark" or (ink == "auto" and light.max() - paper < paper - light.min())
    amount = lift(1 - light if dark else light)
    label, count = ndimage.label(amount > 0, structure=np.ones((3, 3)))
    mass = np.bincount(label.ravel(), weights=amount.ravel(), minlength=count + 1)
    lines: list[list[Piece]] = []
    for k, place in enumerate(ndimage.find_objects(label), 1):  # in the order of their tops
        if mass[k] <= 5 * SPECK * mass.max():
            continue
        (top, bottom), (left, right) = ((side.start, side.stop) for side in place)
        piece = Piece((left, top, right, bottom), centred(amount[place] * (label[place] == k)))
        if lines and top < np.mean([lines[-1][0].box[1], lines[-1][0].box[3]]):
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return [sorted(line, key=lambda piece: piece.box[0]) for line in lines]


def lift(amount: np.ndarray) -> np.ndarray:
    """Removes the paper: [h, w] brightness with bright ink -> 0 paper to 1 ink.

    The paper is a plane fitted to what is not ink, to correct for light from one side.
    """
    height, width = amount.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    basis = np.stack([np.ones(amount.size), y.ravel(), x.ravel()], axis=1)
    ink = amount - np.median(amount)
    for _ in range(3):
        paper = np.abs(ink) < 0.3 * max(ink.max(), LEAST_CONTRAST)
        plane = np.linalg.lstsq(basis[paper.ravel()], amount[paper], rcond=None)[0]
        ink = amount - (basis @ plane).reshape(amount.shape)
    if ink.max() < LEAST_CONTRAST or not paper.any():
        return np.zeros_like(ink)
    full = np.median(ink[ink > 0.5 * ink.max()])
    floor = max(0.15 * full, 4 * np.std(ink[paper]))
    return np.clip((ink - floor) / (full - floor), 0, 1)


def connected(ink: np.ndarray) -> np.ndarray:
    """[K, h, w]: the connected pieces of ink, without dirt (SPECK)."""
    from scipy import ndimage

    label, _ = ndimage.label(ink > 0, structure=np.ones((3, 3)))
    mass = np.bincount(label.ravel(), weights=ink.ravel())
    kept = np.flatnonzero(mass > SPECK * mass.sum())
    return np.array([ink * (label == k) for k in kept]).reshape(-1, *ink.shape)


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


def centred(ink: np.ndarray) -> np.ndarray:
    """[h, w] -> [28, 28] uint8: ink scaled to fit 20x20, its centre of mass on pixel 14, 14."""
    from PIL import Image

    profiles = [ink.sum(1), ink.sum(0)]
    spans = [np.flatnonzero(profile)[[0, -1]] + [0, 1] for profile in profiles]
    pixel = max(end - start for start, end in spans) / 20  # in px of the drawing
    box = []
    for profile, (start, end) in zip(profiles, spans, strict=True):
        middle = profile @ (np.arange(len(profile)) + 0.5) / profile.sum()
        # All ink stays inside, however far its centre of mass is from the middle.
        middle = np.clip(middle, end - 13.5 * pixel, start + 14.5 * pixel)
        box.append([middle - 14.5 * pixel, middle + 13.5 * pixel])
    margin = math.ceil(15 * pixel)
    (top, bottom), (left, right) = np.array(box) + margin
    canvas = Image.fromarray(np.pad(ink, margin).astype(np.float32))
    digit = np.asarray(
        canvas.resize((28, 28), Image.Resampling.HAMMING, box=(left, top, right, bottom))
    )
    # Thin strokes fade when they are scaled down.
    strong = np.median(digit[digit > 0.5 * digit.max()])
    return np.rint(255 * np.clip(digit / strong, 0, 1)).astype(np.uint8)
