"""Distorted copies of the training digits with what a teacher says of them, made once and kept.

A teacher of many networks takes longer over an image than the small one that learns from it. With
`distill.views` copies of each digit it is asked once, and any number of epochs, members and runs
learn from its answers. Each copy keeps its own answer, as Beyer et al. 2022 (arXiv:2106.05237) ask
for. Pairs are composed of such copies; so their teacher, too, is one of single digits.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from digits_jax import files
from digits_jax.console import EpochBar, console, warn
from digits_jax.core.population import Lessons, Teacher
from digits_jax.data import augment
from digits_jax.data.batches import Split, cache_dir
from digits_jax.devices import backend
from digits_jax.training.predictor import Trained
from digits_jax.types import Array

_PART = 100  # digits at a time: of ten small networks on a CPU 1.4 times as fast as of 500


def make(config: ConfigDict, split: Split, teacher: Trained) -> Lessons:
    """`config.distill.views` copies of each training digit, as `config.augment` distorts them.

    `data.seed` says how. Each copy of all digits is kept in the cache by itself, so that making
    them goes on where it was stopped; a full disk costs that alone.
    """
    pool, views = np.asarray(split.pool), config.distill.views
    images = _aligned((views, len(pool), 28 * 28), np.uint8)
    answers = _aligned((views, len(pool), 10), np.float16)

    @jax.jit
    def lesson(digits: Array, key: jax.Array, asked: Teacher) -> tuple[Array, Array]:
        pixels = digits.astype(jnp.result_type(float)) / 255
        seen = jnp.rint(255 * augment.augment(key, pixels, config.augment)).astype(jnp.uint8)
        said = teacher.population.soften(asked, seen / 255, config.distill.temperature)["digit"]
        return seen.reshape(len(seen), -1), said.astype(jnp.float16)

    first, asked, digits = jax.random.key(config.data.seed), teacher.teacher(), split.images
    program = lesson.lower(np.asarray(digits[:_PART]), first, asked).as_text()
    folder = cache_dir(config.data) / "lessons" / _name(program, config, digits, pool, asked)
    missing = [view for view in range(views) if not _read(folder, view, images, answers)]
    if missing:
        console.print(
            f"The teacher looks at {len(missing) * len(pool):,} images, once for all runs: "
            f"{(images.nbytes + answers.nbytes) / 1e6:,.0f} MB in {folder}"
        )
    kept = True
    with EpochBar("lessons", len(missing) * len(pool)) as bar:
        for view in missing:
            if _read(folder, view, images, answers):  # another process was quicker
                bar.advance(len(pool))
                continue
            key = jax.random.fold_in(first, view)
            for start in range(0, len(pool), _PART):
                part = slice(start, min(start + _PART, len(pool)))
                some = np.asarray(digits)[np.resize(pool[part], _PART)]
                made = lesson(some, jax.random.fold_in(key, start), asked)
                for array, new in zip((images, answers), made, strict=True):
                    array[view, part] = new[: part.stop - start]
                bar.advance(part.stop - start)
            kept = kept and _write(
                folder, view, images[view], answers[view]
            )  # one warning is enough
    return Lessons(*jax.device_put((images.reshape(-1, 28, 28), answers.reshape(-1, 10))))


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that JAX on CPU takes as it is, where it would copy others: a gigabyte, perhaps."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _name(program: str, config: ConfigDict, digits: Array, pool: Array, asked: Teacher) -> str:
    """Changes with whatever the lessons come from; rounding differs between versions of JAX."""
    where = f"{jax.__version__} {jax.default_backend()} {backend.matmul_precision()} "
    digest = hashlib.sha256(f"{where} {config.data.seed} {program}".encode())
    for array in jax.tree.leaves((digits, pool, asked)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _read(folder: Path, view: int, images: np.ndarray, answers: np.ndarray) -> bool:
    """Fills in what is kept of a view; False where it is not there, or damaged."""
    kept, pixels = files.read_array(_path(folder, view)), images.shape[2]
    if (
        kept is None
        or kept.dtype != np.uint8
        or kept.shape != (images.shape[1], pixels + 2 * answers.shape[2])
    ):
        return False
    said = np.ascontiguousarray(kept[:, pixels:]).view(np.float16)
    if not np.allclose(said.sum(axis=1, dtype=np.float32), 1, atol=0.01):
        return False
    images[view], answers[view] = kept[:, :pixels], said
    return True


def _write(folder: Path, view: int, images: np.ndarray, answers: np.ndarray) -> bool:
    """[N, pixels] and [N, C] as the bytes of one array; False, with a warning, where it fails."""
    try:
        both = np.concatenate([images, answers.view(np.uint8)], axis=1)
        files.write_array(_path(folder, view), both)
        return True
    except OSError as error:
        warn(f"the lessons could not be kept in {folder}: {error}")
        return False


def _path(folder: Path, view: int) -> Path:
    return folder / f"{view:03}.npy"
