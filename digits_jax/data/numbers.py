"""Numbers in one piece of ink: up to PLACES digits that touch, or something that is no digit.

Examples look as a photograph's pieces of ink do (`ink.find`): 20 px high; fitted to MNIST's 20x20
px where the piece is hardly wider than high, and to 48 px where it is very wide; the centre of mass
is in the middle of 28x56. A digit alone stays as it is in MNIST, but for half of the wide ones.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from digits_jax.errors import UserError
from digits_jax.types import Array

PLACES = 4
HEIGHT, WIDTH = 28, 56
STRANGE, NOTHING = 10, 11  # labels: of what is no digit, and of a place without a symbol
STRANGE_SHARE = 0.2  # of the examples
COUNTS = (0.54, 0.26, 0.14, 0.06)  # shares of 1, 2, ... digits among the others
WIDE = 1.1  # times its height: a piece up to this wide is fitted to 20x20 px, as MNIST's digits are
WIDEST = 48  # px
_INK = 0.15  # what counts as ink


def draw(rng: np.random.Generator, n: int, digits: int, strange: int) -> np.ndarray:
    """[n, PLACES] int32: which images make an example.

    Indices up to `digits` are digits, the `strange` ones after them are none, and the last one,
    `digits` + `strange`, is an empty image.
    """
    rows = rng.integers(digits, size=(n, PLACES), dtype=np.int32)
    if strange:
        none = rng.random(n) < STRANGE_SHARE
        rows[none, 0] = rng.integers(digits, digits + strange, none.sum(), dtype=np.int32)
    count = rng.choice(PLACES, n, p=COUNTS) + 1
    if strange:
        count[none] = 1
    rows[np.arange(PLACES) >= count[:, None]] = digits + strange
    return rows


def spelled(texts: Sequence[str]) -> np.ndarray:
    """[N, PLACES] int32: the labels of '42', or of '?', which is no digit; UserError for others."""
    labels = np.full((len(texts), PLACES), NOTHING, np.int32)
    for row, text in zip(labels, texts, strict=True):
        if not re.fullmatch(rf"\?|[0-9]{{1,{PLACES}}}", text):
            raise UserError(f"the label '{text}' is neither '?' nor one to {PLACES} digits")
        row[: len(text)] = [STRANGE if c == "?" else int(c) for c in text]
    return labels


def widened(images: Array) -> Any:
    """[..., 28, 28] -> [..., 28, 56], in the middle of empty columns; others as they are.

    In JAX or NumPy, as the images are.
    """
    if images.shape[-1] != HEIGHT:
        return images
    sides = ((0, 0),) * (images.ndim - 1)
    pad = jnp.pad if isinstance(images, jax.Array) else np.pad
    return pad(images, (*sides, ((WIDTH - HEIGHT) // 2,) * 2))


def compose(images: Array) -> jax.Array:
    """[B, PLACES, 28, 28] -> [B, 28, 56] of the same dtype.

    Sizes, base lines and how far several digits overlap are random; they follow from the pixels
    alone, so that an example always looks the same.
    """
    images = jnp.asarray(images)
    if jnp.issubdtype(images.dtype, jnp.integer):
        pixels = images.astype(jnp.float32) / 255
        return jnp.round(255 * jax.vmap(_compose)(pixels)).astype(images.dtype)
    return jax.vmap(_compose)(images)


def _key(images: Array) -> jax.Array:
    """A random key made of the pixels."""
    codes = jnp.round(255 * images).astype(jnp.uint32).ravel()
    weights = jnp.arange(1, codes.size + 1, dtype=jnp.uint32) * jnp.uint32(2654435761)
    return jax.random.key((codes * weights).sum(dtype=jnp.uint32))


def _compose(images: Array) -> jax.Array:
    """[PLACES, 28, 28] float in [0, 1] -> [28, 56]."""
    dtype = images.dtype
    sizes, lines, overlaps, place, pen = jax.random.split(_key(images), 5)
    used = images.max(axis=(1, 2)) > _INK
    scale = jnp.exp(0.15 * jax.random.normal(sizes, (PLACES,), dtype))
    box = jax.vmap(_box)(images).astype(dtype)  # top, bottom, left, right
    high, wide = (box[:, 1] - box[:, 0]) * scale, (box[:, 3] - box[:, 2]) * scale
    top = 2.0 * jax.random.normal(lines, (PLACES,), dtype) - high / 2
    left = _lefts(images, box, scale, top, wide, overlaps)

    upper, lower = _span(top, top + high, used)
    first, last = _span(left, left + wide, used)
    height, width = lower - upper, last - first
    hardly_wider = (height < width) & (width <= WIDE * height)
    zoom = 20 / jnp.where(hardly_wider, width, height)
    zoom = jnp.minimum(zoom, WIDEST / width)
    shake = jax.random.uniform(place, (4,), dtype, -1, 1)
    zoom = zoom * (1 + 0.05 * shake[0])
    mass = images.sum(axis=(1, 2)) * scale**2
    index = jnp.arange(28, dtype=dtype) + 0.5
    middle = []  # of the ink, of rows and columns
    for axis, start, edge in ((1, top, box[:, 0]), (2, left, box[:, 2])):
        profile = images.sum(axis=3 - axis)
        own = profile @ index / jnp.maximum(profile.sum(axis=1), _INK)
        middle.append(jnp.where(used, mass * (start + (own - edge) * scale), 0).sum() / mass.sum())

    def pixels(size: int, middle: Array, start: Array, end: Array, shift: Array) -> Array:
        """Where the image's rows or columns lie in the piece, whose ink is from start to end."""
        half = 0.48 * size / zoom  # all ink stays inside
        middle = jnp.clip(middle, end - half, start + half)
        return (jnp.arange(size, dtype=dtype) + 0.5 - size / 2 - shift) / zoom + middle

    y = pixels(HEIGHT, middle[0], upper, lower, shake[1])
    x = pixels(WIDTH, middle[1], first, last, 2 * shake[2])

    bold = jnp.exp(jax.random.uniform(pen, (), dtype, 0, 0.8))
    bolder = jnp.minimum(bold * images, 1)  # a pen's stroke has no grey borders

    def drawn(image, box, scale, top, left):
        y_in, x_in = (y - top) / scale + box[0] - 0.5, (x - left) / scale + box[2] - 0.5
        return _sample(image, y_in, x_in, jnp.maximum(1 / (zoom * scale), 1))

    each = jax.vmap(drawn)(bolder, box, scale, top, left) * used[:, None, None].astype(dtype)
    line = each.max(axis=0)
    strong = line > 0.5 * line.max()  # thin strokes fade when they are made small
    level = jnp.where(strong, line, 0).sum() / jnp.maximum(strong.sum(), 1)
    line = jnp.minimum(line / jnp.maximum(level, 0.1), 1)
    zoomed = (wide[0] > WIDE * high[0]) & (shake[3] > 0)
    return jnp.where(used[1:].any() | zoomed, line, widened(images[0]))


def _span(starts: Array, ends: Array, used: Array) -> tuple[Array, Array]:
    return jnp.where(used, starts, jnp.inf).min(), jnp.where(used, ends, -jnp.inf).max()


def _box(image: Array) -> Array:
    """[4]: the first row with ink, the one after the last, and so with columns."""
    ends = []
    for profile in (image.max(axis=1) > _INK, image.max(axis=0) > _INK):
        ends += [jnp.argmax(profile), len(profile) - jnp.argmax(profile[::-1])]
    return jnp.stack(ends)


def _lefts(
    images: Array, box: Array, scale: Array, top: Array, wide: Array, key: jax.Array
) -> Array:
    """[PLACES]: where each digit begins, so that it touches or overlaps the one before it."""
    dtype, grid = images.dtype, jnp.arange(-14.0, 14.0)

    def edges(image, box, scale, top):
        """Where the ink of every row of a common grid begins and ends."""
        rows = _sample(image, (grid - top) / scale + box[0] - 0.5, jnp.arange(28.0)) > 2 * _INK
        some = rows.any(axis=1)
        begin, end = jnp.argmax(rows, axis=1), 28 - jnp.argmax(rows[:, ::-1], axis=1)
        begin, end = (scale * (x.astype(dtype) - box[2]) for x in (begin, end))
        return jnp.where(some, begin, jnp.inf), jnp.where(some, end, -jnp.inf)

    begin, end = jax.vmap(edges)(images, box, scale, top)
    overlap = jax.random.uniform(key, (PLACES,), dtype, -0.5, 2.0)
    lefts = [jnp.zeros((), dtype)]
    for i in range(1, PLACES):
        gap = (begin[i] - end[i - 1]).min()  # if both began at the same column
        gap = jnp.where(jnp.isfinite(gap), gap, -wide[i - 1])
        lefts.append(jnp.maximum(lefts[-1] - gap - overlap[i], lefts[-1] + 0.2 * wide[i - 1]))
    return jnp.stack(lefts)


def _sample(image: Array, y: Array, x: Array, spacing: Array | float = 1.0) -> Array:
    """[len(y), len(x)]: `image` [28, 28] at these rows and columns, bilinear; outside is 0.

    spacing: how far they lie apart, in px of `image`, at least 1.
    """
    index = jnp.arange(28, dtype=image.dtype)
    rows, columns = (
        jnp.maximum(0, 1 - jnp.abs(v[:, None] - index[None]) / spacing) / spacing for v in (y, x)
    )
    return rows.astype(image.dtype) @ image @ columns.astype(image.dtype).T
