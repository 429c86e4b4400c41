"""Drawn digits: what a digit must be, and the rendering against known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from digits_jax import defaults
from digits_jax.data import drawn


@pytest.fixture(scope="module")
def sample():
    return drawn.digits(seed=0, n=2 * drawn.CHUNK)


def test_digits_are_mnist_shaped(sample):
    assert sample.images.shape == (2 * drawn.CHUNK, 28, 28)
    assert sample.images.dtype == np.uint8
    assert sample.labels.dtype == np.uint8
    assert np.bincount(sample.labels).tolist() == [2 * drawn.CHUNK // 10] * 10
    assert sample.images.max(axis=(1, 2)).min() > 150  # each image has ink ...
    assert sample.images.mean() < 64  # ... on an empty background
    assert (sample.images == 0).mean() > 0.6


def test_digits_are_normalised_as_mnist(sample):
    for across in (1, 2):
        inked = sample.images.max(axis=across) > 0
        extent = 28 - inked.argmax(axis=1) - inked[:, ::-1].argmax(axis=1)
        assert extent.max() <= 20
        mass = sample.images.sum(axis=across, dtype=np.float64)
        centre = mass @ np.arange(28) / mass.sum(axis=1)
        off = np.abs(centre - 14)
        assert (off <= 0.501).mean() > 0.995  # else a lopsided digit that stops at the border
        assert off.max() <= 1.5


def test_same_seed_same_digits_and_prefixes_agree(sample):
    fewer = drawn.digits(seed=0, n=drawn.CHUNK - 3)
    np.testing.assert_array_equal(fewer.images, sample.images[: drawn.CHUNK - 3])
    np.testing.assert_array_equal(fewer.labels, sample.labels[: drawn.CHUNK - 3])
    other = drawn.digits(seed=1, n=drawn.CHUNK)
    assert (other.images != sample.images[: drawn.CHUNK]).any(axis=(1, 2)).all()
    assert drawn.digits(seed=0, n=0).images.shape == (0, 28, 28)


def test_an_image_depends_on_its_index_and_label_alone():
    key, labels = jax.random.key(3), jnp.arange(drawn.CHUNK) % 10
    draw = drawn._draw  # compiled for this shape already
    images = draw(key, labels)
    assert images.dtype == jnp.uint8
    changed = draw(key, labels.at[0].set(5))
    np.testing.assert_array_equal(changed[1:], images[1:])
    assert (changed[0] != images[0]).any()
    # Another program: on a GPU its sums may round a grey level otherwise.
    np.testing.assert_allclose(draw(key, labels[:3]), images[:3], atol=1)


def test_nearest_neighbour_reads_held_out_digits(sample):
    flat = sample.images.reshape(len(sample.images), -1).astype(np.float32)
    known, new = flat[: drawn.CHUNK], flat[drawn.CHUNK :]
    distance = (known**2).sum(axis=1)[None] - 2 * new @ known.T
    read = sample.labels[: drawn.CHUNK][distance.argmin(axis=1)]
    assert (read == sample.labels[drawn.CHUNK :]).mean() > 0.7  # chance is 0.1


def test_distortion_moves_what_is_drawn():
    assert defaults.get_base("x").data.drawn_distortion == drawn.DISTORTION
    key, labels = jax.random.key(0), jnp.arange(200) % 10
    plain, some, much = (
        np.asarray(drawn._draw(key, labels, distortion=d), float) for d in (0.0, 0.5, 1.0)
    )
    np.testing.assert_array_equal(some, drawn._draw(key, labels))
    away = [np.abs(images - plain).mean() for images in (some, much)]
    assert 0 < away[0] < 0.8 * away[1]


def _line(start, end, radius, soft):
    """A straight stroke through the box: ink [20, 20]."""
    curve = jnp.linspace(jnp.array(start), jnp.array(end), 5)
    down = jnp.ones(4, bool)
    return np.asarray(drawn.ink(curve, jnp.full(5, radius), down, jnp.float32(soft)))


def test_a_line_is_twice_the_pen_radius_wide():
    image = _line((10.0, 0.0), (10.0, 20.0), radius=2.0, soft=0.5)
    row = np.zeros(20)
    row[8:12] = 1  # pixel centres within 2.0 of x = 10
    np.testing.assert_allclose(image, np.tile(row, (20, 1)), atol=1e-5)
    # Pixel centres 1.5 and 2.5 away: coverage 0.5 + (radius - distance) / (2 soft), by hand.
    image = _line((10.0, 0.0), (10.0, 20.0), radius=2.0, soft=1.0)
    np.testing.assert_allclose(image[5, 6:10], [0, 0.25, 0.75, 1], atol=1e-5)
    np.testing.assert_allclose(image.sum(axis=1), 4.0, atol=1e-4)
    np.testing.assert_allclose(image, image[::-1, ::-1], atol=1e-5)


def test_pen_has_round_ends_and_lifts():
    image = _line((10.0, 5.0), (10.0, 15.0), radius=2.0, soft=0.5)
    column = [image[row, 9] for row in (2, 3, 4, 10)]  # 0.5 beside the line; above, at its end, on
    by_hand = [0, np.clip(2.5 - np.hypot(0.5, 1.5), 0, 1), 1, 1]
    np.testing.assert_allclose(column, by_hand, atol=1e-5)

    curve = jnp.array([[2.0, 2.0], [18.0, 2.0], [2.0, 18.0], [18.0, 18.0]])
    down = jnp.array([True, False, True])
    image = np.asarray(drawn.ink(curve, jnp.ones(4), down, jnp.float32(0.5)))
    assert image[2, 10] > 0
    assert image[17, 10] > 0
    assert (image[4:16] == 0).all()


def test_fit_fills_the_box_with_the_pen():
    curve = jnp.array([[0.0, 0.0], [3.0, 1.0], [1.0, 2.0]])
    fitted = drawn.fit(curve, jnp.full(3, 1.5))
    np.testing.assert_allclose(fitted.min(axis=0), [1.5, 10 - 17 / 3], atol=1e-5)
    np.testing.assert_allclose(fitted.max(axis=0), [18.5, 10 + 17 / 3], atol=1e-5)


def test_centre_shifts_by_whole_pixels():
    box = np.zeros((20, 20), np.float32)
    box[3, 5], box[3, 6], box[4, 5] = 200, 55, 7
    image = np.asarray(drawn.centre(jnp.asarray(box)))
    assert image[8 + 3, 8 + 5] == 200  # the corner would be beyond 8: the box stays inside
    assert image.sum() == box.sum()
    box = np.zeros((20, 20), np.float32)
    box[9, 12] = 255
    assert np.asarray(drawn.centre(jnp.asarray(box)))[14, 14] == 255


def test_curve_passes_through_points_and_turns_at_corners():
    points = np.array([[0.0, 0], [1, 0], [1, 1], [2, 1]])
    for corner in (np.zeros(4), np.array([0, 1.0, 1, 0])):
        curve = drawn.curve_basis(corner, 31) @ points
        np.testing.assert_allclose(curve[::10], points, atol=1e-12)
    # With corners the curve is the polygon itself; without, it leaves it.
    np.testing.assert_allclose(curve[10:21, 0], 1, atol=1e-12)
    smooth = drawn.curve_basis(np.zeros(4), 31) @ points
    assert np.abs(smooth[10:21, 0] - 1).max() > 0.04


def test_table_is_sound():
    constants, skeletons = drawn.constants(), drawn.table()
    assert constants["pen_min"] < constants["pen_mean"] < constants["pen_max"]
    assert (np.diff(skeletons.cumulative) >= 0).all()
    assert skeletons.cumulative[:, 0].min() > 0
    np.testing.assert_array_equal(skeletons.cumulative[:, -1], 1)
    exemplars = skeletons.used.sum(axis=2)
    assert (exemplars > 0).sum(axis=1).min() >= 5  # families per class
    assert exemplars[exemplars > 0].min() >= 2
    assert skeletons.exemplars.min() >= -0.3
    assert skeletons.exemplars.max() <= 1.6
    # Every row of a basis is an affine combination of points: a digit moves with its points.
    np.testing.assert_allclose(skeletons.basis[exemplars > 0].sum(axis=2), 1, atol=1e-6)
