"""Drawings, scans and photographs become MNIST-like; what cannot be read is named in one line."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw

from digits_jax import user_images
from digits_jax.data.pairs import RECIPES
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
    images, labels, names = user_images.read(tmp_path / "x.png", ink, recipe)
    assert labels is None
    assert names == ["x.png"]
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


def test_an_image_of_exactly_the_models_size_keeps_its_pixels(tmp_path):
    for recipe in (ONE, NUMBER, STACKED):
        pixels = np.zeros(recipe.shape, np.uint8)
        pixels[2:9, 3:6] = 211
        pixels[0, 0] = 255
        np.testing.assert_array_equal(read_one(tmp_path, pixels, recipe=recipe), pixels)
        np.testing.assert_array_equal(read_one(tmp_path, 255 - pixels, recipe=recipe), pixels)


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
    (tmp_path / "notes.txt").write_text("not an image")
    images, labels, names = user_images.read(tmp_path, "auto", ONE)
    assert (labels, names, images.shape) == (None, ["a.PNG", "b.png"], (2, 28, 28))
    np.testing.assert_allclose(images[0], images[1].T, atol=1)


def test_npz(tmp_path):
    path = tmp_path / "x.npz"
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    np.savez(path, images=np.asfortranarray(pixels), labels=np.array([3, 9], ">i8"))
    images, labels, names = user_images.read(path, "auto", ONE)
    np.testing.assert_array_equal(images, pixels)
    np.testing.assert_array_equal(labels["digit"], [3, 9])
    assert labels["digit"].dtype == np.int32
    assert names == ["x.npz[0]", "x.npz[1]"]
    np.testing.assert_array_equal(user_images.read(path, "dark", ONE)[0], 255 - pixels)
    np.savez_compressed(path, images=np.zeros((3, 42, 28), np.uint8), labels=np.ones((3, 2), int))
    _, labels, _ = user_images.read(path, "bright", STACKED)
    assert {head: values.tolist() for head, values in labels.items()} == {
        "upper": [1, 1, 1],
        "lower": [1, 1, 1],
    }
    np.savez(path, images=pixels)
    assert user_images.read(path, "auto", ONE)[1] is None


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
        user_images.read(tmp_path / "x.npz", "auto", ONE)
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
        user_images.read(tmp_path / "x.npz", "auto", ONE)


def test_damaged_files(tmp_path):
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "x.png")
    np.savez_compressed(tmp_path / "x.npz", images=random.integers(0, 255, (2, 28, 28), np.uint8))
    for name in ("x.png", "x.npz"):
        whole = (tmp_path / name).read_bytes()
        for part in (b"", b"no image", whole[: len(whole) // 2], whole[:9] + whole[40:]):
            (tmp_path / name).write_bytes(part)
            with pytest.raises(UserError, match=rf"{name}: not a readable") as raised:
                user_images.read(tmp_path / name, "auto", ONE)
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
            np.testing.assert_array_equal(user_images.read(path, "auto", ONE)[0][0], right)
        except UserError:
            refused += 1
    assert refused > 8 * (len(whole) - first) - 200


@pytest.mark.parametrize("value", [0, 120, 255])
@pytest.mark.parametrize("size", [(90, 60), (28, 28)])
def test_a_blank_picture(tmp_path, value, size):
    Image.new("L", size, value).save(tmp_path / "blank.png")
    with pytest.raises(UserError, match=r"blank\.png: no ink found"):
        user_images.read(tmp_path / "blank.png", "auto", ONE)


def test_the_other_ink_than_it_was_told(tmp_path):
    Image.fromarray(255 - SEVEN).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png: no ink found on the dark paper"):
        user_images.read(tmp_path / "x.png", "bright", ONE)


def test_too_little_ink_for_two_digits(tmp_path):
    Image.fromarray(np.eye(90, 1, -30, dtype=np.uint8) * 255).save(tmp_path / "dot.png")
    with pytest.raises(UserError, match=r"dot\.png: found one digit where the model reads 2"):
        user_images.read(tmp_path / "dot.png", "auto", NUMBER)


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "x.txt").write_text("")
    for path, message in {
        "absent.npz": "no such file or folder",
        "x.txt": r"expected an \.npz file, a \.png file or a folder",
        ".": r"no \.png files",
    }.items():
        with pytest.raises(UserError, match=message):
            user_images.read(tmp_path / path, "auto", ONE)
    with pytest.raises(UserError, match="--ink: there is no 'blue'"):
        user_images.read(tmp_path, "blue", ONE)


def test_a_picture_too_large_to_open(tmp_path, monkeypatch):
    Image.fromarray(SEVEN).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    with pytest.raises(UserError, match=r"x\.png: more than 30,000 pixels"):
        user_images.read(tmp_path / "x.png", "auto", ONE)
