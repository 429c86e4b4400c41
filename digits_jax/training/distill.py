"""Precomputed targets for distillation: distorted training digits and a teacher's probabilities.

A teacher of many networks is slower than the small student. With `distill.views` distorted copies
of each digit it predicts once, for all epochs, members and runs. Each copy has its own target, as
in Beyer et al. 2022 (arXiv:2106.05237). Pairs are composed of such copies, so their teacher is one
of single digits.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import DTypeLike

from digits_jax import files
from digits_jax.console import Bar, console, warn
from digits_jax.core import population
from digits_jax.data import augment, batches
from digits_jax.data.dataset import cache_dir
from digits_jax.devices import backend
from digits_jax.training.predictor import Predictor
from digits_jax.types import Array, PrecomputedTargets, Split, Teacher

_PART = 100  # digits at a time: of ten small networks on a CPU 1.4 times as fast as of 500


def make(
    config: ConfigDict, split: Split, teacher: Predictor, *, shapes: bool = False
) -> PrecomputedTargets:
    """`config.distill.views` copies of each training digit, distorted as `config.augment` says.

    They are drawn with `data.seed`. Each view, one copy of all digits, is cached in a file of its
    own, so that an interrupted run goes on with the next one. shapes: returns
    `jax.ShapeDtypeStruct`s.
    """
    pool, views = np.asarray(split.pool), config.distill.views
    ((head, classes),) = teacher.recipe.heads.items()
    if shapes:
        copies = views * len(pool)
        like: Any = jax.ShapeDtypeStruct
        soft = like((copies, classes), np.float16)
        return PrecomputedTargets(like((copies, 28, 28), np.uint8), soft)
    images = _aligned((views, len(pool), 28 * 28), np.uint8)
    targets = _aligned((views, len(pool), classes), np.float16)

    @jax.jit
    def precompute(digits: Array, key: jax.Array, weights: Teacher) -> tuple[Array, Array]:
        pixels = batches.to_float(digits)
        seen = jnp.rint(255 * augment.augment(key, pixels, config.augment)).astype(jnp.uint8)
        temperature, program = config.distill.temperature, teacher.program
        pixels = batches.to_float(seen)
        soft = population.teacher_targets(weights, pixels, temperature, program=program)[head]
        return seen.reshape(len(seen), -1), soft.astype(jnp.float16)

    first, weights, digits = jax.random.key(config.data.seed), teacher.teacher(), split.images
    hlo = precompute.lower(np.asarray(digits[:_PART]), first, weights).as_text()
    folder = cache_dir(config.data) / "distill" / _name(hlo, config, digits, pool, weights)
    missing = [view for view in range(views) if not _read(folder, view, images, targets)]
    if missing:
        console.print(
            f"The teacher predicts {len(missing) * len(pool):,} images, once for all runs: "
            f"{(images.nbytes + targets.nbytes) / 1e6:,.0f} MB in {folder}"
        )
    kept = True
    with Bar("targets", len(missing) * len(pool), "images/s", brief=True) as bar:
        for view in missing:
            if _read(folder, view, images, targets):  # another process was quicker
                bar.add(len(pool))
                continue
            key = jax.random.fold_in(first, view)
            for start in range(0, len(pool), _PART):
                part = slice(start, min(start + _PART, len(pool)))
                some = np.asarray(digits)[np.resize(pool[part], _PART)]
                made = precompute(some, jax.random.fold_in(key, start), weights)
                for array, new in zip((images, targets), made, strict=True):
                    array[view, part] = new[: part.stop - start]
                bar.add(part.stop - start)
                bar.update()
            kept = kept and _write(folder, view, images, targets)  # one warning is enough
    both = images.reshape(-1, 28, 28), targets.reshape(-1, classes)
    return PrecomputedTargets(*jax.device_put(both))


def _aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array that JAX on CPU uses without a copy, as it is aligned to 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _name(hlo: str, config: ConfigDict, digits: Array, pool: Array, weights: Teacher) -> str:
    """A hash of all that the targets depend on; JAX's version is part of it because of rounding."""
    where = f"{jax.__version__} {jax.default_backend()} {backend.matmul_precision()} "
    digest = hashlib.sha256(f"{where} {config.data.seed} {hlo}".encode())
    for array in jax.tree.leaves((digits, pool, weights)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _read(folder: Path, view: int, images: np.ndarray, targets: np.ndarray) -> bool:
    """Fills in a cached view; False where it is missing or damaged."""
    kept, (_, n, pixels) = files.read_array(folder / f"{view:03}.npy"), images.shape
    if kept is None or kept.dtype != np.uint8 or kept.shape != (n, pixels + 2 * targets.shape[2]):
        return False
    soft = np.ascontiguousarray(kept[:, pixels:]).view(np.float16)
    if not np.allclose(soft.sum(axis=1, dtype=np.float32), 1, atol=0.01):
        return False
    images[view], targets[view] = kept[:, :pixels], soft
    return True


def _write(folder: Path, view: int, images: np.ndarray, targets: np.ndarray) -> bool:
    """Caches a view: images and targets as the bytes of one array. A failure is a warning."""
    try:
        both = np.concatenate([images[view], targets[view].view(np.uint8)], axis=1)
        files.write_array(folder / f"{view:03}.npy", both)
        return True
    except OSError as error:
        warn(f"the precomputed targets could not be cached in {folder}: {error}")
        return False
