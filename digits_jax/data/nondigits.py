"""Images of what is no digit: letters, shapes, signs, scribbles, crossed out and turned digits.

A network that learns them as a class of its own refuses what it doesn't know (outlier exposure,
Hendrycks et al. 2019, arXiv:1812.04606). `nondigits.json` holds skeletons of letters and shapes
that look like no digit, drawn by the pen of `drawn` and placed as MNIST's digits are. What came out
like a digit, as some scribbles do, is left out.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from digits_jax.console import Bar
from digits_jax.data import drawn
from digits_jax.types import Array

TABLE = Path(__file__).with_name("nondigits.json")
SHARES = {  # in the order of `made`
    "letters and shapes": 0.35,
    "scribbles": 0.1,
    "signs": 0.15,
    "curls": 0.2,
    "crossed out digits": 0.08,
    "turned digits": 0.12,
}
_POINTS = 12  # of half of the scribbles; the others have half as many
_STROKES = 4  # of a sign, at most
_CURLS, _CURL = 3, 16  # curls at most; points of each
_REFERENCE = 5_000  # drawn digits, with which each image is compared


def kinds(path: Path = TABLE) -> list[str]:
    """The names of the skeletons in a file, in the order of their labels."""
    return [*json.loads(path.read_text(encoding="utf-8"))["families"]]


def _drawn(key: Array, strokes: Array) -> Array:
    """[28, 28]: `strokes` [S, P, 2], a smooth line through each one's points."""
    width, softness = random.split(key)
    count, points, _ = strokes.shape
    samples = drawn.SAMPLES // count
    basis = jnp.asarray(drawn.curve_basis(np.zeros(points), samples), jnp.float32)
    curve = jnp.concatenate([basis @ stroke for stroke in strokes])
    radius = random.uniform(width, (), jnp.float32, 0.7, 2.0) * jnp.ones(len(curve))
    soft = random.uniform(softness, (), jnp.float32, 0.4, 1.0)
    down = np.arange(1, len(curve)) % samples != 0
    line = drawn.ink(drawn.fit(curve, radius), radius, jnp.asarray(down), soft)
    return drawn.centre(jnp.round(255 * line))


def _scribble(key: Array, points: int) -> Array:
    """[28, 28]: a smooth line through random points."""
    place, pen = random.split(key)
    return _drawn(pen, random.normal(place, (1, points, 2), jnp.float32))


def _sign(key: Array) -> Array:
    """[28, 28]: three or four random strokes; half are straight, half begin where another ends."""
    ends, bend, join, count, pen = random.split(key, 5)
    a, b, c = random.uniform(ends, (3, _STROKES, 2), jnp.float32)
    joined = random.bernoulli(join, 0.5, (_STROKES, 1))
    a = jnp.where(joined, jnp.roll(c, 1, axis=0), a)  # the first one's: where the fourth ends
    bent = jnp.maximum(random.uniform(bend, (_STROKES, 1), jnp.float32, -1.5, 1.5), 0)
    strokes = jnp.stack([a, (1 - bent) * (a + c) / 2 + bent * b, c], axis=1)
    last = random.randint(count, (), 2, _STROKES)
    return _drawn(pen, strokes[jnp.minimum(jnp.arange(_STROKES), last)])


def _curl(key: Array) -> Array:
    """[28, 28]: a spiral, coil or row of loops, or two or three arcs that hang together."""
    turn, side, start, shape, drift, count, pen = random.split(key, 7)
    last = random.randint(count, (), 0, _CURLS)
    sweep = random.uniform(turn, (_CURLS, 1), jnp.float32, 0.2, 0.9)  # turns
    sweep = jnp.where(last == 0, 1.5 + 3 * sweep, sweep)
    sweep = sweep * random.rademacher(side, (_CURLS, 1), jnp.float32)
    time = jnp.linspace(0, 1, _CURL, dtype=jnp.float32)[None]
    angle = 2 * np.pi * (random.uniform(start, (_CURLS, 1), jnp.float32) + sweep * time)
    wide, high, grow = random.uniform(shape, (3, _CURLS, 1), jnp.float32, 0.3, 1)
    radius = 1 - grow * time
    away = random.normal(drift, (2, _CURLS, 1), jnp.float32) * jnp.abs(sweep)[None]
    x = away[0] * time + wide * radius * jnp.cos(angle)
    y = away[1] * time + high * radius * jnp.sin(angle)
    arcs = jnp.stack([x, y], axis=2)
    ends = jnp.cumsum(arcs[:, -1] - arcs[:, 0], axis=0)  # each begins where the one before ended
    arcs = arcs - arcs[:, :1] + jnp.pad(ends[:-1], ((1, 0), (0, 0)))[:, None]
    return _drawn(pen, arcs[jnp.minimum(jnp.arange(_CURLS), last)])


def _turned(key: Array, digits: Array) -> Array:
    """One of `digits` [10, 28, 28] on its side, upside down or as a mirror shows it."""
    ways = [
        *(jnp.rot90(digits[i], k) for k in (1, 3) for i in (2, 3, 4, 5, 6, 7, 9)),
        *(digits[i][::-1, ::-1] for i in (3, 4)),
        *(digits[i][:, ::-1] for i in (3, 4, 6, 7, 9)),
        *(digits[i][::-1] for i in (4, 6, 9)),
    ]
    return jnp.stack(ways)[random.randint(key, (), 0, len(ways))]


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
    signs = jax.vmap(_sign)(random.split(random.fold_in(lines, 1), n))
    plain = drawn.draw(digits, random.randint(random.fold_in(labels, 1), (n,), 0, 10))
    crossed = jax.vmap(_crossed)(
        random.split(random.fold_in(lines, 0), n), plain.astype(jnp.float32)
    )
    curls = jax.vmap(_curl)(random.split(random.fold_in(lines, 2), n))
    each = drawn.draw(random.fold_in(digits, 1), jnp.arange(n) % 10).reshape(-1, 10, 28, 28)
    turned = jax.vmap(_turned)(
        random.split(random.fold_in(lines, 3), n), jnp.repeat(each, 10, axis=0)
    )
    made = (skeletons, scribbles, signs, curls, crossed, turned)
    choice = random.choice(which, len(made), (n,), p=jnp.asarray([*SHARES.values()]))
    images = jnp.stack([x.astype(jnp.uint8) for x in made])
    return images[choice, jnp.arange(n)]


@functools.cache
def _digits() -> tuple[Array, float]:
    """[_REFERENCE, 196]: the views of drawn digits; how similar half of the digits are to one."""
    digits = _view(drawn.digits(0, _REFERENCE + drawn.CHUNK, even=True).images)
    others = (digits[: drawn.CHUNK] @ digits[drawn.CHUNK :].T).max(axis=1)
    return digits[drawn.CHUNK :], float(jnp.median(others))


def _view(images: Array) -> Array:
    """[N, 28, 28] -> [N, 196], of mean 0 and length 1: how similar two are is their product."""
    small = jnp.asarray(images, jnp.float32).reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    flat = small.reshape(len(small), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)


def like_digits(images: Array) -> np.ndarray:
    """[N] bool: which of [N, 28, 28] are as similar to a drawn digit as half of the digits are to
    another one.
    """
    digits, most = _digits()
    return np.asarray((_view(images) @ digits.T).max(axis=1) > most)


def nondigits(seed: int, n: int, path: Path = TABLE) -> np.ndarray:
    """[n, 28, 28] uint8; the first m of them are `nondigits(seed, m)`. path: of other skeletons."""
    base, images, count = random.key(seed), list[np.ndarray](), 0
    with Bar(f"drawing {n:,} images of no digit", n) as bar:
        while count < n:
            made = _chunk(random.fold_in(base, len(images)), drawn.CHUNK, path)
            images.append(np.asarray(made)[~like_digits(made)])
            count += len(images[-1])
            if bar.add(len(images[-1])):
                bar.update()
    return np.concatenate(images)[:n]
