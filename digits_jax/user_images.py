"""Images of the user's own, as the networks expect them: ink bright on dark, centred like MNIST.

An .npz file holds images of exactly the model's size; a .png file, or a folder of them, anything
that one would draw, scan or photograph.
"""

import math
import warnings
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from digits_jax.data.pairs import Recipe
from digits_jax.errors import UserError, check_choice

INKS = ("auto", "bright", "dark")
MOST_BYTES = 1 << 30
LONGEST_SIDE = 512  # larger pictures are reduced to this first
LEAST_CONTRAST = 0.1  # of the full range, between ink and paper
SPECK = 0.03  # a connected piece with less than this part of the ink is dirt


def read(
    path: str | Path, ink: str, recipe: Recipe
) -> tuple[np.ndarray, dict[str, np.ndarray] | None, list[str]]:
    """Reads the images at `path` for a model of `recipe`.

    path: .npz with `images` [N, H, W] uint8 and perhaps `labels` ([N] or [N, heads] integers),
    or a .png, or a folder of .png files, taken by name. ink: 'bright' on dark, 'dark' on bright, or
    'auto', which is bright for .npz and looks at each .png. Returns images [N, H, W] uint8, ink
    bright on dark; labels {head: [N] int32}, None without; a name for each image. A .png of exactly
    the model's size keeps its pixels; in any other one the digits are found, scaled to fit 20x20
    and placed by their centre of mass. Raises UserError, naming the file and what is wrong with it.
    """
    check_choice("--ink", ink, INKS)
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() == ".png")
        if not files:
            raise UserError(f"{path}: no .png files in this folder")
    elif not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    elif path.suffix.lower() == ".npz":
        return _read_npz(path, ink, recipe)
    elif path.suffix.lower() == ".png":
        files = [path]
    else:
        raise UserError(f"{path}: expected an .npz file, a .png file or a folder of .png files")
    images = np.stack([_read_png(file, ink, recipe) for file in files])
    return images, None, [file.name for file in files]


def _read_npz(
    path: Path, ink: str, recipe: Recipe
) -> tuple[np.ndarray, dict[str, np.ndarray] | None, list[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name: _read_array(archive.open(f"{name}.npy"), f"{path}: `{name}`")
                for name in ("images", "labels")
                if f"{name}.npy" in archive.namelist()
            }
    except UserError:
        raise
    except Exception as error:  # zlib, zipfile and numpy raise a dozen kinds for a damaged file
        raise UserError(f"{path}: not a readable .npz file ({error})") from None
    if "images" not in arrays:
        raise UserError(f"{path}: holds no array named `images`")
    images = arrays["images"]
    height, width = recipe.shape
    if images.dtype != np.uint8 or images.shape[1:] != (height, width) or not len(images):
        raise UserError(
            f"{path}: `images` must be uint8 [N, {height}, {width}] with N > 0, "
            f"not {images.dtype} {list(images.shape)}"
        )
    labels = None
    if "labels" in arrays:
        labels = _check_labels(arrays["labels"], len(images), recipe.heads, path)
    names = [f"{path.name}[{i}]" for i in range(len(images))]
    return 255 - images if ink == "dark" else images, labels, names


def _read_array(file: IO[bytes], what: str) -> np.ndarray:
    """Reads an .npy stream, but none that asks for objects or more than MOST_BYTES of memory."""
    with file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            header = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.kind not in "biuf":
            raise UserError(f"{what} must hold plain numbers, not {dtype}")
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= size <= MOST_BYTES:
            raise UserError(f"{what} has {size:,} bytes; the most is {MOST_BYTES:,}")
        return np.ndarray(shape, dtype, file.read(size), order="F" if fortran else "C")


def _check_labels(
    labels: np.ndarray, n: int, heads: dict[str, int], path: Path
) -> dict[str, np.ndarray]:
    """-> {head: [n] int32} from [n] or [n, heads] integers."""
    shapes = [[n, len(heads)]] if len(heads) > 1 else [[n], [n, 1]]
    if labels.dtype.kind not in "iu" or list(labels.shape) not in shapes:
        raise UserError(
            f"{path}: `labels` must be integers {shapes[0]}, one for each image"
            f"{' and head' if len(heads) > 1 else ''}, not {labels.dtype} {list(labels.shape)}"
        )
    columns = dict(zip(heads, labels.reshape(n, -1).T, strict=True))
    for head, column in columns.items():
        if column.min() < 0 or column.max() >= heads[head]:
            raise UserError(
                f"{path}: `labels` of {head} must lie in 0 to {heads[head] - 1}; "
                f"they reach from {column.min()} to {column.max()}"
            )
    return {head: column.astype(np.int32) for head, column in columns.items()}


def _read_png(path: Path, ink: str, recipe: Recipe) -> np.ndarray:
    """-> [H, W] uint8, ink bright on dark."""
    light = _brightness(path)
    paper = np.median(light)
    dark = ink == "dark" or (ink == "auto" and light.max() - paper < paper - light.min())
    if np.ptp(light) < LEAST_CONTRAST:
        raise UserError(f"{path}: no ink found, the picture is blank")
    amount = 1 - light if dark else light
    if light.shape == tuple(recipe.shape):
        return np.rint(255 * amount).astype(np.uint8)
    pieces = _pieces(_lift(amount))
    if len(pieces) == 0:
        raise UserError(f"{path}: no ink found on the {'bright' if dark else 'dark'} paper")
    if recipe.digits == 1:
        drawn = [pieces.sum(0)]
    else:
        drawn = _split(pieces, axis=1 if recipe.shape[1] > recipe.shape[0] else 0)
    if not all(digit.any() for digit in drawn):
        raise UserError(f"{path}: found one digit where the model reads {recipe.digits}")
    digits = np.stack([_centre(digit) for digit in drawn])
    return np.asarray(recipe.compose(digits[None]))[0]


def _brightness(path: Path) -> np.ndarray:
    """The picture as [h, w] float32, 0 black to 1 white; transparent parts become paper."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                image.verify()  # the checksums of pixels, which `load` skips
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
                if image.mode.startswith("I"):
                    light = np.asarray(image, np.float32) / 65535
                    alpha = np.ones_like(light)
                else:
                    grey, opaque = image.convert("RGBA").convert("LA").split()
                    light, alpha = (np.asarray(x, np.float32) / 255 for x in (grey, opaque))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow raises a dozen kinds for a damaged file
        raise UserError(f"{path}: not a readable .png file ({error})") from None
    if alpha.min() < 1:
        # Most of the picture is paper. Where most is transparent, what is opaque is the ink.
        inside = float(np.median(light[alpha > 0.5])) if (alpha > 0.5).any() else 0.0
        paper = inside if alpha.mean() > 0.5 else float(inside < 0.5)
        light = alpha * light + (1 - alpha) * paper
    if (longest := max(light.shape)) > LONGEST_SIDE:
        size = [max(1, round(side * LONGEST_SIDE / longest)) for side in light.shape[::-1]]
        light = np.asarray(Image.fromarray(light).resize(size, Image.Resampling.BOX))
    return light


def _lift(amount: np.ndarray) -> np.ndarray:
    """Takes the paper off: [h, w] brightness, ink bright -> 0 paper to 1 ink.

    The paper is a plane, so that light from one side does no harm, fitted to what is not ink.
    """
    height, width = amount.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    basis = np.stack([np.ones(amount.size), y.ravel(), x.ravel()], axis=1)
    ink = amount - np.median(amount)
    for _ in range(3):
        paper = np.abs(ink) < 0.3 * max(ink.max(), LEAST_CONTRAST)
        plane = np.linalg.lstsq(basis[paper.ravel()], amount[paper], rcond=None)[0]
        ink = amount - (basis @ plane).reshape(amount.shape)
    if ink.max() < LEAST_CONTRAST:
        return np.zeros_like(ink)
    full = np.median(ink[ink > 0.5 * ink.max()])
    floor = max(0.15 * full, 4 * np.std(ink[paper]))
    return np.clip((ink - floor) / (full - floor), 0, 1)


def _pieces(ink: np.ndarray) -> np.ndarray:
    """[K, h, w]: the connected pieces of ink, without specks of dirt."""
    from scipy import ndimage

    label, _ = ndimage.label(ink > 0, structure=np.ones((3, 3)))
    mass = np.bincount(label.ravel(), weights=ink.ravel())
    kept = np.flatnonzero(mass > SPECK * mass.sum())
    return np.array([ink * (label == k) for k in kept]).reshape(-1, *ink.shape)


def _split(pieces: np.ndarray, axis: int) -> list[np.ndarray]:
    """Two digits: the pieces before and after the widest gap along `axis`.

    Where the digits touch, they are cut where there is least ink around the middle.
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
    return [pieces.sum(0) * before, pieces.sum(0) * ~before]


def _centre(ink: np.ndarray) -> np.ndarray:
    """[h, w] -> [28, 28] uint8: ink scaled to fit 20x20, its centre of mass on pixel 14, 14."""
    from PIL import Image

    profiles = [ink.sum(1), ink.sum(0)]
    spans = [np.flatnonzero(profile)[[0, -1]] + [0, 1] for profile in profiles]
    pixel = max(end - start for start, end in spans) / 20  # in pixels of the drawing
    box = []
    for profile, (start, end) in zip(profiles, spans, strict=True):
        middle = profile @ (np.arange(len(profile)) + 0.5) / profile.sum()
        # All ink stays inside, however lopsided.
        middle = np.clip(middle, end - 13.5 * pixel, start + 14.5 * pixel)
        box.append([middle - 14.5 * pixel, middle + 13.5 * pixel])
    margin = math.ceil(15 * pixel)
    (top, bottom), (left, right) = np.array(box) + margin
    canvas = Image.fromarray(np.pad(ink, margin).astype(np.float32))
    digit = np.asarray(
        canvas.resize((28, 28), Image.Resampling.HAMMING, box=(left, top, right, bottom))
    )
    # Thin strokes fade when they are made small.
    strong = np.median(digit[digit > 0.5 * digit.max()])
    return np.rint(255 * np.clip(digit / strong, 0, 1)).astype(np.uint8)
