"""Drawings, scans and photographs become MNIST-like; what cannot be read is named in one line."""

import gzip
import io
import os
import pathlib
import sys
import types
import weakref
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from digits_jax.analysis import evaluate
from digits_jax.data import pictures
from digits_jax.data.recipes import RECIPES
from digits_jax.errors import UserError

ONE, NUMBER, STACKED = (RECIPES[name] for name in ("mnist", "mnist100", "two_digit"))


def drawing(*strokes, size=(200, 200), width=18):
    """Ink 255 on 0: [h, w] uint8, a polyline for each stroke of (x, y) points."""
    image = Image.new("L", size, 0)
    for stroke in strokes:
        ImageDraw.Draw(image).line(stroke, fill=255, width=width, joint="curve")
    return np.asarray(image)


SEVEN = drawing([(30, 40), (120, 40), (70, 170)])


def read_one(tmp_path, pixels, ink="auto", recipe=ONE):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(tmp_path / "x.png")
    images, *others = pictures.read(tmp_path / "x.png", ink, recipe)
    assert others == [None, ["x.png"], {}, []]
    assert images.dtype == np.uint8
    assert images.shape == (1, *recipe.shape)
    return images[0]


def centre(digit):
    grid = np.mgrid[: digit.shape[0], : digit.shape[1]]
    return (grid * digit).sum((1, 2)) / digit.sum()


def extent(digit):
    return [int(np.ptp(np.flatnonzero(digit.max(axis) > 25))) + 1 for axis in (1, 0)]


def test_digit_fits_20x20_and_its_centre_of_mass_is_pixel_14(tmp_path):
    digit = read_one(tmp_path, SEVEN)
    np.testing.assert_allclose(centre(digit), [14, 14], atol=0.1)
    assert max(extent(digit)) in (20, 21)
    assert digit.max() == 255
    assert digit[0, 0] == 0


@pytest.mark.parametrize("ink", ["auto", "dark"])
def test_dark_ink_on_light_paper_is_the_same(tmp_path, ink):
    bright = read_one(tmp_path, SEVEN).astype(int)
    dark = read_one(tmp_path, 255 - SEVEN, ink)
    np.testing.assert_allclose(dark, bright, atol=1)


def test_size_and_place_of_the_drawing_do_not_matter(tmp_path):
    expected = read_one(tmp_path, SEVEN).astype(int)
    moved = np.pad(SEVEN, ((300, 10), (50, 700)))
    np.testing.assert_allclose(read_one(tmp_path, moved), expected, atol=40)


def test_uneven_light_noise_and_a_speck_of_dirt(tmp_path):
    expected = read_one(tmp_path, SEVEN).astype(int)
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    light = (0.7 + 0.2 * x + 0.05 * y) * (1 - 0.75 * SEVEN / 255)
    light += 0.02 * np.random.default_rng(0).normal(size=light.shape)
    light[185:189, 185:189] = 0
    photo = read_one(tmp_path, (255 * light.clip(0, 1)).astype(np.uint8))
    assert np.abs(photo - expected).mean() < 6


@pytest.mark.parametrize("kind", ["rgb", "palette", "one bit", "16 bit", "ink on glass", "sticker"])
def test_kinds_of_png(tmp_path, kind):
    expected = read_one(tmp_path, 255 - SEVEN).astype(int)
    paper = Image.fromarray(255 - SEVEN)
    glass = Image.merge("LA", [Image.new("L", paper.size, 0), Image.fromarray(SEVEN)])
    corner = Image.new("L", paper.size, 255)
    corner.paste(0, (0, 0, 20, 20))
    image = {
        "rgb": paper.convert("RGB"),
        "palette": paper.convert("P"),
        "one bit": paper.convert("1"),
        "16 bit": Image.fromarray((255 - SEVEN).astype(np.uint16) * 257),
        "ink on glass": glass.convert("RGBA"),
        "sticker": Image.merge("LA", [paper, corner]),
    }[kind]
    np.testing.assert_allclose(read_one(tmp_path, image), expected, atol=2)


def composed(tmp_path, recipe):
    """What `recipe` makes of two digits of MNIST's size and place: [H, W] uint8."""
    digits = [read_one(tmp_path, pixels) for pixels in (SEVEN, SEVEN.T)][: recipe.digits]
    return np.asarray(recipe.compose(np.stack(digits)[None]))[0]


@pytest.mark.parametrize("recipe", [ONE, NUMBER, STACKED], ids=["one", "number", "stacked"])
def test_what_is_composed_as_the_recipe_does_it_keeps_its_pixels(tmp_path, recipe):
    pixels = composed(tmp_path, recipe)
    for ink in ("auto", "bright"):
        np.testing.assert_array_equal(read_one(tmp_path, pixels, ink, recipe), pixels)
    for ink in ("auto", "dark"):
        np.testing.assert_array_equal(read_one(tmp_path, 255 - pixels, ink, recipe), pixels)


ROOT = pathlib.Path(__file__).parents[1]
REAL = pathlib.Path(os.environ.get("DIGITS_JAX_MNIST", ROOT.parent / "shared" / "mnist"))


@pytest.mark.skipif(not REAL.is_dir(), reason="no MNIST: set DIGITS_JAX_MNIST to its folder")
def test_mnists_own_digits_keep_their_pixels(tmp_path):
    (path,) = REAL.glob("t10k-images-idx3-ubyte*")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path) as file:
        digits = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 28, 28)
    pairs = np.random.default_rng(0).integers(len(digits), size=(500, 2))
    for recipe in (ONE, NUMBER, STACKED):
        images = np.asarray(recipe.compose(digits[::10, None] if recipe is ONE else digits[pairs]))
        assert all(pictures._composed(image, recipe) for image in images)
        for image in images[:20]:
            np.testing.assert_array_equal(read_one(tmp_path, image, recipe=recipe), image)


@pytest.mark.parametrize("recipe", [ONE, NUMBER, STACKED], ids=["one", "number", "stacked"])
@pytest.mark.parametrize(("paper", "ink"), [(200, 67), (128, 20), (230, 180), (60, 220)])
def test_grey_paper_and_faint_ink_of_exactly_the_models_size(tmp_path, recipe, paper, ink):
    expected = composed(tmp_path, recipe)
    noise = 2 * np.random.default_rng(0).normal(size=expected.shape)
    grey = np.rint(paper + (ink - paper) * (expected / 255) + noise).astype(np.uint8)
    found = read_one(tmp_path, grey, recipe=recipe).astype(int)
    assert np.mean(found == 0) > 0.6
    assert found.max() == 255
    assert np.abs(found - expected).mean() < 7


@pytest.mark.parametrize("paper", [0, 255, 200])
@pytest.mark.parametrize("height", [28, 16], ids=["fills it", "in a corner"])
def test_a_small_picture_whose_digit_is_not_where_mnist_has_it(tmp_path, height, paper):
    rows, columns = (np.flatnonzero(SEVEN.max(axis)) for axis in (1, 0))
    digit = Image.fromarray(SEVEN[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    width = round(height * digit.width / digit.height)
    ink = np.zeros((28, 28))
    ink[:height, :width] = np.asarray(digit.resize((width, height), Image.Resampling.BOX)) / 255
    other = 255 if paper == 0 else 0
    found = read_one(tmp_path, np.rint(paper + (other - paper) * ink).astype(np.uint8))
    np.testing.assert_allclose(centre(found), [14, 14], atol=0.2)
    assert max(extent(found)) in (20, 21)
    assert np.abs(found.astype(int) - read_one(tmp_path, SEVEN)).mean() < 8


def test_a_small_picture_whose_two_digits_do_not_overlap(tmp_path):
    """Composed digits are 20 high and 14 apart; these are 18 high and 22 apart."""
    bar = np.zeros((42, 28), np.uint8)
    bar[1:19, 12:16] = bar[23:41, 12:16] = 255
    found = read_one(tmp_path, bar, recipe=STACKED)
    one = read_one(tmp_path, bar[:21])
    np.testing.assert_array_equal(found, np.asarray(STACKED.compose(np.stack([[one, one]])))[0])


# Stored pixels -> what TIFF's `orientation` says they are: row 0 and column 0 of the stored ones
# are these sides of the upright picture.
STORED = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.T,  # left, top
    6: lambda upright: upright[:, ::-1].T,  # right, top
    7: lambda upright: upright[::-1, ::-1].T,  # right, bottom
    8: lambda upright: upright[::-1].T,  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_picture_is_read_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    number = composed(tmp_path, NUMBER)  # upright it has the size of the model
    for upright, recipe in ((SEVEN, ONE), (number, NUMBER)):
        expected = read_one(tmp_path, upright, recipe=recipe)
        for dtype in (np.uint8, np.uint16):
            pixels = STORED[orientation](upright).astype(dtype) * (257 if dtype is np.uint16 else 1)
            Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
            images = pictures.read(tmp_path / "turned.png", "auto", recipe).images
            np.testing.assert_array_equal(images[0], expected)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0no TIFF",
        b"MM\0*\0\0\0\x08\0\x05\x01",
        b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x09",
    ],
)
def test_a_damaged_orientation_is_none(tmp_path, exif, recwarn):
    Image.fromarray(SEVEN).save(tmp_path / "turned.png", exif=exif)
    images = pictures.read(tmp_path / "turned.png", "auto", ONE).images
    np.testing.assert_array_equal(images[0], read_one(tmp_path, SEVEN))
    assert not recwarn


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_kind_is_turned_upright_once(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](SEVEN[:120])))
    more = {} if kind in ("PNG", "TIFF") else {"quality": 95}
    stored.convert("RGB").save(tmp_path / "turned", kind, exif=exif, **more)
    picture = pictures.opened(tmp_path / "turned")
    assert picture.size == (200, 120)
    assert picture.pixels.shape == (120, 200, 3)
    assert np.abs(picture.pixels[:, :, 0].astype(int) - SEVEN[:120]).mean() < 4


LOSSLESS = {"PNG": {}, "BMP": {}, "GIF": {}, "TIFF": {}, "PPM": {}, "WEBP": {"lossless": True}}
LOSSY = {"JPEG": {"quality": 90}, "WEBP": {"quality": 90}, "AVIF": {"quality": 90}}


@pytest.mark.parametrize(("kind", "how"), [*LOSSLESS.items(), *LOSSY.items()])
def test_every_kind_of_file_whatever_its_name_says(tmp_path, kind, how):
    Image.fromarray(255 - SEVEN).save(tmp_path / "x.dat", kind, **how)
    images, *others = pictures.read(tmp_path / "x.dat", "auto", ONE)
    assert others == [None, ["x.dat"], {}, []]
    tolerance = 0 if (kind, how) in LOSSLESS.items() else 40
    np.testing.assert_allclose(
        images[0].astype(int), read_one(tmp_path, 255 - SEVEN), atol=tolerance
    )


RED, BLUE = (200, 30, 40), (20, 60, 220)


def two_colours(mode):
    """The left half red, the right half blue: [10, 20]."""
    image = Image.new("RGB", (20, 10), RED)
    image.paste(BLUE, (10, 0, 20, 10))
    return image.quantize(4) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("GIF", "P"),
        ("TIFF", "CMYK"),
        ("JPEG", "CMYK"),
        ("PNG", "RGBA"),
        ("TIFF", "YCbCr"),
    ],
)
def test_colours(tmp_path, kind, mode):
    two_colours(mode).save(tmp_path / "x", kind, **({"quality": 100} if kind == "JPEG" else {}))
    pixels = pictures.open_picture(tmp_path / "x")
    assert (pixels.shape, pixels.dtype) == ((10, 20, 3), np.uint8)
    for colour, half in ((RED, pixels[:, :9]), (BLUE, pixels[:, 11:])):
        np.testing.assert_allclose(half.astype(int), np.broadcast_to(colour, half.shape), atol=6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.uint16([[0, 257, 65535]]), [0, 1, 255]),
        (np.int32([[-100, 0, 410]]), [0, 50, 255]),  # of any range
        (np.float32([[0, 0.2, 1]]), [0, 51, 255]),
        (np.float32([[-1, 0, 1]]), [0, 128, 255]),
    ],
    ids=["16 bit", "32 bit", "floats", "other floats"],
)
def test_a_tiff_of_more_than_eight_bits(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(pictures.open_picture(tmp_path / "x.tif")[0, :, 1], expected)
    if values.dtype == np.float32:
        values[0, 0] = np.nan
        Image.fromarray(values).save(tmp_path / "x.tif")
        with pytest.raises(UserError, match="its pixels are no numbers"):
            pictures.open_picture(tmp_path / "x.tif")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_what_is_transparent_becomes_paper(tmp_path, kind):
    """Black ink on glass is on white paper, white ink on black; a hole in red paper is red."""
    glass = np.zeros((20, 20, 4), np.uint8)
    glass[5:15, 8:10, 3] = 255
    how = {"lossless": True} if kind == "WEBP" else {}
    for ink, paper in ((0, 255), (255, 0)):
        glass[..., :3] = ink
        Image.fromarray(glass).save(tmp_path / "x", kind, **how)
        pixels = pictures.open_picture(tmp_path / "x")
        assert pixels[0, 0].tolist() == [paper] * 3
        assert pixels[7, 8].tolist() == [ink] * 3
    sheet = np.full((20, 20, 4), 255, np.uint8)
    sheet[..., :3] = RED
    sheet[:5, :5] = 0
    Image.fromarray(sheet).save(tmp_path / "x", kind, **how)
    np.testing.assert_array_equal(
        pictures.open_picture(tmp_path / "x"), np.broadcast_to(np.uint8(RED), (20, 20, 3))
    )


def test_sixteen_bits_keep_their_range_beside_a_transparent_value(tmp_path):
    values = np.uint16([[0, 25700, 65535]])
    Image.fromarray(values).save(tmp_path / "x.png", transparency=65535)
    assert pictures.open_picture(tmp_path / "x.png")[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "CMYK"])
def test_a_large_picture_is_reduced(tmp_path, mode):
    pixels = np.zeros((400, 4000), np.uint8)
    pixels[:, 2000:] = 255
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else image
    image = image.convert(mode) if mode != "CMYK" else image.convert("RGB").convert("CMYK")
    image.save(tmp_path / "x", "TIFF")
    picture = pictures.opened(tmp_path / "x")
    assert picture.size == (4000, 400)
    assert picture.pixels.shape == (160, 1600, 3)
    assert (picture.pixels[:, :799] == 0).all()
    assert (picture.pixels[:, 801:] == 255).all()


def test_too_many_pixels_are_refused_but_a_jpeg_is_reduced_as_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 4_000_000)
    page = Image.new("L", (4000, 2000), 255)
    page.paste(0, (0, 0, 2000, 2000))
    for kind in LOSSLESS:
        page.save(tmp_path / "x", kind)
        with pytest.raises(UserError, match=r"4,000 x 2,000 pixels, more than 4,000,000; make it"):
            pictures.opened(tmp_path / "x")
    for how in ({}, {"progressive": True}):
        page.save(tmp_path / "x", "JPEG", **how)
        picture = pictures.opened(tmp_path / "x")
        assert picture.size == (4000, 2000)
        assert picture.pixels.shape == (800, 1600, 3)
        assert picture.pixels[:, 790].max() < 20 < 235 < picture.pixels[:, 810].min()


def png(*chunks):
    """A PNG file of (name, content), with their checksums."""
    parts = [
        len(content).to_bytes(4, "big")
        + name
        + content
        + zlib.crc32(name + content).to_bytes(4, "big")
        for name, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_png_that_promises_more_than_it_holds():
    size = (9000).to_bytes(4, "big")
    header = b"IHDR", 2 * size + bytes([8, 0, 0, 0, 0])
    pixels, end = (b"IDAT", zlib.compress(bytes(9001))), (b"IEND", b"")
    with pytest.raises(UserError, match=r"9,000 x 9,000 pixels, more than 50,000,000"):
        pictures.opened(png(header, pixels, end))
    vast = b"IHDR", 2 * (1 << 30).to_bytes(4, "big") + header[1][8:]
    with pytest.raises(UserError, match=r"more than 178,956,970 pixels"):
        pictures.opened(png(vast, pixels, end))
    few = b"IHDR", 2 * (200).to_bytes(4, "big") + header[1][8:]
    text = b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 26))
    with pytest.raises(UserError, match="Decompressed data too large"):
        pictures.opened(png(few, text, pixels, end))
    with pytest.raises(UserError, match=r"a damaged PNG file \(image file is truncated"):
        pictures.opened(png(few, (b"IDAT", zlib.compress(bytes(999))), end))


def test_of_several_frames_the_first_is_read_and_the_user_told(tmp_path):
    frames = [Image.fromarray(pixels) for pixels in (255 - SEVEN, 255 - SEVEN.T)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        frames[0].save(tmp_path / "x", kind, save_all=True, append_images=frames[1:])
        picture = pictures.opened(tmp_path / "x")
        several = "several pages" if kind == "TIFF" else "an animation"
        assert picture.note.startswith(f"{several}, of which the first")
        assert np.abs(picture.pixels[:, :, 0].astype(int) - (255 - SEVEN)).mean() < 3
        assert pictures.read(tmp_path / "x", "auto", ONE).notes == [f"x: {picture.note}"]


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(40)


def test_heic_without_the_library_for_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it weren't installed
    with pytest.raises(UserError, match=r"a HEIC picture; `pip install pillow-heif` lets"):
        pictures.opened(HEIC)
    with pytest.raises(UserError, match=UNKNOWN):
        pictures.opened(HEIC.replace(b"heic", b"isom").replace(b"mif1", b"mp41"))  # a video


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(STORED[6](SEVEN[:120]))).convert("RGB")
    heif.from_pillow(stored).save(tmp_path / "x", quality=95, exif=exif.tobytes())
    picture = pictures.opened(tmp_path / "x")
    assert picture.size == (200, 120)
    assert np.abs(picture.pixels[:, :, 0].astype(int) - SEVEN[:120]).mean() < 4
    with pytest.raises(UserError, match="a damaged picture"):
        pictures.opened((tmp_path / "x").read_bytes()[:200])


def test_a_picture_in_memory(tmp_path):
    colours = np.asarray(two_colours("RGB"))
    Image.fromarray(colours).save(tmp_path / "x.png")
    for given in (
        (tmp_path / "x.png").read_bytes(),
        str(tmp_path / "x.png"),
        Image.fromarray(colours),
        colours,
        colours / 255,
    ):
        np.testing.assert_array_equal(pictures.open_picture(given), colours)
    np.testing.assert_array_equal(pictures.open_picture(SEVEN)[:, :, 2], SEVEN)
    assert pictures.open_picture(np.ones((9, 8, 1), bool)).tolist() == [[[255] * 3] * 8] * 9
    for wrong in (np.zeros((2, 3, 4, 5)), np.zeros((2, 3, 7)), np.zeros((0, 3)), np.zeros(4)):
        with pytest.raises(UserError, match=r"is an array \[h, w\] or \[h, w, 3\], not \["):
            pictures.open_picture(wrong)
    with pytest.raises(UserError, match="the picture of floats must lie in"):
        pictures.open_picture(np.full((3, 3), 2.5))


LEFT, RIGHT = [(40, 30), (120, 30), (70, 170)], [(220, 30), (220, 170), (290, 170)]


def test_two_digits_side_by_side(tmp_path):
    both = read_one(tmp_path, drawing(LEFT, RIGHT, size=(400, 200)), recipe=NUMBER)
    left = read_one(tmp_path, drawing(LEFT, size=(400, 200)))
    right = read_one(tmp_path, drawing(RIGHT, size=(400, 200)))
    np.testing.assert_array_equal(both, np.concatenate([left, right], axis=1))


def test_two_digits_that_touch_are_cut_where_ink_is_least(tmp_path):
    rings = Image.new("L", (400, 200), 255)
    for x in (100, 195):
        ImageDraw.Draw(rings).ellipse((x, 40, x + 100, 160), outline=0, width=12)
    both = read_one(tmp_path, rings, recipe=NUMBER)
    for half in (both[:, :28], both[:, 28:]):
        np.testing.assert_allclose(centre(half), [14, 14], atol=0.2)
        assert half[14, 14] == 0


def test_two_digits_above_each_other_overlap_by_maximum(tmp_path):
    upper = [(40, 30), (120, 30), (70, 170)]
    lower = [(40, 230), (40, 370), (110, 370)]
    both = read_one(tmp_path, drawing(upper, lower, size=(200, 400)), recipe=STACKED)
    first = read_one(tmp_path, drawing(upper, size=(200, 400)))
    second = read_one(tmp_path, drawing(lower, size=(200, 400)))
    expected = np.maximum(np.pad(first, ((0, 14), (0, 0))), np.pad(second, ((14, 0), (0, 0))))
    np.testing.assert_array_equal(both, expected)


def test_a_folder_is_read_by_name(tmp_path):
    for name, pixels in {"b.png": SEVEN, "a.PNG": SEVEN.T}.items():
        Image.fromarray(pixels).save(tmp_path / name, format="PNG")
    (tmp_path / ".hidden").write_text("")
    images, labels, names, unread, notes = pictures.read(tmp_path, "auto", ONE)
    assert (labels, names, images.shape) == (None, ["a.PNG", "b.png"], (2, 28, 28))
    assert (unread, notes) == ({}, [])
    np.testing.assert_allclose(images[0], images[1].T, atol=1)


APPLE = bytes.fromhex("00051607000200004d6163204f532058") + bytes(100)
UNKNOWN = "not a picture of a kind that is read"


def test_what_cannot_be_read_keeps_nothing_else_back(tmp_path):
    Image.fromarray(SEVEN).save(tmp_path / "7.png")
    whole = (tmp_path / "7.png").read_bytes()
    Image.new("L", (90, 90), 255).save(tmp_path / "blank.png")
    Image.fromarray(SEVEN).save(tmp_path / "7.jpg", quality=100)
    jpeg = (tmp_path / "7.jpg").read_bytes()
    for name in ("._7.png", ".DS_Store", "Thumbs.db", "desktop.ini"):  # not a word of these
        (tmp_path / name).write_bytes(APPLE)
    (tmp_path / "renamed.png").write_bytes(jpeg)
    (tmp_path / "half.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("seven")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "lost.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    images, _, names, unread, notes = pictures.read(tmp_path, "auto", ONE)
    assert names == ["7.jpg", "7.png", "renamed.png"]
    assert notes == []
    np.testing.assert_array_equal(images[1], read_one(tmp_path, SEVEN))
    np.testing.assert_allclose(images[0], images[1], atol=12)
    assert unread.pop("half.png").startswith("a damaged PNG file (")
    assert unread.pop("half.jpg").startswith("a damaged JPEG file (image file is truncated")
    assert unread.pop("notes.txt").startswith(UNKNOWN)
    assert unread == {
        "blank.png": "no ink found, the picture is blank",
        "empty.jpg": "an empty file",
        "folder.png": "a folder; to read what is in it, name it with --data",
        "lost.png": "no file that could be opened",
        "pipe.png": "no file that could be opened",
    }


def test_a_folder_of_which_nothing_can_be_read(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.jpg").write_text("no picture")
    Image.new("L", (90, 90), 255).save(tmp_path / "blank.png")
    with pytest.raises(UserError, match="no picture that could be read") as raised:
        pictures.read(tmp_path, "auto", ONE)
    assert f"a.jpg and 5 more: {UNKNOWN}" in str(raised.value)
    assert "blank.png: no ink found" in str(raised.value)
    assert "\n" not in str(raised.value)


def piped(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


def test_standard_input(tmp_path, monkeypatch):
    Image.fromarray(SEVEN).save(tmp_path / "x.png")
    piped(monkeypatch, (tmp_path / "x.png").read_bytes())
    images, _, names, *_ = pictures.read("-", "auto", ONE)
    assert names == ["standard input"]
    np.testing.assert_array_equal(images[0], read_one(tmp_path, SEVEN))
    piped(monkeypatch, b"")
    with pytest.raises(UserError, match=r"^standard input: an empty file$"):
        pictures.read("-", "auto", ONE)


def test_patterns(tmp_path):
    for name in ("b/1.jpg", "a/2.jpg", "a/1.jpg", "a/[1].jpg", "a/x.png", "a/._1.jpg", "c/d/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(SEVEN).save(tmp_path / name)

    def found(pattern):
        paths = pictures.paths_of(str(tmp_path / pattern))
        assert {path for _, path in pictures.tracked(paths)} == set(paths)
        return [name for name, _ in pictures.tracked(paths)]

    assert found("a/*.jpg") == ["1.jpg", "2.jpg", "[1].jpg"]
    assert found("*/1.jpg") == ["a/1.jpg", "b/1.jpg"]
    assert found("**/*.jpg") == ["a/1.jpg", "a/2.jpg", "a/[1].jpg", "b/1.jpg", "c/d/3.jpg"]
    assert found("a/[1].jpg") == ["[1].jpg"]  # there is a file of that name
    assert found("a/._1.jpg") == ["._1.jpg"]  # when asked for
    assert pictures.read(tmp_path / "*" / "1.jpg", "auto", ONE).names == ["a/1.jpg", "b/1.jpg"]
    for nothing in ("a/*.gif", "[z]/*"):
        with pytest.raises(UserError, match=r"there is no such file$"):
            found(nothing)


def test_of_many_pictures_one_is_in_memory_at_a_time(tmp_path, monkeypatch):
    for i in range(20):
        Image.fromarray(SEVEN).save(tmp_path / f"{i}.png")
    opened, pixels, most = pictures.opened, [], 0

    def watched(path):
        nonlocal most
        most = max(most, sum(each() is not None for each in pixels))
        picture = opened(path)
        pixels.append(weakref.ref(picture.pixels))
        return picture

    monkeypatch.setattr(pictures, "opened", watched)
    assert len(pictures.read(tmp_path, "auto", ONE).images) == len(pixels) == 20
    assert most == 1


def test_a_name_is_a_label_only_where_asked(tmp_path):
    names = ("IMG_0042_7.png", "7_1.png", "IMG_2024.png", "7.png", "x_.png", "cat_2.png")
    for name in names:
        Image.fromarray(SEVEN).save(tmp_path / name)
    assert pictures.read(tmp_path, "auto", ONE).labels is None
    _, labels, found, _, notes = pictures.read(tmp_path, "auto", ONE, labels="name")
    assert dict(zip(found, labels["digit"].tolist(), strict=True)) == {
        "IMG_0042_7.png": 7,
        "7_1.png": 1,
        "IMG_2024.png": -1,
        "7.png": -1,
        "x_.png": -1,
        "cat_2.png": 2,
    }
    none = "there is no label after an underscore in its name; it doesn't count"
    assert notes == [
        f"7.png: {none}",
        "IMG_2024.png: its label '2024' is none that this run reads (digit 0 to 9); "
        "it doesn't count",
        f"x_.png: {none}",
    ]
    classes = {"class": ["cat", "dog"]}
    (tmp_path / "dog_cat.png").write_bytes((tmp_path / "7.png").read_bytes())
    own = ONE._replace(heads={"class": 2})
    labels = pictures.read(tmp_path / "dog_cat.png", "auto", own, classes, "name").labels
    assert labels["class"].tolist() == [0]


@pytest.mark.parametrize(
    ("recipe", "label", "expected"),
    [
        (NUMBER, "42", {"number": 42}),
        (NUMBER, "07", {"number": 7}),
        (NUMBER, "7", None),
        (STACKED, "42", {"upper": 4, "lower": 2}),
        (STACKED, "4", None),
        (STACKED, "4a", None),
    ],
)
def test_labels_of_pairs_have_two_digits(recipe, label, expected):
    if expected:
        assert pictures._targets(label, recipe, None) == expected
        return
    with pytest.raises(UserError, match=f"its label '{label}' is none that this run reads"):
        pictures._targets(label, recipe, None)


def test_a_folder_is_a_label_only_where_asked(tmp_path):
    for name in ("7/a.png", "1/a.png", "1/b_9.png", "x/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(SEVEN).save(tmp_path / name)
    with pytest.raises(UserError, match="1: a folder; to read what is in it"):
        pictures.read(tmp_path, "auto", ONE)
    _, labels, found, _, notes = pictures.read(tmp_path, "auto", ONE, labels="folder")
    assert found == ["1/a.png", "1/b_9.png", "7/a.png", "x/a.png"]
    assert labels["digit"].tolist() == [1, 1, 7, -1]
    assert len(notes) == 1
    assert pictures.read(tmp_path / "7", "auto", ONE, labels="folder").labels["digit"] == [7]
    np.savez(tmp_path / "x.npz", images=GOOD)
    with pytest.raises(UserError, match="--labels is for pictures"):
        pictures.read(tmp_path / "x.npz", "auto", ONE, labels="name")


def test_a_reader_of_one_digit_says_that_there_are_more(tmp_path):
    number = np.concatenate([SEVEN] * 3, axis=1)
    Image.fromarray(255 - number).save(tmp_path / "x.jpg")
    assert pictures.read(tmp_path / "x.jpg", "auto", ONE).notes == [
        "x.jpg holds 3 digits, this run reads one; --mode=read reads numbers"
    ]
    Image.fromarray(number[:, :400]).save(tmp_path / "x.jpg")
    assert pictures.read(tmp_path / "x.jpg", "auto", NUMBER).notes == []


def test_very_many_files_are_counted():
    unread = {f"{i}.png": "blank" for i in range(3)}
    assert pictures.told(unread) == ["0.png: blank", "1.png: blank", "2.png: blank"]
    unread |= {f"{i}.jpg": "no PNG" for i in range(2000)} | {"x.png": "torn"}
    lines = ["0.jpg and 1,999 more: no PNG", "0.png and 2 more: blank"]
    assert pictures.told(unread) == [*lines, "x.png: torn"]
    assert pictures.told(unread, 2) == [*lines, "1 more, for other reasons"]


def test_a_name_that_is_no_text(tmp_path):
    path = tmp_path / os.fsdecode(b"f\xfcnf.png")
    try:
        Image.fromarray(SEVEN).save(path)
    except OSError:
        pytest.skip("this file system takes none")
    assert pictures.read(tmp_path, "auto", ONE).names == [r"f\udcfcnf.png"]
    assert pictures.read(path, "auto", ONE).names == [r"f\udcfcnf.png"]


def test_evaluation_says_what_was_not_read(tmp_path, monkeypatch, capsys):
    for name in ("7.png", "[b]1.png"):
        Image.fromarray(SEVEN).save(tmp_path / name)
    (tmp_path / "[red]2.jpg").write_text("")
    run = types.SimpleNamespace(
        recipe=ONE,
        classes={"digit": "0123456789"},
        own_classes=None,
        temperature=np.ones(2),
        epochs=[3],
        predict=lambda images: {"digit": np.full((1, len(images), 10), np.log(0.1))},
    )
    monkeypatch.setattr(evaluate, "open_run", lambda config, workdir: run)
    evaluate.evaluate(None, tmp_path, str(tmp_path), "auto")
    said = capsys.readouterr().out
    assert "not read: [red]2.jpg: an empty file\n" in said
    assert "2 images under the weights of epoch 3" in said
    rows = (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[1] for row in rows] == ["image", "7.png", "[b]1.png"]

    evaluate.evaluate(None, tmp_path, str(tmp_path / "7.png"), "auto")
    assert capsys.readouterr().out.startswith("7.png  0  10 %\n")  # the first of ten alike

    np.savez(tmp_path / "x.npz", images=255 - read_one(tmp_path, SEVEN)[None])
    evaluate.evaluate(None, tmp_path, str(tmp_path / "x.npz"), "auto")
    assert "x.npz: taken as dark ink on bright paper" in capsys.readouterr().out


@pytest.fixture
def knows_sevens(monkeypatch):
    """A run that reads every picture as a 7."""
    log_p = np.log(np.where(np.arange(10) == 7, 0.91, 0.01))
    run = types.SimpleNamespace(
        recipe=ONE,
        classes={"digit": "0123456789"},
        own_classes=None,
        temperature=np.ones(2),
        epochs=[3],
        predict=lambda images: {"digit": np.tile(log_p, (1, len(images), 1))},
    )
    monkeypatch.setattr(evaluate, "open_run", lambda config, workdir: run)


@pytest.mark.usefixtures("knows_sevens")
def test_evaluation_with_labels_names_the_mistakes(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a_7.png", "b_1.png", "c_7.png", "IMG_2024.png"):
        Image.fromarray(SEVEN).save(data / name)
    evaluate.evaluate(None, tmp_path, str(data), "auto", labels="name")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("IMG_2024.png: its label '2024' is none that this run reads")
    assert said[1:] == [
        "b_1.png: read 7, true 1",
        "2 of 3 right, 66.67 %; predictions.csv",
        f"4 images under the weights of epoch 3; {tmp_path / 'predictions.csv'}",
    ]
    rows = (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert rows == [
        "index,image,digit,digit_probability,digit_label,digit_correct",
        "0,IMG_2024.png,7,0.910000,,",
        "1,a_7.png,7,0.910000,7,1",
        "2,b_1.png,7,0.910000,1,0",
        "3,c_7.png,7,0.910000,7,1",
    ]
    evaluate.evaluate(None, tmp_path, str(data / "IMG_2024.png"), "auto", labels="name")
    said = capsys.readouterr().out.splitlines()
    assert said[1:3] == ["IMG_2024.png  7  91 %", "no picture has a label that counts"]


@pytest.mark.usefixtures("knows_sevens")
@pytest.mark.parametrize(
    ("data", "labels", "said"),
    [
        (None, "name", "add --data=FOLDER"),
        ("x", "nam", "--labels: there is no 'nam'; did you mean 'name'"),
    ],
)
def test_labels_that_say_nothing(tmp_path, data, labels, said):
    with pytest.raises(UserError, match=said):
        evaluate.evaluate(None, tmp_path, data, "auto", labels=labels)


def test_very_many_mistakes_are_counted(capsys):
    evaluate.say_score([(f"{i}.png", "", str(i)) for i in range(1000)], "x.csv")
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["0.png: read nothing, true 0", "1.png: read nothing, true 1"]
    assert said[-2:] == ["and 980 more", "0 of 1,000 right, 0.00 %; x.csv"]


def test_npz(tmp_path):
    path = tmp_path / "x.npz"
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    pixels[:, [0, -1]] = pixels[:, :, [0, -1]] = 0
    np.savez(path, images=np.asfortranarray(pixels), labels=np.array([3, 9], ">i8"))
    images, labels, names, *none = pictures.read(path, "auto", ONE)
    assert none == [{}, []]
    np.testing.assert_array_equal(images, pixels)
    np.testing.assert_array_equal(labels["digit"], [3, 9])
    assert labels["digit"].dtype == np.int32
    assert names == ["x.npz[0]", "x.npz[1]"]
    np.testing.assert_array_equal(pictures.read(path, "dark", ONE).images, 255 - pixels)
    np.savez_compressed(path, images=np.zeros((3, 42, 28), np.uint8), labels=np.ones((3, 2), int))
    labels = pictures.read(path, "bright", STACKED).labels
    assert {head: values.tolist() for head, values in labels.items()} == {
        "upper": [1, 1, 1],
        "lower": [1, 1, 1],
    }
    np.savez(path, images=pixels)
    assert pictures.read(path, "auto", ONE).labels is None


def test_an_npz_of_dark_ink_on_bright_paper(tmp_path):
    path = tmp_path / "x.npz"
    digits = np.stack([read_one(tmp_path, pixels) for pixels in (SEVEN, SEVEN.T, SEVEN[::-1])])
    np.savez(path, images=255 - digits)
    dark = "taken as dark ink on bright paper; if it is not, pass --ink=bright"
    for ink, expected, notes in (
        ("auto", digits, [dark]),
        ("dark", digits, []),
        ("bright", 255 - digits, ["3 of 3 images are not bright ink on black paper"]),
    ):
        images, *_, said = pictures.read(path, ink, ONE)
        np.testing.assert_array_equal(images, expected)
        assert len(said) == len(notes)
        assert all(map(str.startswith, said, (f"{path}: {note}" for note in notes)))


def test_an_npz_decides_as_a_whole_and_names_what_is_unlike_mnist(tmp_path):
    path = tmp_path / "x.npz"
    digit = read_one(tmp_path, SEVEN)
    grey = (200 - digit * (133 / 255)).astype(np.uint8)  # grey paper, dark ink
    np.savez(path, images=np.stack([digit, digit, 255 - digit]))
    images, *_, notes = pictures.read(path, "auto", ONE)
    np.testing.assert_array_equal(images, [digit, digit, 255 - digit])
    (note,) = notes
    assert note.startswith(f"{path}: 1 of 3 images are not bright ink on black paper")
    for pixels, count in ((grey, 2), (digit // 4, 1)):
        np.savez(path, images=pixels[None])
        notes = pictures.read(path, "auto", ONE).notes
        assert len(notes) == count
        assert "1 of 1 images are not" in notes[-1]
        assert "--data finds the ink in pictures" in notes[-1]


def test_an_npz_with_other_names(tmp_path):
    np.savez(tmp_path / "x.npz", x_test=GOOD, y_test=np.arange(2))
    with pytest.raises(UserError) as raised:
        pictures.read(tmp_path / "x.npz", "auto", ONE)
    for part in ("x_test", "y_test", "uint8 [N, 28, 28]", "images=", "labels="):
        assert part in str(raised.value)
    np.savez(tmp_path / "x.npz", **{f"{i}\n": GOOD for i in range(3000)})
    with pytest.raises(UserError) as raised:
        pictures.read(tmp_path / "x.npz", "auto", ONE)
    assert "and more" in str(raised.value)
    assert len(str(raised.value)) < 600 + len(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_an_npz_that_would_be_unpacked_at_once(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as archive:
        stream = io.BytesIO()
        np.save(stream, GOOD)
        archive.writestr("images.npy", stream.getvalue())
    with pytest.raises(UserError, match=r"x\.npz: `images` is compressed as np\.savez never does"):
        pictures.read(tmp_path / "x.npz", "auto", ONE)


def test_an_npz_whose_header_alone_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_BYTES", 10_000)
    header = b"\x93NUMPY\2\0" + (1 << 20).to_bytes(4, "little")
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header + b" " * (1 << 20))
    with pytest.raises(UserError, match=r"`images` has 1,048,588 bytes; the most is 10,000"):
        pictures.read(tmp_path / "x.npz", "auto", ONE)


GOOD = np.zeros((2, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": GOOD}, "no array named `images`"),
        ({"images": GOOD[:0]}, r"must be uint8 \[N, 28, 28\] with N > 0, not uint8 \[0, 28, 28\]"),
        ({"images": GOOD[0]}, r"not uint8 \[28, 28\]"),
        ({"images": GOOD[:, :, :27]}, r"not uint8 \[2, 28, 27\]"),
        ({"images": GOOD / 255}, r"not float64 \[2, 28, 28\]"),
        ({"images": np.array([None])}, "must hold plain numbers, not object"),
        ({"images": GOOD, "labels": np.array(["3", "4"])}, "must hold plain numbers"),
        ({"images": GOOD, "labels": np.array([3])}, r"integers \[2\], one for each image, not"),
        ({"images": GOOD, "labels": np.array([3.0, 4.0])}, r"not float64 \[2\]"),
        ({"images": GOOD, "labels": np.array([3, 10])}, "0 to 9; they reach from 3 to 10"),
        ({"images": GOOD, "labels": np.array([-1, 4])}, "digit must lie in 0 to 9"),
        ({"images": GOOD, "labels": np.array([2**63, 4], np.uint64)}, "must lie in 0 to 9"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message) as raised:
        pictures.read(tmp_path / "x.npz", "auto", ONE)
    assert "x.npz: " in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shape", [(10**9, 28, 28), (-1, 28, 28), (1, 28, 29)])
def test_npz_whose_header_promises_other_sizes(tmp_path, shape):
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", stream.getvalue() + bytes(784))
    with pytest.raises(UserError, match=r"x\.npz: .*(the most is|not a readable)"):
        pictures.read(tmp_path / "x.npz", "auto", ONE)


def test_damaged_files(tmp_path):
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "x.png")
    np.savez_compressed(tmp_path / "x.npz", images=random.integers(0, 255, (2, 28, 28), np.uint8))
    png = "an empty file", UNKNOWN, "a damaged PNG file", UNKNOWN
    for name, said in {"x.png": png, "x.npz": 4 * ("not a readable",)}.items():
        whole = (tmp_path / name).read_bytes()
        parts = b"", b"no image", whole[: len(whole) // 2], whole[:9] + whole[40:]
        for part, reason in zip(parts, said, strict=True):
            (tmp_path / name).write_bytes(part)
            with pytest.raises(UserError, match=rf"{name}: {reason}") as raised:
                pictures.read(tmp_path / name, "auto", ONE)
            assert "\n" not in str(raised.value)


def test_a_png_with_one_wrong_bit_is_refused_or_the_same_picture(tmp_path):
    """Pillow alone skips the checksums of pixels: it draws others."""
    path = tmp_path / "x.png"
    right = read_one(tmp_path, SEVEN[::4, ::4])
    whole, refused = path.read_bytes(), 0
    first = whole.index(b"IDAT") + 4
    for bit in range(8 * first, 8 * (len(whole) - 16)):  # to the end of the pixels
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            np.testing.assert_array_equal(pictures.read(path, "auto", ONE).images[0], right)
        except UserError:
            refused += 1
    assert refused > 8 * (len(whole) - first) - 200


@pytest.mark.parametrize("value", [0, 120, 255])
@pytest.mark.parametrize("size", [(90, 60), (28, 28)])
def test_a_blank_picture(tmp_path, value, size):
    Image.new("L", size, value).save(tmp_path / "blank.png")
    with pytest.raises(UserError, match=r"blank\.png: no ink found"):
        pictures.read(tmp_path / "blank.png", "auto", ONE)


def test_a_picture_without_paper(tmp_path, recwarn):
    Image.fromarray(np.array([[100, 200]], np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="no ink found on the dark paper"):
        pictures.read(tmp_path / "x.png", "bright", ONE)
    assert not recwarn


def test_the_other_ink_than_it_was_told(tmp_path):
    Image.fromarray(255 - SEVEN).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png: no ink found on the dark paper"):
        pictures.read(tmp_path / "x.png", "bright", ONE)


def test_too_little_ink_for_two_digits(tmp_path):
    line = np.zeros((90, 60), np.uint8)
    line[30:50, 20] = 255  # a pixel wide: nowhere to cut
    Image.fromarray(line).save(tmp_path / "line.png")
    with pytest.raises(UserError, match=r"line\.png: found one digit where the model reads 2"):
        pictures.read(tmp_path / "line.png", "auto", NUMBER)
    Image.fromarray(np.eye(90, 1, -30, dtype=np.uint8) * 255).save(tmp_path / "dot.png")
    with pytest.raises(UserError, match=r"dot\.png: no ink found"):
        pictures.read(tmp_path / "dot.png", "auto", NUMBER)


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "x.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.png").write_bytes(b"")
    for path, message in {
        "absent.npz": "no such file or folder",
        "x.txt": f"x.txt: {UNKNOWN}",
        "empty": "no pictures in this folder",
        "*.jpg": r"\*\.jpg: there is no such file$",
    }.items():
        with pytest.raises(UserError, match=message):
            pictures.read(tmp_path / path, "auto", ONE)
    with pytest.raises(UserError, match="--ink: there is no 'blue'"):
        pictures.read(tmp_path, "blue", ONE)


def test_a_picture_too_large_to_open(tmp_path, monkeypatch):
    Image.fromarray(SEVEN).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)
    with pytest.raises(UserError, match=r"x\.png: more than 30,000 pixels"):
        pictures.read(tmp_path / "x.png", "auto", ONE)
