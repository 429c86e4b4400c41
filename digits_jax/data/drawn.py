"""Synthetic digits rendered from stroke skeletons, in pure JAX.

`skeletons.json` holds, per class, families of digits (open and closed 4, barred 7, looped 2 ...);
a family has a weight and a few exemplars of one layout: strokes of points `[x, y]` or
`[x, y, corner]` in a unit box, y down, `corner` from 0 (smooth) to 1 (sharp). A digit is a random
mix of one family's exemplars, bent and slanted, drawn with a round pen of random radius, and
normalised as MNIST is: fitted to 20x20 pixels, then shifted until its centre of mass is at 14.0.

No pixel of MNIST is included. Families, weights and constants were tuned by looking at digits of
MNIST's training split that a network trained on drawn digits misread.
"""

import functools
import json
import math
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.stats import norm

from digits_jax.console import track
from digits_jax.types import Array, Digits

CLASSES = 10
SIZE = 28  # pixels of an image's side
BOX = 20  # pixels of the box that a digit is fitted to
SAMPLES = 64  # points on the drawn curve
DISTORTION = 0.5  # as `draw` has it
CHUNK = 500  # digits rendered at once: their distance maps fit in the CPU cache

TABLE = pathlib.Path(__file__).with_name("skeletons.json")


class Skeletons(NamedTuple):
    """skeletons.json, padded: F families per class, E exemplars per family, P points each.

    cumulative: [10, F] float32, cumulative probability of the families; exemplars: [10, F, E, P, 2]
    float32; used: [10, F, E] float32, 1 for an exemplar and 0 for padding; basis: [10, F, SAMPLES,
    P] float32, from points to curve; pen_down: [10, F, SAMPLES - 1] bool, False where a segment
    joins two strokes.
    """

    cumulative: np.ndarray
    exemplars: np.ndarray
    used: np.ndarray
    basis: np.ndarray
    pen_down: np.ndarray


def curve_basis(corner: np.ndarray, samples: int) -> np.ndarray:
    """The matrix [samples, n] from a stroke's n points to points on a cubic Hermite curve.

    The tangents are Catmull-Rom's where `corner` [n] is 0, and the chords of either side where it
    is 1.
    """
    n = len(corner)
    points = np.eye(n)
    smooth = np.gradient(points, axis=0)
    time = np.linspace(0, n - 1, samples)
    i = np.minimum(time.astype(int), n - 2)
    u = (time - i)[:, None]
    chord = points[i + 1] - points[i]
    leave = smooth[i] + corner[i, None] * (chord - smooth[i])
    arrive = smooth[i + 1] + corner[i + 1, None] * (chord - smooth[i + 1])
    step = u**2 * (3 - 2 * u)
    return points[i] + step * chord + u * (1 - u) ** 2 * leave - u**2 * (1 - u) * arrive


@functools.cache
def table(even: bool = False, path: pathlib.Path = TABLE) -> Skeletons:
    """The skeletons of a file as arrays; even: all families of a class have the same weight."""
    content = json.loads(path.read_text(encoding="utf-8"))
    families = [*content["families"].values()]
    classes = len(families)
    exemplars = [family["exemplars"] for of_class in families for family in of_class]
    f, e = max(map(len, families)), max(map(len, exemplars))
    p = max(sum(map(len, strokes)) for strokes, *_ in exemplars)
    skeletons = Skeletons(
        cumulative=np.ones((classes, f), np.float32),
        exemplars=np.zeros((classes, f, e, p, 2), np.float32),
        used=np.zeros((classes, f, e), np.float32),
        basis=np.zeros((classes, f, SAMPLES, p), np.float32),
        pen_down=np.ones((classes, f, SAMPLES - 1), bool),
    )
    for label, of_class in enumerate(families):
        share = np.cumsum([1 if even else family["weight"] for family in of_class])
        skeletons.cumulative[label, : len(of_class) - 1] = share[:-1] / share[-1]
        for k, family in enumerate(of_class):
            lengths = [len(stroke) for stroke in family["exemplars"][0]]
            points = np.array(
                [[(*q, 0)[:3] for stroke in ex for q in stroke] for ex in family["exemplars"]]
            )
            n = points.shape[1]
            skeletons.used[label, k, : len(points)] = 1
            skeletons.exemplars[label, k, : len(points), :n] = points[..., :2]
            # A stroke's samples are in proportion to its points; the basis is block diagonal.
            starts = np.cumsum([0, *lengths])
            rows = np.round(starts * SAMPLES / n).astype(int)
            corner = points[..., 2].mean(axis=0)
            for a, b, top, bottom in zip(starts, starts[1:], rows, rows[1:], strict=False):
                skeletons.basis[label, k, top:bottom, a:b] = curve_basis(corner[a:b], bottom - top)
            skeletons.pen_down[label, k, rows[1:-1] - 1] = False
    return skeletons


@functools.cache
def constants() -> dict[str, float]:
    """How a skeleton is bent, slanted and drawn, tuned for digits."""
    found: dict[str, float] = json.loads(TABLE.read_text(encoding="utf-8"))["constants"]
    return found


def _noise(key: Array, **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Standard normal arrays by name, from a single draw, which compiles faster than many."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    flat = random.normal(key, (sum(sizes),), jnp.float32)
    pieces = jnp.split(flat, np.cumsum(sizes)[:-1])
    return {name: x.reshape(shapes[name]) for name, x in zip(shapes, pieces, strict=True)}


def _curve(
    z: dict[str, Array], label: Array, skeletons: Skeletons, distortion: float
) -> tuple[Array, Array]:
    """The centre line of a digit: curve [SAMPLES, 2] (x, y) and pen_down [SAMPLES - 1]."""
    c = constants()
    below = jnp.asarray(skeletons.cumulative)[label] < norm.cdf(z["family"])
    family = below.sum(dtype=jnp.int32)
    exemplars, used, basis, pen_down = (
        jnp.asarray(part)[label, family]
        for part in (skeletons.exemplars, skeletons.used, skeletons.basis, skeletons.pen_down)
    )
    share = used * jnp.exp(c["mix_sharpness"] * z["mix"])
    points = jnp.tensordot(share / share.sum(), exemplars, 1)
    jitter = z["jitter"][:-2] + 2 * z["jitter"][1:-1] + z["jitter"][2:]  # neighbours correlate
    amount = distortion * c["jitter"] * jnp.exp(c["jitter_spread"] * z["amount"])
    curve = basis @ (points + amount / math.sqrt(6) * jitter)

    # Elastic: three plane waves, each with about a whole period across the box.
    angle = 4 * (curve @ z["wave"].T) + 2 * np.pi * z["phase"]
    curve = curve + distortion * c["elastic"] * (jnp.sin(angle) @ z["shift"])

    x, y = curve.T
    x = x * jnp.exp(c["aspect"] * z["aspect"]) - (c["slant_mean"] + c["slant"] * z["slant"]) * y
    cos, sin = jnp.cos(c["rotation"] * z["rotation"]), jnp.sin(c["rotation"] * z["rotation"])
    return jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=1), pen_down


def _pen(z: dict[str, Array]) -> tuple[Array, Array]:
    """The pen's radius along the curve [SAMPLES] and the half-width of its soft edge [], in px."""
    c = constants()
    mean = jnp.clip(c["pen_mean"] * jnp.exp(c["pen_spread"] * z["pen"]), c["pen_min"], c["pen_max"])
    along = z["trend"] * jnp.linspace(-1, 1, SAMPLES, dtype=jnp.float32) + z["wobble"]
    soft = c["soft_min"] + (c["soft_max"] - c["soft_min"]) * norm.cdf(z["soft"])
    return mean * jnp.exp(c["pen_wobble"] * along), soft


def fit(curve: Array, radius: Array) -> Array:
    """Scales and moves `curve` [T, 2] so that, drawn with pen `radius` [T], it fills the box."""
    room = BOX - 2 * radius.mean()
    low, high = curve.min(axis=0), curve.max(axis=0)
    scale = room / jnp.maximum((high - low).max(), 1e-3)
    return (curve - (low + high)[None] / 2) * scale + BOX / 2


def ink(curve: Array, radius: Array, pen_down: Array, soft: Array) -> Array:
    """Renders a curve in the box, anti-aliased: [BOX, BOX] float32 from 0 to 1.

    curve: [T, 2] (x, y) in px; radius: [T] of the pen; pen_down: [T - 1]; soft: [] half the width
    of the anti-aliased edge; ink is 0.5 at distance `radius` from the curve.
    """
    centres = jnp.arange(BOX, dtype=jnp.float32) + 0.5
    y, x = jnp.meshgrid(centres, centres, indexing="ij")
    start, step = curve[:-1], jnp.diff(curve, axis=0)
    inverse = 1 / jnp.maximum((step**2).sum(axis=1), 1e-6)
    thickness = jnp.where(pen_down, radius[:-1], -jnp.inf)

    def nearer(distance, segment):
        (ax, ay), (dx, dy), inverse, thickness = segment
        along = jnp.clip(((x - ax) * dx + (y - ay) * dy) * inverse, 0, 1)
        across = jnp.sqrt((x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2)
        return jnp.minimum(distance, across - thickness), None

    # On CPU a scan over segments is 20 times faster than a minimum over an axis of them.
    far = jnp.full((BOX, BOX), jnp.inf, jnp.float32)
    distance, _ = lax.scan(nearer, far, (start, step, inverse, thickness))
    return jnp.clip(0.5 - distance / (2 * soft), 0, 1)


def centre(image: Array) -> Array:
    """Places a box [BOX, BOX] in [SIZE, SIZE], its centre of mass as near to 14.0 as possible."""
    margin = (SIZE - BOX) // 2
    index = jnp.arange(BOX, dtype=jnp.float32)
    total = jnp.maximum(image.sum(), 1e-6)
    mass = jnp.stack([image.sum(axis=1) @ index, image.sum(axis=0) @ index]) / total
    corner = jnp.clip(jnp.round(SIZE / 2 - mass), 0, 2 * margin).astype(jnp.int32)
    place = corner[:, None] + jnp.arange(BOX, dtype=jnp.int32)[None]
    # A shift as products with one-hot matrices: exact, and much faster than a gather on CPU.
    rows, columns = jax.nn.one_hot(place, SIZE, dtype=jnp.float32)
    return rows.T @ image @ columns


def _digit(key: Array, label: Array, skeletons: Skeletons, distortion: float) -> Array:
    _, _, e, p, _ = skeletons.exemplars.shape
    z = _noise(
        key, family=(), mix=(e,), amount=(), jitter=(p + 2, 2),
        wave=(3, 2), phase=(1, 3), shift=(3, 2), aspect=(), slant=(), rotation=(),
        pen=(), trend=(), wobble=(SAMPLES,), soft=(),
    )  # fmt: skip
    curve, pen_down = _curve(z, label, skeletons, distortion)
    radius, soft = _pen(z)
    return centre(jnp.round(255 * ink(fit(curve, radius), radius, pen_down, soft)))


def draw(
    key: Array,
    labels: Array,
    even: bool = False,
    path: pathlib.Path = TABLE,
    distortion: float = DISTORTION,
) -> Array:
    """Draws one digit per label: labels [N] int to images [N, 28, 28] uint8. Pure and jittable.

    Image i depends on `key`, i and its label alone. even: all families of a class are equally
    frequent, including those of weight 0. path: of other skeletons, whose classes are the labels.
    distortion: of the jitter and the waves; at DISTORTION the digits are as legible as MNIST's, at
    1 they are as varied as the network that learns from them alone needs.
    """
    index = jnp.arange(labels.shape[0], dtype=jnp.uint32)
    keys = jax.vmap(random.fold_in, (None, 0))(key, index)
    one = functools.partial(_digit, skeletons=table(even, path), distortion=distortion)
    return jax.vmap(one)(keys, labels.astype(jnp.int32)).astype(jnp.uint8)


_draw = jax.jit(draw, static_argnames=("even", "path", "distortion"))


def digits(seed: int, n: int, even: bool = False, distortion: float = DISTORTION) -> Digits:
    """`n` digits in NumPy arrays; the first m of them are `digits(seed, m)`.

    even, distortion: as in `draw`.

    Each chunk of CHUNK digits holds the same number of each class, in random order.
    """

    def chunk(i):
        order, drawing = random.split(random.fold_in(random.key(seed), i))
        labels = random.permutation(order, jnp.arange(CHUNK, dtype=jnp.int32) % CLASSES)
        return np.asarray(_draw(drawing, labels, even=even, distortion=distortion)), np.asarray(
            labels, np.uint8
        )

    chunks = range(max(1, -(-n // CHUNK)))
    images, labels = zip(*map(chunk, track(chunks, f"drawing {n:,} digits")), strict=True)
    return Digits(np.concatenate(images)[:n], np.concatenate(labels)[:n])
