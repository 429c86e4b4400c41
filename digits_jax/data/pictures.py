"""The user's own images, prepared as MNIST is: bright ink on dark, centred.

An .npz file holds images of the model's size. Pictures may be drawn, scanned or photographed: any
kind of file in FORMATS, and HEIC where `pillow_heif` is installed.
"""

import contextlib
import glob
import io
import math
import os
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from digits_jax.console import track
from digits_jax.data import arrays
from digits_jax.data.arrays import FAINT, Names
from digits_jax.data.ink import (
    brightness,
    centred,
    cut,
    find,
    is_dark,
    laid,
    parts,
    split_pair,
    union,
)
from digits_jax.data.recipes import Recipe
from digits_jax.errors import UserError, check_choice

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
LEAST_CONTRAST = 0.1  # of the full range; less is a blank picture
INKS = ("auto", "bright", "dark")
LABELS = ("folder", "name")
STDIN = Path("-")
LONGEST_SIDE = 1600  # px; a larger picture is reduced to this as it is opened
DIGIT_SIDE = 512  # px; and further where the digits of an example are looked for
MOST_BYTES = 1 << 30  # of an array, or of a picture's file
# Of a picture that is decoded in full, with up to 20 bytes of memory for each (WebP). A JPEG is
# reduced while it is decoded, and may have as many as Pillow opens.
MOST_PIXELS = 50_000_000
_SYSTEMS_OWN = ("thumbs.db", "desktop.ini", "__macosx")
_UNKNOWN = f"not a picture of a kind that is read ({', '.join(FORMATS)}), or a damaged one"
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_NO_MEAN = {"1": "L", "P": "RGB", "I;16B": "I"}  # modes that Pillow can't average; what then
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")


class Pictures(NamedTuple):
    """What was read.

    images: [N, H, W] uint8, bright ink on dark; labels: {head: [N] int32}, -1 where there is none
    that fits, or None; names: [N]; unread: {name: why it could not be read}; notes: warnings for
    the user, a line each.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray] | None
    names: list[str]
    unread: dict[str, str]
    notes: list[str]


class Opened(NamedTuple):
    """A picture, upright.

    pixels: [h, w, 3] uint8, reduced to LONGEST_SIDE, transparency filled with paper; size: (width,
    height) before that; note: what the user should know of it, or "".
    """

    pixels: np.ndarray
    size: tuple[int, int]
    note: str


def read(
    data: str | Path,
    ink: str,
    recipe: Recipe,
    classes: Names | None = None,
    labels: str | None = None,
) -> Pictures:
    """Reads the images of `data` for a model of `recipe`.

    data: an .npz with `images` [N, H, W] uint8 and optionally `labels` ([N] or [N, heads]
    integers), or pictures as in `paths_of`. ink: 'bright' on dark, 'dark' on bright, or 'auto',
    decided for each picture and for an .npz as a whole. Images of an .npz keep their pixels, as
    does a picture that looks as `recipe` composes MNIST's digits. In any other picture the digits
    are found, scaled to fit 20x20 and placed by their centre of mass. classes: {head: names} of a
    run on other classes than digits; labels of an .npz are such names then. labels: where a
    picture's label is, as in `label_of`; None for nowhere. Raises UserError, naming the file and
    the problem, where nothing could be read.
    """
    check_choice("--ink", ink, INKS)
    path = Path(data)
    if path.suffix.lower() == ".npz" and path.is_file():
        if labels:
            raise UserError("--labels is for pictures; an .npz holds its labels as `labels`")
        try:
            return _read_npz(path, ink, recipe, classes)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    paths = paths_of(data, labels)
    images, found, truth = [], list[str](), list[dict[str, int]]()
    unread, notes = dict[str, str](), list[str]()
    for name, each in tracked(paths):
        try:
            picture = opened(each)
            images.append(_read_picture(picture.pixels, ink, recipe))
        except UserError as error:
            unread[name] = str(error)
            continue
        found.append(name)
        notes += [f"{name}: {picture.note}"] * bool(picture.note)
        if several := _several(picture.pixels, ink, recipe):
            notes.append(
                f"{name} holds {several} digits, this run reads one; --mode=read reads numbers"
            )
        if labels:
            try:
                truth.append(_targets(label_of(each, labels), recipe, classes))
            except UserError as error:
                notes.append(f"{name}: {error}; it doesn't count")
                truth.append(dict.fromkeys(recipe.heads, -1))
    if not images:
        nothing_read(data, paths, unread)
    targets = {head: np.asarray([t[head] for t in truth], np.int32) for head in recipe.heads}
    return Pictures(np.stack(images), targets if labels else None, found, unread, notes)


def nothing_read(data: str | Path, paths: Collection[Path], unread: Mapping[str, str]) -> NoReturn:
    """Raises the UserError of `paths` of which none could be read."""
    if len(paths) == 1 and not Path(data).is_dir():
        where = _name(STDIN) if paths == [STDIN] else data
        raise UserError(f"{where}: {next(iter(unread.values()))}")
    raise UserError(f"{data}: no picture that could be read ({'; '.join(told(unread, 3))})")


def paths_of(data: str | Path, labels: str | None = None) -> list[Path]:
    """The pictures that `data` names, sorted: a file, a folder, a pattern such as 'photos/*.jpg',
    or '-', standard input.

    Hidden files and those that a system adds to a folder don't count. With labels='folder' a
    folder's own folders are looked into, too. Raises UserError where there is nothing.
    """
    path = Path(data)
    if path == STDIN:
        return [STDIN]
    try:
        if path.is_dir():
            paths = within(path)
            if labels == "folder":
                paths = [x for each in paths for x in (within(each) if each.is_dir() else [each])]
            if not paths:
                raise UserError(f"{path}: no pictures in this folder")
            return paths
        if path.is_file() or path.is_symlink():
            return [path]
        found = [Path(name) for name in glob.glob(os.fspath(data), recursive=True)]
    except OSError as error:
        raise UserError(f"{path}: this folder cannot be read ({error.strerror})") from None
    if path not in found:
        found = [each for each in found if not _of_the_system(each)]
    if not found:
        pattern = glob.has_magic(os.fspath(data))
        raise UserError(f"{path}: there is no such file{'' if pattern else ' or folder'}")
    return sorted(found)


def within(folder: Path) -> list[Path]:
    """The files and folders of a folder, by name; hidden ones and a system's own don't count."""
    own = (path for path in folder.iterdir() if not _of_the_system(path))
    return sorted(own, key=lambda path: path.name)  # a Path of Windows sorts without case


def _of_the_system(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _SYSTEMS_OWN


def tracked(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    """(name, path) of each, with a bar; a name has as much of the path as tells it from others."""
    folders = {path.absolute().parent for path in paths}
    above = os.path.commonpath(folders) if len(folders) > 1 else ""
    bar = track(paths, f"reading {len(paths):,} pictures") if len(paths) > 1 else paths
    for path in bar:
        yield _name(path, above), path


def label_of(path: Path, where: str) -> str:
    """The label of a picture: the 'folder' it lies in, or, by 'name', what follows the last
    underscore of its name: '7' of IMG_0042_7.jpg. UserError where there is none.
    """
    if where == "folder" and path != STDIN:
        return path.absolute().parent.name
    _, underscore, label = path.stem.rpartition("_")
    if not (underscore and label):
        raise UserError("there is no label after an underscore in its name")
    return label


def _targets(label: str, recipe: Recipe, classes: Names | None) -> dict[str, int]:
    """{head: class} of a label: the name of a class, or of each head's, one character each."""
    heads = recipe.heads
    known = classes or {h: [f"{i:0{len(str(n - 1))}}" for i in range(n)] for h, n in heads.items()}
    parts = [label] if len(heads) == 1 else list(label)
    if len(parts) == len(heads):
        pairs = list(zip(heads, parts, strict=True))
        if all(part in known[head] for head, part in pairs):
            return {head: [*known[head]].index(part) for head, part in pairs}
    which = " and ".join(f"{head} {names[0]} to {names[-1]}" for head, names in known.items())
    raise UserError(f"its label '{label}' is none that this run reads ({which})")


def told(unread: Mapping[str, str], most: int = 10) -> list[str]:
    """A line for each file that could not be read; above `most` files, a line for each reason."""
    if len(unread) <= most:
        return [f"{name}: {reason}" for name, reason in unread.items()]
    first = {reason: name for name, reason in reversed([*unread.items()])}
    lines, rest = [], len(unread)
    for reason, n in Counter(unread.values()).most_common(most):
        lines.append(f"{first[reason]}{f' and {n - 1:,} more' if n > 1 else ''}: {reason}")
        rest -= n
    return [*lines, f"{rest:,} more, for other reasons"] if rest else lines


def _name(path: Path, above: str = "") -> str:
    """The name of `path`, or all below `above`, as valid text: on Linux it can be any bytes."""
    if path == STDIN:
        return "standard input"
    name = Path(os.path.relpath(path, above)).as_posix() if above else path.name
    return name.encode("utf-8", "backslashreplace").decode()


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
    return Pictures(images, labels, names, {}, [f"{path}: {note}" for note in notes])


def read_small(path: Path, recipe: Recipe) -> np.ndarray:
    """[28, 28] uint8 of a picture: of one of that size its grey levels, else as `read` has it."""
    pixels = opened(path).pixels
    if pixels.shape == (28, 28, 3):
        return np.rint(255 * _brightness(pixels)).astype(np.uint8)
    return _read_picture(pixels, "auto", recipe)


def _several(pixels: np.ndarray, ink: str, recipe: Recipe) -> int:
    """How many digits there are, where a model reads one; 0 if there is one."""
    if recipe.digits > 1 or pixels.shape[:2] == tuple(recipe.shape):
        return 0
    light = np.rint(255 * _brightness(pixels)).astype(np.uint8)
    count = sum(map(len, find(light, ink)))
    return count if count > 1 else 0


def _read_picture(pixels: np.ndarray, ink: str, recipe: Recipe) -> np.ndarray:
    """[h, w, 3] uint8 -> [H, W] uint8, ink bright on dark."""
    light = _brightness(pixels)
    if np.ptp(light) < LEAST_CONTRAST:
        raise UserError("no ink found, the picture is blank")
    dark = ink == "dark" or (ink == "auto" and is_dark(light))
    picture = brightness(np.rint(255 * light), "dark" if dark else "bright")
    if light.shape == tuple(recipe.shape):
        margin = max(light.shape)
        found = parts(np.pad(picture, margin, constant_values=1), 20)
        whole = laid(found, tuple(side + 2 * margin for side in light.shape)).sum(0)
        lifted = whole[margin:-margin, margin:-margin].clip(0, 1)
        for kept in (1 - light if dark else light, lifted):  # MNIST's own, or on another paper
            pixels = np.rint(255 * kept).astype(np.uint8)
            if _composed(pixels, recipe):
                return pixels
    found, *_ = cut(picture)
    if not found:
        raise UserError(f"no ink found on the {'bright' if dark else 'dark'} paper")
    if recipe.digits == 1:
        drawn = [union(found).ink]
    else:
        pieces = laid(found, (max(p.bottom for p in found), max(p.right for p in found)))
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


def _brightness(pixels: np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8 -> [h, w] float32 from 0 black to 1 white, reduced to DIGIT_SIDE."""
    from PIL import Image

    light = np.asarray(Image.fromarray(pixels).convert("L"), np.float32) / 255
    if (size := _reduced(light.shape[::-1], DIGIT_SIDE)) != light.shape[::-1]:
        light = np.asarray(Image.fromarray(light).resize(size, Image.Resampling.BOX))
    return light


def _reduced(size: tuple[int, ...], longest: int) -> tuple[int, int]:
    """(width, height), where `size` is larger with `longest` as its longest side."""
    width, height = size
    scale = min(1, longest / max(size))
    return max(1, round(scale * width)), max(1, round(scale * height))


def open_picture(source: Any) -> np.ndarray:
    """The pixels of `opened`: [h, w, 3] uint8, upright."""
    return opened(source).pixels


def opened(source: Any) -> Opened:
    """Opens a picture: a path, the bytes of a file, an image of Pillow, or an array [h, w] or
    [h, w, 3] as in `arrays.as_uint8`. Raises UserError for what can't be read.

    Of an animation the first frame is taken. 16 bits become 8.
    """
    from PIL import Image

    if isinstance(source, str | os.PathLike | bytes | bytearray):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its text, its orientation or its size
            return _decoded(*_file(source))
    if isinstance(source, Image.Image):
        return _upright(source, source.size, "")
    array = np.asarray(source)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or not array.size:
        raise UserError(f"a picture is an array [h, w] or [h, w, 3], not {list(array.shape)}")
    image = Image.fromarray(np.ascontiguousarray(arrays.as_uint8(array, "the picture")))
    return _upright(image, image.size, "")


def _file(source: Any) -> tuple[IO[bytes], int]:
    """A file that can be read from its beginning, and its size."""
    if isinstance(source, str | os.PathLike) and Path(source) == STDIN:
        source = sys.stdin.buffer.read(MOST_BYTES + 1)
    if isinstance(source, bytes | bytearray):
        return io.BytesIO(source), len(source)
    path = Path(source)
    if path.is_dir():
        raise UserError("a folder; to read what is in it, name it with --data")
    if not path.is_file():
        raise UserError("no file that could be opened")
    try:
        file = path.open("rb")
        return file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"it can't be opened ({error.strerror})") from None


def _decoded(file: IO[bytes], size: int) -> Opened:
    """The picture in an open file, which is closed."""
    from PIL import Image, UnidentifiedImageError

    kind = "picture"
    try:
        with file:
            if not 0 < size <= MOST_BYTES:
                large = f"a file of more than {MOST_BYTES:,} bytes"
                raise UserError(large if size else "an empty file")
            start = file.read(64)
            file.seek(0)
            if start[4:8] == b"ftyp" and start[8:12] in _HEIF and b"avif" not in start:
                return _heif(file)
            with Image.open(file, formats=FORMATS) as image:
                kind, given = f"{image.format} file", image.size
                if image.format == "PNG":
                    image.verify()  # the pixels' checksums, which `load` skips
                    file.seek(0)
                    image = Image.open(file, formats=["PNG"])
                image.draft(None, _reduced(given, LONGEST_SIDE))  # does something to a JPEG alone
                _check_size(image.size)
                image.load()
                return _upright(image, given, _note(image))
    except UserError:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"more than {most:,} pixels") from None
    except UnidentifiedImageError:
        raise UserError(_UNKNOWN) from None
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"a damaged {kind} ({reason or type(error).__name__})") from None


def _check_size(size: tuple[int, int]) -> None:
    if math.prod(size) > MOST_PIXELS:
        raise UserError(
            f"{size[0]:,} x {size[1]:,} pixels, more than {MOST_PIXELS:,}; make it smaller, or "
            "save it as JPEG"
        )


def _note(image: Any) -> str:
    with contextlib.suppress(Exception):  # damaged behind the first frame
        if image.format in _ANIMATED and image.is_animated:
            return "an animation, of which the first frame is read"
        if image.format == "TIFF" and image.is_animated:
            return "several pages, of which the first is read"
    return ""


def _heif(file: IO[bytes]) -> Opened:
    """The picture in a HEIC file; `pillow_heif` turns it upright itself."""
    try:
        import pillow_heif
    except ImportError:
        raise UserError(
            "a HEIC picture; `pip install pillow-heif` lets it be read, or save it as JPEG"
        ) from None
    heif = pillow_heif.open_heif(file, convert_hdr_to_8bit=True)
    _check_size(heif.size)
    return _upright(heif.to_pillow(), heif.size, "")


def _upright(image: "Image.Image", given: tuple[int, int], note: str) -> Opened:
    """`image` reduced, turned upright and with its transparency filled.

    given: its size before it was decoded.
    """
    from PIL import Image, ImageOps

    if image.has_transparency_data and not image.mode.startswith("I"):
        image = image.convert("RGBA")
    elif image.mode in _NO_MEAN:
        image = image.convert(_NO_MEAN[image.mode])
    if (size := _reduced(image.size, LONGEST_SIDE)) != image.size:
        image = image.resize(size, Image.Resampling.BOX)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    shape = image.size
    with contextlib.suppress(Exception):  # a damaged orientation is ignored
        image = ImageOps.exif_transpose(image)
    if image.size != shape:
        given = given[::-1]
    pixels = np.array(image.convert("RGB"))
    if image.mode == "RGBA":
        pixels = _filled(pixels, np.asarray(image)[:, :, 3:] / np.float32(255))
    return Opened(pixels, given, note)


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """A grey picture of 16 bits, or of numbers of any range, whose least and greatest are black
    and white then.
    """
    from PIL import Image

    light = np.asarray(image, np.float32)
    low, high = float(light.min()), float(light.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError("its pixels are no numbers")
    full = 65535.0 if image.mode != "F" else 1.0
    low, high = (0.0, full) if low >= 0 and high <= full else (low, high)
    light = np.rint((light - low) * np.float32(255 / (high - low)))
    made = Image.fromarray(light.clip(0, 255).astype(np.uint8))
    made.info = image.info
    return made


def _filled(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8 on paper where alpha [h, w, 1] is below 1.

    Most of the picture is paper. Where most of it is transparent, the rest is ink.
    """
    if alpha.min() == 1:
        return pixels
    opaque = pixels[alpha[:, :, 0] > 0.5]
    inside = np.median(opaque, axis=0) if len(opaque) else np.zeros(3)
    paper = inside if alpha.mean() > 0.5 else np.full(3, 255 * float(inside.mean() < 127.5))
    return np.rint(alpha * pixels + (1 - alpha) * paper).astype(np.uint8)
