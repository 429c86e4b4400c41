"""Images of what is no digit: letters, shapes, scribbles, crossed out and overwritten digits.

A network that learns them as a class of its own refuses what it doesn't know (outlier exposure,
Hendrycks et al. 2019, arXiv:1812.04606). `nondigits.json` holds skeletons of letters and shapes
that look like no digit, drawn by the pen of `drawn` and placed as MNIST's digits are.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from digits_jax.console import track
from digits_jax.data import drawn
from digits_jax.types import Array

TABLE = Path(__file__).with_name("nondigits.json")
SHARES = {  # in the order of `made`
    "letters and shapes": 0.6,
    "scribbles": 0.2,
    "crossed out digits": 0.1,
    "a digit over a turned one": 0.1,
}
_POINTS = 12  # of half of the scribbles; the others have half as many


def kinds(path: Path = TABLE) -> list[str]:
    """The names of the skeletons in a file, in the order of their labels."""
    return [*json.loads(path.read_text(encoding="utf-8"))["families"]]


def _scribble(key: Array, points: int) -> Array:
    """[28, 28]: a smooth line through random points."""
    place, _, width, softness = random.split(key, 4)
    steps = random.normal(place, (points, 2), jnp.float32)
    basis = jnp.asarray(drawn.curve_basis(np.zeros(points), drawn.SAMPLES), jnp.float32)
    radius = random.uniform(width, (), jnp.float32, 0.7, 2.0) * jnp.ones(drawn.SAMPLES)
    soft = random.uniform(softness, (), jnp.float32, 0.4, 1.0)
    down = jnp.ones(drawn.SAMPLES - 1, bool)
    curve = drawn.fit(basis @ steps, radius)
    return drawn.centre(jnp.round(255 * drawn.ink(curve, radius, down, soft)))


def _crossed(key: Array, digit: Array) -> Array:
    """`digit` [28, 28] with two or three lines through it."""
    ends, width, count = random.split(key, 3)
    x = random.uniform(ends, (3, 2, 2), jnp.float32, 0, 20)
    x = x.at[:, 0, 0].set(x[:, 0, 0] / 4).at[:, 1, 0].set(20 - x[:, 1, 0] / 4)
    down = jnp.asarray([True, False, True, False, True])
    down = down.at[4].set(random.bernoulli(count))
    radius = jnp.full(6, random.uniform(width, (), jnp.float32, 0.8, 1.6))
    lines = drawn.ink(x.reshape(6, 2), radius, down, jnp.float32(0.7))
    return jnp.maximum(digit, jnp.pad(jnp.round(255 * lines), 4))


@functools.partial(jax.jit, static_argnames=("n", "path"))
def _chunk(key: Array, n: int, path: Path) -> Array:
    labels, ink, lines, digits, which = random.split(key, 5)
    classes = len(kinds(path))
    skeletons = drawn.draw(ink, random.randint(labels, (n,), 0, classes), path=path)
    few, many = (
        jax.vmap(functools.partial(_scribble, points=k))(random.split(random.fold_in(lines, k), n))
        for k in (_POINTS // 2, _POINTS)
    )
    scribbles = jnp.where(jnp.arange(n)[:, None, None] % 2 == 0, few, many)
    first, second = (
        drawn.draw(
            random.fold_in(digits, i), random.randint(random.fold_in(labels, i), (n,), 0, 10)
        )
        for i in (1, 2)
    )
    crossed = jax.vmap(_crossed)(
        random.split(random.fold_in(lines, 0), n), first.astype(jnp.float32)
    )
    turned = jnp.rot90(second, axes=(1, 2))
    made = (skeletons, scribbles, crossed, jnp.maximum(first, turned))
    choice = random.choice(which, len(made), (n,), p=jnp.asarray([*SHARES.values()]))
    images = jnp.stack([x.astype(jnp.uint8) for x in made])
    return images[choice, jnp.arange(n)]


def nondigits(seed: int, n: int, path: Path = TABLE) -> np.ndarray:
    """[n, 28, 28] uint8; the first m of them are `nondigits(seed, m)`. path: of other skeletons."""
    chunks = range(max(1, -(-n // drawn.CHUNK)))
    base = random.key(seed)
    images = [
        np.asarray(_chunk(random.fold_in(base, i), drawn.CHUNK, path))
        for i in track(chunks, f"drawing {n:,} images of no digit")
    ]
    return np.concatenate(images)[:n]
