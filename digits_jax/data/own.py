"""Sets of the user's own: IDX files, an .npz, a .csv, or folders named after classes.

All are 28x28 images with labels. The order of the examples is that of the file; folders are read
class by class, both by name, so that a set is the same on every machine.
"""

import csv
import gzip
import hashlib
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from digits_jax import console
from digits_jax.data import arrays, pictures
from digits_jax.data.recipes import RECIPES
from digits_jax.errors import UserError
from digits_jax.types import Digits

MOST_CLASSES = 256  # labels are uint8
MOST_BYTES = 1 << 32  # of an array
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test", "t10k": "test"}
_IDX_NAME = re.compile(r"(^|.*[-_./])(train|test|t10k)[-_.](images|labels)[-_.]idx[13]([-_.]|$)")
_LABEL_COLUMNS = ("label", "class")
# (images, labels) of an .npz
_NPZ_TRAIN = (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels"))
_NPZ_TEST = (("x_test", "y_test"), ("test_images", "test_labels"))


class LabelledSet(NamedTuple):
    """What was read: labels are indices into `classes`, in their order; test may be missing.

    digest: as of `digest`.
    """

    train: Digits
    test: Digits | None
    classes: tuple[str, ...]
    digest: str


def read(path: Path) -> LabelledSet:
    """The set at `path`. Raises UserError, naming the file, where it can't be read.

    A folder has IDX files (train-images-idx3-ubyte.gz and so on, any prefix), or
    CLASS/PICTURE, perhaps below train/ and test/. An .npz has `x_train` and `y_train`, or `images`
    and `labels`, and perhaps `x_test` and `y_test`. A .csv has a label and 784 pixels in a row,
    with or without a header. Labels are whole numbers or names.
    """
    try:
        return _read(path, _state(path))
    except OSError as error:
        raise UserError(f"data.source={path} can't be read: {error.strerror or error}") from None


def of_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    where: str = "data",
    expected: Iterable[int] = (),
) -> LabelledSet:
    """The set of `images` [N, 28, 28] (or [N, 28, 28, 1], [N, 784]), uint8 or floats in [0, 1], and
    `labels` [N], integers or strings. expected: classes that exist even without examples. Raises
    UserError where they don't fit; `where` names them.
    """
    console.status("checking the images and labels", brief=True)
    parts = [(images, labels), *([test] if test else [])]
    pixels = [_pixels(x, where) for x, _ in parts]
    names = [_names(y, len(x), where) for (_, y), x in zip(parts, pixels, strict=True)]
    classes = _in_order({*names[0], *map(str, expected)})
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise UserError(
            f"{where}: there are {len(classes)} classes; 2 to {MOST_CLASSES} can be told"
        )
    number = {name: i for i, name in enumerate(classes)}
    if unknown := sorted(set(names[-1]) - set(classes)):
        raise UserError(f"{where}: the class '{unknown[0]}' is in the test part alone")
    digits = [
        Digits(x, np.asarray([number[name] for name in each], np.uint8))
        for x, each in zip(pixels, names, strict=True)
    ]
    test_part = digits[1] if test else None
    return LabelledSet(digits[0], test_part, tuple(classes), digest(digits, classes))


def digest(parts: Iterable[Digits], classes: Iterable[str]) -> str:
    """SHA-256 of images, labels and classes, however they were stored."""
    content = hashlib.sha256("\0".join(classes).encode())
    for part in parts:
        content.update(np.ascontiguousarray(part.images))
        content.update(np.ascontiguousarray(part.labels))
    return content.hexdigest()


@lru_cache(maxsize=2)  # a run asks for the classes first, then for the images
def _read(path: Path, _: tuple[object, ...]) -> LabelledSet:
    where = f"data.source={path}"
    if path.is_dir():
        files = idx_files(path)
        return _idx_set(files, where) if files else _folders(path, where)
    kinds: dict[str, Callable[[Path, str], LabelledSet]] = {".npz": _npz, ".csv": _csv}
    if path.suffix.lower() not in kinds:
        raise UserError(f"{where}: expected a folder, an .npz or a .csv file")
    return kinds[path.suffix.lower()](path, where)


def _state(path: Path) -> tuple[object, ...]:
    """What changes when the files do."""
    if not path.is_dir():
        return (path.stat().st_size, path.stat().st_mtime_ns)
    files = sorted(file for file in path.rglob("*") if file.is_file())  # no link to nowhere
    return tuple((str(file), (s := file.stat()).st_size, s.st_mtime_ns) for file in files)


def kind_of(name: str, prefix: str | None = None) -> str:
    """'train-images', 'test-labels' and so on, of the name of an IDX file; '' of any other.

    prefix: what precedes it, None for anything.
    """
    found = _IDX_NAME.match(name.lower())
    if not found or (prefix is not None and found[1] != prefix):
        return ""
    return f"{_PARTS[found[2]]}-{found[3]}"


def idx_files(folder: Path, prefix: str | None = None) -> dict[str, Path]:
    """{kind: file} of the IDX files in a folder, or in folders of it; of copies the unpacked one.

    Raises UserError for two sets in one folder.
    """
    found: dict[str, Path] = {}
    sets = dict[tuple[Path, str], Path]()
    for file in sorted(folder.rglob("*"), key=Path.as_posix, reverse=True):
        if (kind := kind_of(file.name, prefix)) and file.is_file():
            # Kaggle packs each file into a folder of the file's name.
            place = file.parent.parent if kind_of(file.parent.name) else file.parent
            sets[place, re.split("train|test|t10k", file.name.lower())[0]] = file
            found[kind] = file
    if len(sets) > 1:
        one, other = (file.relative_to(folder) for file in list(sets.values())[:2])
        raise UserError(f"{folder} holds several sets, {one} and {other}; choose a folder of one")
    return found


def _idx_set(files: dict[str, Path], where: str) -> LabelledSet:
    has_test = any(kind.startswith("test") for kind in files)
    for kind in ("train-images", "train-labels", *(["test-images", "test-labels"] * has_test)):
        if kind not in files:
            raise UserError(f"{where}: there is no IDX file of the {kind.replace('-', ' ')}")
    found = {kind: idx(path) for kind, path in files.items()}
    test = (found["test-images"], found["test-labels"]) if has_test else None
    return of_arrays(found["train-images"], found["train-labels"], test, where)


def idx(path: Path) -> np.ndarray:
    """The array of an IDX file, plain or gzipped; UserError for one that is none, or damaged."""
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if gzipped else path.open("rb") as content:
            return idx_array(content)
    except PermissionError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except (OSError, EOFError, ValueError, KeyError, zlib.error, struct.error) as error:
        raise UserError(f"{path} is no IDX file, or damaged ({error})") from None


def idx_array(file: IO[bytes] | gzip.GzipFile) -> np.ndarray:
    """The array of an open IDX file."""
    zero, kind, axes = struct.unpack(">HBB", file.read(4))
    dtype = np.dtype(_IDX_TYPES[kind])
    shape = np.frombuffer(file.read(4 * axes), ">u4", axes).tolist()
    size = math.prod(shape) * dtype.itemsize
    content = file.read(min(size, MOST_BYTES) + 1)
    if zero or len(content) != size:
        raise ValueError("its size is not what its header says")
    return np.frombuffer(content, dtype).reshape(shape)


def _npz(path: Path, where: str) -> LabelledSet:
    try:
        checks = _check_images, _check_labels
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            train = next((pair for pair in _NPZ_TRAIN if set(pair) <= set(held)), None)
            test = next((pair for pair in _NPZ_TEST if set(pair) <= set(held)), None)
            if train is None:
                raise UserError(
                    "expected the arrays `x_train` and `y_train` (perhaps `x_test` and `y_test`), "
                    f"or `images` and `labels`, found {', '.join(held[:10]) or 'none'}"
                )
            read = {
                name: arrays.read_array(archive, name, MOST_BYTES, "biufU", checks[i % 2])
                for i, name in enumerate((*train, *(test or ())))
            }
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{where} is not a readable .npz file ({error})") from None
    others = (read[test[0]], read[test[1]]) if test else None
    return of_arrays(read[train[0]], read[train[1]], others, where)


def _csv(path: Path, where: str) -> LabelledSet:
    """A label and 784 pixels: in Kaggle's order, or as the header says."""
    labels, rows, column = list[str](), [], 0
    with (
        path.open(encoding="utf-8-sig", errors="replace", newline="") as file,
        console.Bar(f"reading {path.name}", path.stat().st_size) as bar,
    ):

        def lines() -> Iterator[str]:
            for line in file:
                if bar.add(len(line)):
                    bar.update()
                yield line

        for number, cells in enumerate(csv.reader(lines()), 1):
            if number == 1 and not all(map(_is_number, cells[1:-1])):
                names = [cell.strip().lower() for cell in cells]
                known = [names.index(name) for name in _LABEL_COLUMNS if name in names]
                if not known:
                    raise UserError(f"{where}: no column is named {' or '.join(_LABEL_COLUMNS)}")
                column = known[0]
                continue
            if not cells:
                continue
            label = cells.pop(min(column, len(cells) - 1)).strip()
            try:
                row = np.asarray(cells, np.float64)
                if row.shape != (784,):
                    raise ValueError(f"{len(row)} pixels instead of 784")
            except ValueError as error:
                raise UserError(f"{where}, line {number}: {error}") from None
            whole = _is_number(label) and float(label).is_integer()
            labels.append(str(int(float(label))) if whole else label)
            rows.append(row.astype(np.float32))
    if not rows:
        raise UserError(f"{where}: there are no rows of a label and 784 pixels")
    return of_arrays(_whole(np.stack(rows)), np.asarray(labels), None, where)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _whole(pixels: np.ndarray) -> np.ndarray:
    """uint8 where all values are whole and some reach beyond 1, else as they are."""
    whole = pixels.max() > 1 and np.array_equal(pixels, np.rint(pixels)) and pixels.max() <= 255
    return pixels.astype(np.uint8) if whole and pixels.min() >= 0 else pixels


def _folders(path: Path, where: str) -> LabelledSet:
    parts = {
        _PARTS[folder.name.lower()]: folder
        for folder in pictures.within(path)
        if folder.is_dir() and folder.name.lower() in _PARTS
    }
    if "train" not in parts:
        parts = {"train": path}
    sets = {part: _classes(folder, where) for part, folder in parts.items()}
    return of_arrays(*sets["train"], sets.get("test"), where)


def _classes(folder: Path, where: str) -> tuple[np.ndarray, np.ndarray]:
    """([N, 28, 28] uint8, [N] names) of a folder's CLASS/PICTURE."""
    classes = {child.name: child for child in pictures.within(folder) if child.is_dir()}
    images, labels, unread = [], [], dict[str, str]()
    files = [(name, file) for name in _in_order(classes) for file in pictures.within(classes[name])]
    for name, file in console.track(files, f"reading {len(files):,} pictures"):
        try:
            images.append(pictures.read_small(file, RECIPES["mnist"]))
            labels.append(name)
        except UserError as error:
            unread[f"{name}/{file.name}"] = str(error)
    if unread:
        raise UserError(
            f"{where}: {len(unread):,} of its files can't be read as pictures; take them out: "
            + "; ".join(pictures.told(unread, 3))
        )
    if not images:
        raise UserError(
            f"{where}: there are neither IDX files nor folders of pictures named after classes"
        )
    return np.stack(images), np.asarray(labels)


def _in_order(names: Iterable[str]) -> list[str]:
    """Numbers by size, names by letter."""
    names = list(names)
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _pixels(images: np.ndarray, where: str) -> np.ndarray:
    """[N, 28, 28] uint8, bright ink on dark as it is."""
    images = np.asarray(images)
    try:
        _check_images(images.shape)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return arrays.as_uint8(images.reshape(-1, 28, 28), f"{where}: images")


def _check_images(shape: tuple[int, ...]) -> None:
    if shape[1:] not in ((28, 28), (28, 28, 1), (784,)) or not shape[0]:
        raise UserError(f"images must be [N, 28, 28], not {list(shape)}")


def _check_labels(shape: tuple[int, ...]) -> None:
    if len(shape) != 1 and shape[1:] != (1,):
        raise UserError(f"labels must be [N], not {list(shape)}")


def _names(labels: np.ndarray, n: int, where: str) -> list[str]:
    labels = np.asarray(labels)
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    if labels.dtype.kind == "O" and all(isinstance(x, str | int) for x in labels.ravel()):
        labels = labels.astype(str)  # as pandas has names
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8")
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    if labels.shape != (n,) or labels.dtype.kind not in "iuU":
        raise UserError(
            f"{where}: labels must be whole numbers or names [{n}], one for each image, not "
            f"{labels.dtype} {list(labels.shape)}"
        )
    return [str(label) for label in labels.tolist()]
