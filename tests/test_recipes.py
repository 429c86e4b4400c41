"""The recipes by hand, on tiny arrays."""

import jax
import numpy as np
import pytest

from digits_jax.data import recipes
from digits_jax.data.recipes import RECIPES


def numbered(b, k, dtype):
    """[b, k, 28, 28]: every pixel of digit j of example i is 10 i + j + 1."""
    value = 10 * np.arange(b)[:, None] + np.arange(k)[None] + 1
    return np.broadcast_to(value[..., None, None], (b, k, 28, 28)).astype(dtype)


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shapes_dtypes_and_jit(name, dtype):
    recipe = RECIPES[name]
    images = numbered(3, recipe.digits, dtype)
    labels = np.ones((3, recipe.digits), np.uint8)
    out = recipe.compose(images)
    assert out.shape == (3, *recipe.shape)
    assert out.dtype == dtype
    # Numbers are resampled, and XLA may round that otherwise; the others copy pixels.
    within = 1e-4 if name == "number" and dtype == np.float32 else 0
    np.testing.assert_allclose(jax.jit(recipe.compose)(images), out, rtol=0, atol=within)
    assert {
        head: (x.shape, x.dtype) for head, x in jax.jit(recipe.label)(labels).items()
    } == dict.fromkeys(recipe.heads, ((3,), np.int32))


def test_sizes():
    sizes = {name: (r.train, r.test) for name, r in RECIPES.items()}
    assert sizes == {
        "mnist": (60_000, 10_000),
        "mnist100": (60_000, 10_000),
        "two_digit": (40_000, 4_000),
        "number": (240_000, 10_000),
    }


def test_mnist_is_the_digit_itself():
    images = numbered(2, 1, np.uint8)
    np.testing.assert_array_equal(RECIPES["mnist"].compose(images), images[:, 0])
    np.testing.assert_array_equal(RECIPES["mnist"].label(np.array([[7], [3]]))["digit"], [7, 3])


def test_mnist100_is_left_then_right():
    out = np.asarray(RECIPES["mnist100"].compose(numbered(2, 2, np.uint8)))
    assert (out[0, :, :28] == 1).all()
    assert (out[0, :, 28:] == 2).all()
    assert (out[1, :, :28] == 11).all()
    assert (out[1, :, 28:] == 12).all()
    labels = RECIPES["mnist100"].label(np.array([[2, 9], [0, 4], [9, 9]], np.uint8))
    np.testing.assert_array_equal(labels["number"], [29, 4, 99])
    certain = np.eye(10)[[[2, 9], [0, 4], [9, 9]]]
    np.testing.assert_array_equal(
        RECIPES["mnist100"].target(certain)["number"], np.eye(100)[[29, 4, 99]]
    )


def test_two_digit_is_the_maximum_where_the_digits_overlap():
    images = np.zeros((1, 2, 28, 28), np.uint8)
    images[0, 0, 0, 5] = 10  # the upper digit's first row: row 0
    images[0, 0, 20, 6] = 200  # meets row 6 of the lower digit: row 20
    images[0, 1, 6, 6] = 90
    images[0, 0, 27, 7] = 50  # meets row 13 of the lower digit: row 27
    images[0, 1, 13, 7] = 250
    images[0, 1, 27, 8] = 30  # the lower digit's last row: row 41
    expected = np.zeros((42, 28), np.uint8)
    expected[0, 5], expected[20, 6], expected[27, 7], expected[41, 8] = 10, 200, 250, 30
    np.testing.assert_array_equal(RECIPES["two_digit"].compose(images)[0], expected)
    labels = RECIPES["two_digit"].label(np.array([[3, 8]], np.uint8))
    assert {head: x.tolist() for head, x in labels.items()} == {"upper": [3], "lower": [8]}
    targets = RECIPES["two_digit"].target(np.eye(10)[[[3, 8]]])
    assert {head: int(x.argmax()) for head, x in targets.items()} == {"upper": 3, "lower": 8}


def test_no_digit_is_on_both_sides_of_a_split():
    train, validation = recipes.split_digits(recipes.generator(0, "split"), 60_000, 0.1)
    assert (len(train), len(validation)) == (54_000, 6_000)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(60_000))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    assert validation.max() > 50_000  # spread over the file, not its head
    train, validation = recipes.split_digits(recipes.generator(0, "split"), 50, 0.0)
    np.testing.assert_array_equal(train, np.arange(50))
    assert validation.shape == (0,)


def test_draws_are_pinned():
    """Published numbers rest on these draws: they must outlive every NumPy."""
    draws = recipes.draw_pairs(recipes.generator(0, "train"), 60_000, 60_000, 2)
    assert draws.dtype == np.int32
    assert draws[:3].tolist() == [[31329, 53384], [59576, 33428], [18176, 48054]]
    _, validation = recipes.split_digits(recipes.generator(0, "split"), 60_000, 0.1)
    assert validation[:5].tolist() == [9, 24, 49, 60, 63]


def test_draws_are_uniform_with_replacement_and_differ_by_seed_and_use():
    draws = recipes.draw_pairs(recipes.generator(0, "train"), 60_000, 10, 2)
    counts = np.bincount(10 * draws[:, 0] + draws[:, 1], minlength=100)
    assert ((counts - 600) ** 2 / 600).sum() < 150  # chi-squared, 99 degrees: p = 0.0007
    assert (draws[:, 0] == draws[:, 1]).any()
    for seed, use in [(1, "train"), (0, "test"), (0, "validation")]:
        other = recipes.draw_pairs(recipes.generator(seed, use), 60_000, 10, 2)
        assert (draws == other).mean() < 0.12


def test_single_digits_come_once_and_in_order():
    draws = recipes.draw_pairs(recipes.generator(0, "train"), 60_000, 7, 1)
    np.testing.assert_array_equal(draws, np.arange(7)[:, None])
