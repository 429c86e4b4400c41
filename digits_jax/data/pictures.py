"""The user's own images, prepared as MNIST is: bright ink on dark, centred.

An .npz file holds images of the model's size. A .png file, or a folder of them, may be drawn,
scanned or photographed.
"""

import contextlib
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from digits_jax.console import track
from digits_jax.data import arrays
from digits_jax.data.arrays import FAINT, Names
from digits_jax.data.ink import LEAST_CONTRAST, centred, connected, lift, split_pair
from digits_jax.data.recipes import Recipe
from digits_jax.errors import UserError, check_choice

INKS = ("auto", "bright", "dark")
MOST_BYTES = 1 << 30
LONGEST_SIDE = 512  # larger pictures are reduced to this first


class Pictures(NamedTuple):
    """What was read.

    images: [N, H, W] uint8, bright ink on dark; labels: {head: [N] int32}, or None; names: [N];
    unread: {name: why it could not be read}; notes: warnings for the user, a line each.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray] | None
    names: list[str]
    unread: dict[str, str]
    notes: list[str]


def read(path: str | Path, ink: str, recipe: Recipe, classes: Names | None = None) -> Pictures:
    """Reads the images at `path` for a model of `recipe`.

    classes: {head: names} of a run on other classes than digits; labels are such names then.

    path: an .npz with `images` [N, H, W] uint8 and optionally `labels` ([N] or [N, heads]
    integers), a .png, or a folder of .png files. ink: 'bright' on dark, 'dark' on bright, or
    'auto', decided for each .png and for an .npz as a whole. Images of an .npz keep their pixels,
    as does a .png that looks as `recipe` composes MNIST's digits. In any other .png the digits are
    found, scaled to fit 20x20 and placed by their centre of mass. Raises UserError, naming the
    file and the problem, where nothing could be read.
    """
    check_choice("--ink", ink, INKS)
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, ink, recipe)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    try:
        if path.suffix.lower() == ".npz":
            return _read_npz(path, ink, recipe, classes)
        if path.suffix.lower() == ".png":
            return Pictures(_read_png(path, ink, recipe)[None], None, [_name(path)], {}, [])
        raise UserError(
            "expected an .npz file, a .png file or a folder of .png files; "
            "save a picture of another kind as .png"
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def told(unread: dict[str, str], most: int = 10) -> list[str]:
    """A line for each file that could not be read; above `most` files, a line for each reason."""
    if len(unread) <= most:
        return [f"{name}: {reason}" for name, reason in unread.items()]
    first = {reason: name for name, reason in reversed(unread.items())}
    lines, rest = [], len(unread)
    for reason, n in Counter(unread.values()).most_common(most):
        lines.append(f"{first[reason]}{f' and {n - 1:,} more' if n > 1 else ''}: {reason}")
        rest -= n
    return [*lines, f"{rest:,} more, for other reasons"] if rest else lines


def _read_folder(folder: Path, ink: str, recipe: Recipe) -> Pictures:
    try:
        # Hidden files count only if they claim to be pictures.
        paths = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() == ".png" or not path.name.startswith(".")
        )
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be read ({error.strerror})") from None
    images: dict[str, np.ndarray] = {}
    unread: dict[str, str] = {}
    for path in track(paths, f"reading {len(paths):,} pictures"):
        try:
            if path.is_dir():
                raise UserError("a folder; to read what is in it, name it with --data")
            if path.suffix.lower() != ".png":
                raise UserError("not a .png file; save a picture of another kind as .png")
            images[_name(path)] = _read_png(path, ink, recipe)
        except UserError as error:
            unread[_name(path)] = str(error)
    if images:
        return Pictures(np.stack(list(images.values())), None, list(images), unread, [])
    if unread:
        why = "; ".join(told(unread, 3))
        raise UserError(f"{folder}: no .png files that could be read in this folder ({why})")
    raise UserError(f"{folder}: no .png files in this folder")


def _name(path: Path) -> str:
    """The name of `path` as valid text: on Linux it can be any bytes."""
    return path.name.encode("utf-8", "backslashreplace").decode()


def _read_npz(path: Path, ink: str, recipe: Recipe, classes: Names | None) -> Pictures:
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            given = {
                name: arrays.read_array(archive, name, MOST_BYTES, "biufU" if classes else "biuf")
                for name in ("images", "labels")
                if name in held
            }
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"not a readable .npz file ({error})") from None
    height, width = recipe.shape
    if "images" not in given:
        known = ", ".join(repr(name[:40]) for name in held[:10]) or "nothing"
        raise UserError(
            f"holds no array named `images`, but {known}{' and more' if len(held) > 10 else ''}; "
            f"expected `images`, uint8 [N, {height}, {width}], and perhaps `labels`, as of "
            'np.savez("mine.npz", images=..., labels=...)'
        )
    images = given["images"]
    if images.dtype != np.uint8 or images.shape[1:] != (height, width) or not len(images):
        raise UserError(
            f"`images` must be uint8 [N, {height}, {width}] with N > 0, "
            f"not {images.dtype} {list(images.shape)}"
        )
    labels = None
    if "labels" in given:
        labels = arrays.check_labels(given["labels"], len(images), recipe.heads, classes)
    names = [f"{_name(path)}[{i}]" for i in range(len(images))]
    images, notes = arrays.as_bright(images, ink)
    return Pictures(images, labels, names, {}, notes)


def read_small(path: Path, recipe: Recipe) -> np.ndarray:
    """[28, 28] uint8 of a .png file: of one of that size its grey levels, else as `read` has it."""
    light = _brightness(path)
    if light.shape == (28, 28):
        return np.rint(255 * light).astype(np.uint8)
    return _read_png(path, "auto", recipe)


def _read_png(path: Path, ink: str, recipe: Recipe) -> np.ndarray:
    """-> [H, W] uint8, ink bright on dark."""
    light = _brightness(path)
    paper = np.median(light)
    dark = ink == "dark" or (ink == "auto" and light.max() - paper < paper - light.min())
    if np.ptp(light) < LEAST_CONTRAST:
        raise UserError("no ink found, the picture is blank")
    amount = 1 - light if dark else light
    pieces = connected(lift(amount))
    if light.shape == tuple(recipe.shape):
        for kept in (amount, pieces.sum(0)):  # MNIST's own, or on another paper
            pixels = np.rint(255 * kept).astype(np.uint8)
            if _composed(pixels, recipe):
                return pixels
    if len(pieces) == 0:
        raise UserError(f"no ink found on the {'bright' if dark else 'dark'} paper")
    if recipe.digits == 1:
        drawn = [pieces.sum(0)]
    else:
        drawn = split_pair(pieces, axis=1 if recipe.shape[1] > recipe.shape[0] else 0)
    if not all(digit.any() for digit in drawn):
        raise UserError(f"found one digit where the model reads {recipe.digits}")
    digits = np.stack([centred(digit) for digit in drawn])
    return np.asarray(recipe.compose(digits[None]))[0]


def _composed(image: np.ndarray, recipe: Recipe) -> bool:
    """Whether `image` [H, W] uint8 looks as `recipe` composes MNIST's digits, as all of MNIST's do.

    That is: on paper of exactly 0, in full ink, each digit in its place.
    """
    if image.max() < 255 - FAINT or np.mean(image == 0) < 0.4:
        return False
    if recipe.shape[0] == 28:
        return all(map(_placed, np.split(image, recipe.digits, axis=1)))
    # Stacked digits overlap and cannot be checked one by one; a million such pairs keep these
    # bounds. The last one: a pair that fills the image leaves few rows free in the middle.
    rows = np.flatnonzero(image.max(axis=1) > FAINT)
    middle = image.sum(axis=0) @ np.arange(28) / image.sum()
    free = 14 - np.sum((rows >= 14) & (rows < 28))
    central = rows[0] <= 12 and rows[-1] >= 30 and abs(middle - 14) < 1.5
    return bool(central and (np.ptp(rows) < 37 or free < 4))


def _placed(digit: np.ndarray) -> bool:
    """Whether `digit` [28, 28] uint8 has MNIST's size and place, within a pixel or two."""
    if not digit.any():
        return False
    spans = [np.flatnonzero(digit.max(axis) > FAINT) for axis in (1, 0)]
    centre = (np.mgrid[:28, :28] * digit).sum((1, 2)) / digit.sum()
    return bool(17 <= max(map(np.ptp, spans)) + 1 <= 22 and np.abs(centre - 14).max() <= 1)


def _brightness(path: Path) -> np.ndarray:
    """The picture, upright, as [h, w] float32 from 0 black to 1 white; transparent is paper."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise UserError("no file that could be opened")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its text or its orientation
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                image.verify()  # the pixels' checksums, which `load` skips
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
                with contextlib.suppress(Exception):  # a damaged orientation is ignored
                    ImageOps.exif_transpose(image, in_place=True)
                if image.mode.startswith("I"):
                    light = np.asarray(image, np.float32) / 65535
                    alpha = np.ones_like(light)
                else:
                    grey, opaque = image.convert("RGBA").convert("LA").split()
                    light, alpha = (np.asarray(x, np.float32) / 255 for x in (grey, opaque))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        if path.name.startswith("._"):
            raise UserError("a companion file of macOS, not a picture") from None
        raise UserError("not a readable .png file (there is no PNG in it)") from None
    except Exception as error:  # a damaged file can raise anything
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"not a readable .png file ({reason})") from None
    if alpha.min() < 1:
        # Most of the picture is paper. Where most of it is transparent, the rest is ink.
        inside = float(np.median(light[alpha > 0.5])) if (alpha > 0.5).any() else 0.0
        paper = inside if alpha.mean() > 0.5 else float(inside < 0.5)
        light = alpha * light + (1 - alpha) * paper
    if (longest := max(light.shape)) > LONGEST_SIDE:
        size = [max(1, round(side * LONGEST_SIDE / longest)) for side in light.shape[::-1]]
        light = np.asarray(Image.fromarray(light).resize(size, Image.Resampling.BOX))
    return light
