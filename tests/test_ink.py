"""Ink is found where strokes were drawn, in any light, at any size, in reading order."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from digits_jax.data import drawn, ink
from reliability import exam, photographs

SHAPE = (480, 640)
FIVE = ([(70, 10), (20, 10)], [(20, 25), (15, 60), (60, 65), (60, 110), (10, 110)])


def strokes(*lines, shape=SHAPE, width=10, at=(0, 0), scale=1.0):
    """Ink from 0 to 1: [h, w], a polyline for each list of (x, y) points."""
    image = Image.new("L", shape[::-1], 0)
    for line in lines:
        points = [(at[0] + scale * x, at[1] + scale * y) for x, y in line]
        ImageDraw.Draw(image).line(points, fill=255, width=round(scale * width), joint="curve")
    return np.asarray(image, np.float32) / 255


def bar(left, top, height=100, width=12, shape=SHAPE):
    field = np.zeros(shape, np.float32)
    field[top : top + height, left : left + width] = 1
    return field


def photo(field, contrast=0.8, paper=(0.9, 0.9, 0.9), light=1.0):
    """[h, w, 3] uint8: dark ink on paper."""
    seen = (1 - contrast * field)[..., None] * np.array(paper) * np.expand_dims(light, -1)
    return np.rint(255 * seen.clip(0, 1)).astype(np.uint8)


def boxes(lines):
    return [[piece.box for piece in line] for line in lines]


BARS = [(100, 200, 112, 300), (250, 190, 262, 290), (400, 210, 412, 310)]
THREE = bar(100, 200) + bar(250, 190) + bar(400, 210)


def close(found, expected, within=4):
    assert [len(line) for line in found] == [len(line) for line in expected]
    for line, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(line, others, atol=within)


y, x = np.mgrid[0 : 1 : SHAPE[0] * 1j, 0 : 1 : SHAPE[1] * 1j]
LIGHTS = {
    "even": np.ones(SHAPE),
    "to a third": 1 - 2 / 3 * x,
    "into a corner": 1 - 1 / 3 * (x + y),
    "a shadow's edge": 1 - 0.55 * ((x + 0.2 * y - 0.5) / 0.02).clip(0, 1),
    "a table": np.where((abs(x - 0.5) < 0.43) & (abs(y - 0.5) < 0.4), 1.0, 0.3),
}


@pytest.mark.parametrize("light", LIGHTS)
def test_strokes_are_found_where_they_are_in_any_light(light):
    close(boxes(ink.find(photo(THREE, light=LIGHTS[light]))), [BARS])


@pytest.mark.parametrize(
    ("paper", "contrast"),
    [((0.9, 0.9, 0.9), 0.15), ((0.4, 0.38, 0.3), 0.8), ((0.8, 0.9, 1.0), 0.3)],
)
def test_faint_ink_and_other_papers(paper, contrast):
    close(boxes(ink.find(photo(THREE, contrast, paper))), [BARS])


@pytest.mark.parametrize("colour", [(0.1, 0.2, 0.7), (0.8, 0.1, 0.1), (0.1, 0.5, 0.2), (1, 1, 0.2)])
def test_ink_of_any_colour(colour):
    seen = 0.9 * (1 - THREE[..., None] * (1 - np.array(colour)))
    close(boxes(ink.find(np.rint(255 * seen).astype(np.uint8))), [BARS])


@pytest.mark.parametrize("which", ["auto", "bright"])
def test_chalk(which):
    board = np.rint(255 * (0.15 + 0.7 * THREE)).astype(np.uint8)
    close(boxes(ink.find(board, which)), [BARS])
    assert ink.find(np.full(SHAPE, 40, np.uint8)) == []


def test_grey_and_colour_are_the_same():
    grey = photo(THREE)
    for one, other in zip(ink.find(grey)[0], ink.find(grey[..., 0])[0], strict=True):
        assert one.box == other.box
        np.testing.assert_array_equal(one.image, other.image)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("slope", [0, 0.02])
def test_lines_at_half_the_contrast_are_paper(squared, slope):
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    lines = (rows + slope * columns) % 60 < 3
    if squared:
        lines |= (columns - slope * rows) % 60 < 3
    # Of a line, short ends beside the ink are left.
    close(boxes(ink.find(photo(np.maximum(THREE, 0.5 * lines)))), [BARS], within=12)


@pytest.mark.parametrize("share", [0.03, 0.2, 0.9])
def test_a_digit_of_any_size_looks_the_same(share):
    shape, scale = (900, 1200), share * 900 / 120
    seven = strokes([(5, 5), (75, 5), (35, 115)], shape=shape, at=(300, 40), scale=scale)
    ((piece,),) = ink.find(photo(seven))
    expected = strokes([(5, 5), (75, 5), (35, 115)], shape=(300, 300), at=(50, 50), scale=1.5)
    ((same,),) = ink.find(photo(expected))
    rows, columns = (np.flatnonzero(seven.max(axis) > 0.5) for axis in (1, 0))
    edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(piece.box, edges, atol=max(4, 0.05 * share * 900))
    assert np.abs(piece.image.astype(int) - same.image).mean() < 9


def test_images_are_as_of_mnist():
    ((piece,),) = ink.find(photo(strokes(*FIVE, at=(200, 100))))
    assert (piece.image.shape, piece.image.dtype) == ((28, 56), np.uint8)
    y, x = (np.mgrid[:28, :56] * piece.image).sum((1, 2)) / piece.image.sum()
    np.testing.assert_allclose((y, x), (14, 28), atol=0.15)
    assert np.ptp(np.flatnonzero(piece.image.max(axis=1) > 60)) + 1 in (19, 20, 21)
    np.testing.assert_array_equal(piece.image[0], 0)


@pytest.mark.parametrize(
    ("ratio", "size"), [(0.5, (20, 10)), (1.05, (19, 20)), (1.5, (20, 30)), (4.0, (12, 48))]
)
def test_wide_pieces_are_20_px_high_and_at_most_48_wide(ratio, size):
    box = np.zeros((80, round(80 * ratio)), np.float32)
    box[:6] = box[-6:] = box[:, :6] = box[:, -6:] = 1
    image = ink.normalised(box)
    assert image.shape == (28, 56)
    for axis, length, middle in ((1, size[0], 14), (0, size[1], 28)):
        inked = np.flatnonzero(image.max(axis) > 100)
        assert abs(np.ptp(inked) + 1 - length) <= 1
        assert abs((inked[0] + inked[-1]) / 2 - middle) <= 1


@pytest.mark.parametrize("height", [30, 60, 90, 130, 200, 400])
def test_a_straight_stroke_is_no_line_however_high_it_is(height):
    close(boxes(ink.find(photo(bar(300, 40, height, height // 8)))), [[
        (300, 40, 300 + height // 8, 40 + height)
    ]], within=max(4, height // 25))  # fmt: skip


def test_two_lines_are_read_from_left_to_right_even_where_they_rise():
    first = [(60 + 110 * i, 150 - 15 * i) for i in range(5)]
    second = [(90 + 110 * i, 330 - 15 * i) for i in range(4)]
    field = sum(bar(*place) for place in [*first[::-1], *second])
    lines = [[(a, b, a + 12, b + 100) for a, b in line] for line in (first, second)]
    close(boxes(ink.find(photo(field))), lines)


def test_a_broken_five_is_one_piece_and_two_fives_are_two():
    one = strokes(*FIVE, at=(100, 200))
    assert [len(line) for line in ink.find(photo(one))] == [1]
    both = one + strokes(*FIVE, at=(220, 195))
    assert [len(line) for line in ink.find(photo(both))] == [2]


def test_touching_digits_are_one_wide_piece():
    rings = Image.new("L", SHAPE[::-1], 0)
    for left in (100, 190, 280):
        ImageDraw.Draw(rings).ellipse((left, 200, left + 96, 320), outline=255, width=12)
    ((piece,),) = ink.find(photo(np.asarray(rings, np.float32) / 255))
    assert piece.image.shape == (28, 56)


def test_dirt_is_no_piece():
    dirty = THREE.copy()
    for top, left in ((50, 50), (400, 600), (60, 500)):
        dirty[top : top + 9, left : left + 9] = 1
    close(boxes(ink.find(photo(dirty))), [BARS])


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("noise", [0, 0.03])
def test_there_is_nothing_on_blank_paper(light, noise):
    rng = np.random.default_rng(0)
    blank = 0.9 * LIGHTS[light] + noise * rng.normal(size=SHAPE)
    found = ink.find(np.rint(255 * blank.clip(0, 1)).astype(np.uint8))
    assert boxes(found) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (3, 2), (28, 28), (1600, 2)])
@pytest.mark.parametrize("kind", ["black", "white", "noise"])
def test_odd_pictures_raise_nothing(shape, kind):
    levels = {"black": (0, 1), "white": (255, 256), "noise": (0, 256)}[kind]
    picture = np.random.default_rng(0).integers(*levels, (*shape, 3)).astype(np.uint8)
    for which in ("auto", "bright", "dark"):
        found = ink.find(picture, which)
        assert kind == "noise" or boxes(found) == []


def test_a_page_full_of_marks(monkeypatch):
    rows, columns = np.mgrid[:400, :800]
    marks = ((rows % 50 >= 10) & (rows % 50 < 34) & (columns % 40 < 5)).astype(np.float32)
    assert [len(line) for line in ink.find(photo(marks), "dark")] == [20] * 8
    monkeypatch.setattr(ink, "MOST", 30)
    assert sum(map(len, ink.find(photo(marks), "dark"))) == 30


# ---- Photographs for the exam


@pytest.fixture(scope="module")
def digits():
    return drawn.digits(1, 60)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [*((kind, "separate") for kind in photographs.KINDS), ("clean", "one"), ("clean", "touching")],
)
def test_photographs_depend_on_their_seed_alone(digits, kind, layout):
    of = {"mnist": digits, "drawn": digits}
    photo, text, source = exam.photo(of, "exam", kind, layout, 0, seed=3)
    other, _, turn = exam.photo(of, "exam", kind, layout, 1, seed=3)
    again, same, _ = exam.photo(of, "exam", kind, layout, 0, seed=3)
    assert (source, turn) == ("mnist", "drawn")
    np.testing.assert_array_equal(photo, again)
    assert text == same
    assert photo.shape != other.shape or (photo != other).any()
    assert photo.dtype == np.uint8
    assert photo.shape[2] == 3
    assert 360 <= min(photo.shape[:2]) <= max(photo.shape[:2]) <= 1600
    assert np.ptp(photo) > 30
    lengths = [len(line) for line in text.split("\n")]
    assert lengths == [1] if layout == "one" else all(2 <= n <= 6 for n in lengths)


def test_held_out_kinds_and_digits_are_in_the_exam_alone(digits):
    assert len(photographs.HELD_OUT) >= 4
    assert not photographs.HELD_OUT.keys() & exam.SPLITS["development"].keys()
    assert photographs.HELD_OUT.keys() < exam.SPLITS["exam"].keys()
    mnist = (type(digits)(*(part[:40] for part in digits)),) * 2
    developed = exam.digits("development", mnist)
    assert len(developed["mnist"].labels) == 4
    both = exam.digits("exam", mnist, n_drawn=10)
    assert len(both["drawn"].labels) == 10
    np.testing.assert_array_equal(both["mnist"].images, mnist[1].images)


def test_an_exam_counts_whole_texts():
    photos = [
        exam.Photo(np.zeros((1, 1, 3)), truth, source)
        for truth, source in (("12\n34", "mnist"), ("5", "drawn"), ("67", "mnist"), ("8", "drawn"))
    ]
    answers = iter(("12\n34", "?", "6?", "88"))
    mnist, made = exam.measured(lambda _: next(answers), iter(photos))
    counts = {"photographs": 2, "right": 1, "refused": 1, "found": 2}
    assert mnist == {"source": "mnist", **counts, "failures": [[2, "6?"]]}
    counts = {"photographs": 2, "right": 0, "refused": 1, "found": 1}
    assert made == {"source": "drawn", **counts, "failures": [[1, "?"], [3, "88"]]}
    texts = iter(("?", "?\n?", "?7", ""))
    (row,) = exam.refused(lambda _: next(texts), iter([np.zeros(1)] * 4))
    assert row == {"photographs": 4, "refused": 2}


@pytest.mark.parametrize("kind", ["J", "scribble", "coil"])
def test_what_is_no_digit_is_ink_on_white_paper(kind):
    first, second = exam.nondigit(kind, 2)
    (again,) = exam.nondigit(kind, 1)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    (line,) = ink.find(first)
    assert line
    assert first[0, 0] == 255


def test_touching_digits_touch_and_separate_ones_do_not(digits):
    from scipy import ndimage

    rng = np.random.default_rng(0)
    for touching in (False, True):
        for _ in range(10):
            chosen = digits.images[rng.integers(60, size=4)]
            pieces = [
                len(set(ndimage.label(photographs.stroke(d, 5) > 0.5)[0].ravel())) - 1
                for d in chosen
            ]
            row = photographs.line(rng, chosen, 100, touching)
            _, count = ndimage.label(row > 0.5, np.ones((3, 3)))
            assert (count < sum(pieces)) == touching
