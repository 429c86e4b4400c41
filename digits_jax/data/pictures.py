"""The user's own images, prepared as MNIST is: bright ink on dark, centred.

An .npz file holds images of the model's size. A .png file, or a folder of them, may be drawn,
scanned or photographed.
"""

import contextlib
import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from digits_jax.console import track
from digits_jax.data.recipes import Recipe
from digits_jax.errors import UserError, check_choice

INKS = ("auto", "bright", "dark")
MOST_BYTES = 1 << 30
LONGEST_SIDE = 512  # larger pictures are reduced to this first
Names = Mapping[str, Sequence[str]]
LEAST_CONTRAST = 0.1  # between ink and paper, of the full range
SPECK = 0.03  # a connected piece with a smaller share of the ink is dirt
FAINT = 25  # of 255: a pixel up to this belongs to no stroke


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
            arrays = {
                name: read_array(archive, name, MOST_BYTES, "biufU" if classes else "biuf")
                for name in ("images", "labels")
                if name in held
            }
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"not a readable .npz file ({error})") from None
    height, width = recipe.shape
    if "images" not in arrays:
        known = ", ".join(repr(name[:40]) for name in held[:10]) or "nothing"
        raise UserError(
            f"holds no array named `images`, but {known}{' and more' if len(held) > 10 else ''}; "
            f"expected `images`, uint8 [N, {height}, {width}], and perhaps `labels`, as of "
            'np.savez("mine.npz", images=..., labels=...)'
        )
    images = arrays["images"]
    if images.dtype != np.uint8 or images.shape[1:] != (height, width) or not len(images):
        raise UserError(
            f"`images` must be uint8 [N, {height}, {width}] with N > 0, "
            f"not {images.dtype} {list(images.shape)}"
        )
    labels = None
    if "labels" in arrays:
        labels = check_labels(arrays["labels"], len(images), recipe.heads, classes)
    names = [f"{_name(path)}[{i}]" for i in range(len(images))]
    images, notes = as_bright(images, ink)
    return Pictures(images, labels, names, {}, notes)


def read_array(
    archive: zipfile.ZipFile,
    name: str,
    most: int,
    kinds: str = "biuf",
    check: Callable[[tuple[int, ...]], None] = lambda _: None,
) -> np.ndarray:
    """The array `name` of an .npz, of one of the `kinds` of dtype.

    check: raises UserError for a wrong shape, before the values are read. Raises UserError for
    objects, for another kind, and for more than `most` bytes of memory.
    """
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > most:
        raise UserError(f"`{name}` has {info.file_size:,} bytes; the most is {most:,}")
    # zipfile unpacks these two in steps, the others at once, however large.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"`{name}` is compressed as np.savez never does; write the file with that")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        one, two = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
        shape, fortran, dtype = one(file) if version == (1, 0) else two(file)
        if dtype.kind not in kinds:
            raise UserError(f"`{name}` must hold plain numbers, not {dtype}")
        check(shape)
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= size <= most:
            raise UserError(f"`{name}` has {size:,} bytes; the most is {most:,}")
        return np.ndarray(shape, dtype, file.read(size), order="F" if fortran else "C")


def as_uint8(images: np.ndarray, what: str = "images") -> np.ndarray:
    """Grey levels from 0 to 255, of whole numbers that reach beyond 1, of bool, or of floats in
    [0, 1], which are rounded. Raises UserError, naming `what`, for any other values.
    """
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    if images.dtype.kind not in "iuf":
        raise UserError(f"{what} must be uint8, or floats in [0, 1], not {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{what} hold values that are no numbers")
    reach = f"these reach from {low:g} to {high:g}"
    if images.dtype.kind == "f":
        if low < 0 or high > 1:
            way = "; divide them by 255" if low >= 0 and high <= 255 else ""
            raise UserError(f"{what} of floats must lie in [0, 1]; {reach}{way}")
        return np.rint(255 * images.astype(np.float64)).astype(np.uint8)
    if low < 0 or high > 255:
        raise UserError(f"{what} of whole numbers must lie in 0 to 255; {reach}")
    if 0 < high <= 1:
        raise UserError(
            f"{what} of whole numbers reach to 255; {reach}: pass them as floats or bool"
        )
    return images.astype(np.uint8)


def as_bright(images: np.ndarray, ink: str) -> tuple[np.ndarray, list[str]]:
    """[N, H, W] uint8 -> (the same with bright ink on dark, notes).

    An image's paper is the median of its rim; the majority of images decides for all.
    """
    rim = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    paper = np.median(rim, axis=1)
    middle = (float(images.min()) + float(images.max())) / 2
    notes = []
    if ink == "auto" and np.mean(paper > middle) > 0.5:
        ink = "dark"
        notes.append("taken as dark ink on bright paper; if it is not, pass --ink=bright")
    if ink == "dark":
        images, paper = 255 - images, 255 - paper
    unlike = int(np.sum((paper > FAINT) | (images.max(axis=(1, 2)) < 128)))
    if unlike:
        notes.append(
            f"{unlike:,} of {len(images):,} images are not bright ink on black paper, as MNIST's "
            "are, and may be misread; --data finds the ink in .png files"
        )
    return images, notes


def check_labels(
    labels: np.ndarray, n: int, heads: dict[str, int], classes: Names | None = None
) -> dict[str, np.ndarray]:
    """-> {head: [n] int32} from [n] or [n, heads] integers; with `classes`, from their names."""
    shapes = [[n, len(heads)]] if len(heads) > 1 else [[n], [n, 1]]
    kinds, what = ("iuU", "names or integers") if classes else ("iu", "integers")
    if labels.dtype.kind not in kinds or list(labels.shape) not in shapes:
        raise UserError(
            f"`labels` must be {what} {shapes[0]}, one for each image"
            f"{' and head' if len(heads) > 1 else ''}, not {labels.dtype} {list(labels.shape)}"
        )
    columns = dict(zip(heads, labels.reshape(n, -1).T, strict=True))
    for head, column in columns.items():
        if classes:
            number = {name: i for i, name in enumerate(classes[head])}
            for name in map(str, np.unique(column).tolist()):
                check_choice(f"`labels` of {head}", name, number)
            columns[head] = np.asarray([number[str(name)] for name in column.tolist()])
            continue
        if column.min() < 0 or column.max() >= heads[head]:
            raise UserError(
                f"`labels` of {head} must lie in 0 to {heads[head] - 1}; "
                f"they reach from {column.min()} to {column.max()}"
            )
    return {head: column.astype(np.int32) for head, column in columns.items()}


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
    pieces = _pieces(_lift(amount))
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
        drawn = _split(pieces, axis=1 if recipe.shape[1] > recipe.shape[0] else 0)
    if not all(digit.any() for digit in drawn):
        raise UserError(f"found one digit where the model reads {recipe.digits}")
    digits = np.stack([_centre(digit) for digit in drawn])
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


def _lift(amount: np.ndarray) -> np.ndarray:
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


def _pieces(ink: np.ndarray) -> np.ndarray:
    """[K, h, w]: the connected pieces of ink, without dirt (SPECK)."""
    from scipy import ndimage

    label, _ = ndimage.label(ink > 0, structure=np.ones((3, 3)))
    mass = np.bincount(label.ravel(), weights=ink.ravel())
    kept = np.flatnonzero(mass > SPECK * mass.sum())
    return np.array([ink * (label == k) for k in kept]).reshape(-1, *ink.shape)


def _split(pieces: np.ndarray, axis: int) -> list[np.ndarray]:
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


def _centre(ink: np.ndarray) -> np.ndarray:
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
