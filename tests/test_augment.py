"""Distortions: known pixels, an independent resampling, and what must stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_of
from scipy import ndimage

from digits_jax.data.augment import _bilinear, _smooth_basis, augment

OFF = dict.fromkeys(
    ("shift_x", "shift_y", "rotate", "shear", "scale", "elastic", "pen", "contrast", "brightness"),
    0.0,
)


def settings(**fields):
    config = config_of("mnist100").augment
    config.update(**(OFF | fields))
    return config


@pytest.fixture
def images(getkey):
    x = jax.random.uniform(getkey(), (5, 12, 16))
    return jnp.pad(x, ((0, 0), (8, 8), (6, 6)))


def test_nothing_asked_nothing_done(images, getkey):
    np.testing.assert_array_equal(augment(getkey(), images, settings()), images)


def test_shift_moves_whole_pixels_within_the_range(images, getkey):
    many = jnp.repeat(images[:1], 200, axis=0)
    moved = np.asarray(augment(getkey(), many, settings(shift_x=2.0, shift_y=1.0)))
    seen = set()
    for image in moved:
        matches = [
            (dy, dx)
            for dy in (-1, 0, 1)
            for dx in (-2, -1, 0, 1, 2)
            if np.array_equal(image, np.roll(images[0], (dy, dx), (0, 1)))
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 15


def test_bilinear_is_scipys(images, getkey):
    y = jax.random.uniform(getkey(), images.shape, minval=-4, maxval=32)
    x = jax.random.uniform(getkey(), images.shape, minval=-4, maxval=32)
    ours = _bilinear(images, y, x)
    for k in range(len(images)):
        theirs = ndimage.map_coordinates(
            np.asarray(images[k]), [y[k], x[k]], order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(ours[k], theirs, atol=1e-5)


def test_scale_is_that_of_the_ink(getkey):
    """Areas of a square lie between those at 0.8 and 1.2 times its sides, on both sides of 1."""
    square = jnp.pad(jnp.ones((300, 12, 12)), ((0, 0), (8, 8), (8, 8)))
    area = np.asarray(augment(getkey(), square, settings(scale=0.2))).sum(axis=(1, 2)) / 144
    assert 0.62 < area.min() < 0.8
    assert 1.2 < area.max() < 1.46


def test_rotation_keeps_the_centre_of_mass_and_the_ink(getkey):
    bar = jnp.zeros((50, 29, 29)).at[:, 6:23, 13:16].set(1.0)
    turned = np.asarray(augment(getkey(), bar, settings(rotate=30.0)))
    np.testing.assert_allclose(turned.sum(axis=(1, 2)), 51, rtol=0.05)
    for image in turned:
        np.testing.assert_allclose(ndimage.center_of_mass(image), (14, 14), atol=0.1)
    tilt = [np.polyfit(*np.nonzero(image > 0.5), 1)[0] for image in turned]
    assert np.abs(np.degrees(np.arctan(tilt))).max() < 32
    assert np.ptp(np.degrees(np.arctan(tilt))) > 30


def test_the_elastic_field_has_unit_variance_and_is_smooth(getkey):
    basis = _smooth_basis(28)
    np.testing.assert_allclose((basis**2).sum(axis=1), np.ones(28), rtol=1e-12)
    assert ((basis[1:] * basis[:-1]).sum(axis=1) > 0.97).all()  # neighbours move together


def test_images_are_distorted_on_their_own_and_within_0_and_1(images, getkey):
    twice = jnp.concatenate([images[:1], images[:1]])
    everything = settings(
        shift_x=2.0, rotate=10.0, shear=5.0, scale=0.1, elastic=1.0, contrast=0.5, brightness=0.5
    )
    one, two = np.asarray(augment(getkey(), twice, everything))
    assert not np.allclose(one, two)
    assert one.min() >= 0
    assert one.max() <= 1


def test_light_leaves_the_background_alone(images, getkey):
    brighter = np.asarray(augment(getkey(), images, settings(brightness=0.3, contrast=0.3)))
    assert (brighter[np.asarray(images) == 0] == 0).all()
    assert not np.allclose(brighter, images)


def test_the_pen(getkey):
    """One grey line of two pixels, 0.5 beside 1: what a cross, in part, makes of it."""
    line = np.zeros((9, 9), np.float32)
    line[:, 4], line[:, 5] = 1, 0.5
    many = jnp.repeat(jnp.asarray(line)[None], 300, axis=0)
    inked = np.asarray(augment(getkey(), many, settings(pen=2.0)))
    assert (inked == inked[:, :1]).all()  # along the line nothing differs
    row = inked[:, 4]
    np.testing.assert_allclose(row[:, 4], 1, atol=1e-6)
    thicker = row[:, 3] > 0
    t, u = row[thicker, 3], row[~thicker, 5]  # the part of the dilation; what is left of 0.5
    np.testing.assert_allclose(row[thicker, 6], 0.5 * t, atol=1e-6)
    np.testing.assert_allclose(row[thicker, 5], 0.5 + 0.5 * t, atol=1e-6)
    assert not row[~thicker][:, [2, 3, 6, 7]].any()
    assert 0.3 < thicker.mean() < 0.7
    assert t.max() > 0.95
    assert (u <= 0.5).all()
    assert u.min() < 0.05
