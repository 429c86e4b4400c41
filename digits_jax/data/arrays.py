"""Images in NumPy arrays and .npz files: checks of shape, range and labels, without pickle."""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from digits_jax.errors import UserError, check_choice

FAINT = 25  # of 255: a pixel up to this belongs to no stroke
Names = Mapping[str, Sequence[str]]


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
            "are, and may be misread; --data finds the ink in pictures"
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
