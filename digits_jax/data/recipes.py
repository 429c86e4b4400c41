"""The recipes: how examples of a dataset are composed of single MNIST digits.

A recipe is pure functions of arrays and works the same within jit, outside of it, and for the
published builders. What is random is drawn by NumPy, so that a seed means the same split and the
same pairs on every backend and JAX version: `generator(seed, use)` is
`Generator(PCG64(SeedSequence([seed, STREAMS[use]])))`, read once, in the order of the code below.

mnist100 is how the public MNIST-100 file is built; two_digit rebuilds the images of the public
MITx 6.86x file. Both keep MNIST's natural, uneven class frequencies.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from digits_jax.types import Array

STREAMS = {"split": 0, "train": 1, "validation": 2, "test": 3, "more": 4}


class Recipe(NamedTuple):
    """How `digits` single digits make one example.

    shape: (H, W) of an image; heads: {head: classes}; train, test: examples of the undivided
    recipe; compose: images [B, digits, 28, 28] of any dtype -> [B, H, W] of the same dtype;
    label: labels [B, digits] of any integer dtype -> {head: [B] int32}; target: probabilities
    [B, digits, 10] of each digit by itself -> {head: [B, C]}.
    """

    digits: int
    shape: tuple[int, int]
    heads: dict[str, int]
    train: int
    test: int
    compose: Callable[[Array], jax.Array]
    label: Callable[[Array], dict[str, jax.Array]]
    target: Callable[[Array], dict[str, jax.Array]]

    def __hash__(self) -> int:
        return hash((self.digits, self.shape))  # a dict has none


def _alone(images: Array) -> jax.Array:
    return jnp.asarray(images)[:, 0]


def _side_by_side(images: Array) -> jax.Array:
    images = jnp.asarray(images)
    return jnp.concatenate([images[:, 0], images[:, 1]], axis=2)


def _stacked(images: Array) -> jax.Array:
    """Upper digit in rows 0 to 27, lower in 14 to 41, pixelwise maximum where they overlap."""
    images = jnp.asarray(images)
    upper = jnp.pad(images[:, 0], ((0, 0), (0, 14), (0, 0)))
    lower = jnp.pad(images[:, 1], ((0, 0), (14, 0), (0, 0)))
    return jnp.maximum(upper, lower)


def _digit(labels: Array) -> dict[str, jax.Array]:
    return {"digit": jnp.asarray(labels, jnp.int32)[:, 0]}


def _number(labels: Array) -> dict[str, jax.Array]:
    labels = jnp.asarray(labels, jnp.int32)
    return {"number": 10 * labels[:, 0] + labels[:, 1]}


def _upper_and_lower(labels: Array) -> dict[str, jax.Array]:
    labels = jnp.asarray(labels, jnp.int32)
    return {"upper": labels[:, 0], "lower": labels[:, 1]}


def _target_of_digit(p: Array) -> dict[str, jax.Array]:
    return {"digit": jnp.asarray(p)[:, 0]}


def _target_of_number(p: Array) -> dict[str, jax.Array]:
    """The sides are drawn independently: p(left, right) = p(left) p(right)."""
    p = jnp.asarray(p)
    return {"number": (p[:, 0, :, None] * p[:, 1, None, :]).reshape(len(p), 100)}


def _targets_of_both(p: Array) -> dict[str, jax.Array]:
    p = jnp.asarray(p)
    return {"upper": p[:, 0], "lower": p[:, 1]}


_PAIR = {"upper": 10, "lower": 10}
RECIPES = {
    "mnist": Recipe(
        *(1, (28, 28), {"digit": 10}, 60_000, 10_000),
        *(_alone, _digit, _target_of_digit),
    ),
    "mnist100": Recipe(
        *(2, (28, 56), {"number": 100}, 60_000, 10_000),
        *(_side_by_side, _number, _target_of_number),
    ),
    "two_digit": Recipe(
        *(2, (42, 28), _PAIR, 40_000, 4_000), *(_stacked, _upper_and_lower, _targets_of_both)
    ),
}


def generator(seed: int, use: str) -> np.random.Generator:
    """The random stream of `seed` for one `use`, a key of STREAMS; the uses are independent."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, STREAMS[use]])))


def split_digits(
    rng: np.random.Generator, n: int, fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Splits `fraction` of `n` digits off at random, before any pairing.

    Returns (train, validation): int32 indices, each sorted, together every index once;
    validation has round(fraction * n) of them. Raises ValueError unless 0 <= fraction < 1.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the fraction split off must lie in [0, 1), not {fraction}")
    order = rng.permutation(n).astype(np.int32)
    held_out = round(fraction * n)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def split_folds(
    rng: np.random.Generator, n: int, folds: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kept, held out) of each of `folds` folds: int32 indices, each sorted; [] without folds.

    Every fold holds out n // folds digits and no two the same; what is left over always trains.
    """
    if not folds:
        return []
    order, size = rng.permutation(n).astype(np.int32), n // folds
    parts = [slice(i * size, (i + 1) * size) for i in range(folds)]
    return [(np.sort(np.delete(order, part)), np.sort(order[part])) for part in parts]


def draw_pairs(rng: np.random.Generator, n_examples: int, n_digits: int, k: int) -> np.ndarray:
    """Which digits make each example: [n, k] int32 indices into `n_digits` digits.

    Drawn independently, uniformly and with replacement, n = n_examples. Where an example is a
    single digit (k = 1) nothing is drawn: every digit once, in order, n = n_digits.
    """
    if k == 1:
        return np.arange(n_digits, dtype=np.int32)[:, None]
    return rng.integers(n_digits, size=(n_examples, k), dtype=np.int32)
