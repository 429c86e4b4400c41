"""Recipes: how examples of a dataset are composed of single MNIST digits.

A recipe is pure functions of arrays, within jit or not. Splits and pairs are drawn by NumPy, so a
seed gives the same ones on every backend and JAX version. mnist100 is built as the public MNIST-100
file; two_digit rebuilds the images of the public MITx 6.86x file. Both keep MNIST's uneven class
frequencies.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from digits_jax.data import numbers
from digits_jax.types import Array

STREAMS = {"split": 0, "train": 1, "validation": 2, "test": 3, "more": 4, "held_out": 5, "some": 6}


class Recipe(NamedTuple):
    """How `digits` single digits make one example.

    shape: (H, W) of an image; heads: {head: classes}; train, test: numbers of examples before any
    validation split; compose: images [B, digits, 28, 28] of any dtype -> [B, H, W] of the same
    dtype; label: labels [B, digits] of any integer dtype -> {head: [B] int32}; target:
    probabilities [B, digits, classes] of each digit by itself -> {head: [B, C]}.
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
        return hash((self.digits, self.shape, *self.heads.values()))  # a dict has none


def _per_head(*heads: str, dtype: type | None = None) -> Callable[[Array], dict[str, jax.Array]]:
    """-> values [B, digits, ...] as {head: [B, ...]}, one head for each digit."""
    return lambda values: {h: jnp.asarray(values, dtype)[:, i] for i, h in enumerate(heads)}


def _side_by_side(images: Array) -> jax.Array:
    images = jnp.asarray(images)
    return jnp.concatenate([images[:, 0], images[:, 1]], axis=2)


def _stacked(images: Array) -> jax.Array:
    """Upper digit in rows 0 to 27, lower in 14 to 41, pixelwise maximum where they overlap."""
    images = jnp.asarray(images)
    upper = jnp.pad(images[:, 0], ((0, 0), (0, 14), (0, 0)))
    lower = jnp.pad(images[:, 1], ((0, 0), (14, 0), (0, 0)))
    return jnp.maximum(upper, lower)


def _pair(labels: Array, head: str, classes: int) -> dict[str, jax.Array]:
    labels = jnp.asarray(labels, jnp.int32)
    return {head: classes * labels[:, 0] + labels[:, 1]}


def _target_of_pair(p: Array, head: str) -> dict[str, jax.Array]:
    """The sides are drawn independently: p(left, right) = p(left) p(right)."""
    p = jnp.asarray(p)
    return {head: (p[:, 0, :, None] * p[:, 1, None, :]).reshape(len(p), p.shape[2] ** 2)}


_PLACES = ("digit", "second", "third", "fourth")


@cache  # equal recipes are one object: programs that are compiled for it are found again
def _recipes(classes: int, one: str, pair: str) -> dict[str, Recipe]:
    """The recipes for so many classes; `one` and `pair` name the heads."""
    return {
        "mnist": Recipe(
            digits=1,
            shape=(28, 28),
            heads={one: classes},
            train=60_000,
            test=10_000,
            compose=lambda images: jnp.asarray(images)[:, 0],
            label=_per_head(one, dtype=np.int32),
            target=_per_head(one),
        ),
        "mnist100": Recipe(
            digits=2,
            shape=(28, 56),
            heads={pair: classes**2},
            train=60_000,
            test=10_000,
            compose=_side_by_side,
            label=partial(_pair, head=pair, classes=classes),
            target=partial(_target_of_pair, head=pair),
        ),
        "two_digit": Recipe(
            digits=2,
            shape=(42, 28),
            heads={"upper": classes, "lower": classes},
            train=40_000,
            test=4_000,
            compose=_stacked,
            label=_per_head("upper", "lower", dtype=np.int32),
            target=_per_head("upper", "lower"),
        ),
        "number": Recipe(
            digits=numbers.PLACES,
            shape=(numbers.HEIGHT, numbers.WIDTH),
            heads=dict.fromkeys(_PLACES, classes + 2) | {_PLACES[0]: classes + 1},
            train=240_000,
            test=10_000,
            compose=numbers.compose,
            label=_per_head(*_PLACES, dtype=np.int32),
            target=_per_head(*_PLACES),
        ),
    }


DIGITS = tuple("0123456789")
RECIPES = _recipes(len(DIGITS), "digit", "number")


def recipe_of(data: Mapping[str, Any]) -> Recipe:
    """The recipe of a resolved `config.data`, whose `classes` are () for the ten digits."""
    classes = len(data["classes"])
    return (_recipes(classes, "class", "pair") if classes else RECIPES)[data["dataset"]]


def names_of(data: Mapping[str, Any]) -> list[str]:
    """The classes of the single images."""
    return [*data["classes"]] or [*DIGITS]


def class_names(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """{head: names of its classes} of a resolved `config.data`; '07' or 'a b' of pairs."""
    names = names_of(data)
    between = "" if all(len(name) == 1 for name in names) else " "
    if any(" " in name for name in names):
        between = " + "
    pairs = [f"{left}{between}{right}" for left in names for right in names]
    heads = recipe_of(data).heads
    if data["dataset"] == "number":
        return {head: [*names, "?", ""][:size] for head, size in heads.items()}
    return {head: names if size == len(names) else pairs for head, size in heads.items()}


def generator(seed: int, use: str) -> np.random.Generator:
    """The random stream of `seed` for one `use`, a key of STREAMS; the streams are independent."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, STREAMS[use]])))


def split_digits(
    rng: np.random.Generator, n: int, fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """-> (train, validation): sorted int32 indices of `n` digits, split at random.

    validation has round(fraction * n) of them.
    """
    order = rng.permutation(n).astype(np.int32)
    held_out = round(fraction * n)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def split_folds(
    rng: np.random.Generator, n: int, folds: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kept, held out) of each of `folds` folds: sorted int32 indices.

    The held out parts are disjoint, n // folds digits each; the remainder always trains.
    """
    order, size = rng.permutation(n).astype(np.int32), n // folds
    parts = [slice(i * size, (i + 1) * size) for i in range(folds)]
    return [(np.sort(np.delete(order, part)), np.sort(order[part])) for part in parts]


def hold_out(rng: np.random.Generator, labels: np.ndarray, share: float) -> np.ndarray:
    """Sorted int32 indices of `share` of each class's examples, at least one, at random."""
    held = []
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        held.append(of_class[: max(round(share * len(of_class)), 1)])
    return np.sort(np.concatenate(held)).astype(np.int32)


def draw_pairs(rng: np.random.Generator, n_examples: int, n_digits: int, k: int) -> np.ndarray:
    """The digits of each example: [n_examples, k] int32 indices into `n_digits` digits.

    Drawn independently, uniformly and with replacement. For k = 1, each digit once, in order:
    [n_digits, 1].
    """
    if k == 1:
        return np.arange(n_digits, dtype=np.int32)[:, None]
    return rng.integers(n_digits, size=(n_examples, k), dtype=np.int32)
