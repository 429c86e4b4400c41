"""Distorted copies of the training digits with what a teacher says of them, made once and kept.

A teacher of many networks takes longer over an image than the small one that learns from it. With
`distill.views` copies of each digit it is asked once, and any number of epochs, members and runs
learn from its answers. Each copy keeps its own answer, as Beyer et al. 2022 (arXiv:2106.05237) ask
for. Pairs are composed of such copies; so their teacher, too, is one of single digits.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from digits_jax import augment
from digits_jax.console import EpochBar, console, warn
from digits_jax.data.batches import Split, cache_dir
from digits_jax.population import Lessons, Teacher
from digits_jax.trained import Trained
from digits_jax.types import Array

_PART = 100  # digits at a time: of ten small networks on a CPU 1.4 times as fast as of 500


def make(config: Any, split: Split, teacher: Trained) -> Lessons:
    """`config.distill.views` copies of each training digit, as `config.augment` distorts them.

    `data.seed` says how. Each copy of all digits is kept in the cache by itself, so that making
    them goes on where it was stopped; a full disk costs that alone.
    """
    pool, views = np.asarray(split.pool), config.distill.views
    images = np.empty((views, len(pool), 28 * 28), np.uint8)
    answers = np.empty((views, len(pool), 10), np.float16)

    @jax.jit
    def lesson(digits: Array, key: jax.Array, asked: Teacher) -> tuple[Array, Array]:
        pixels = digits.astype(jnp.result_type(float)) / 255
        seen = jnp.rint(255 * augment.augment(key, pixels, config.augment)).astype(jnp.uint8)
        said = teacher.population.soften(asked, seen / 255, config.distill.temperature)["digit"]
        return seen.reshape(len(seen), -1), said.astype(jnp.float16)

    folder = cache_dir(config.data) / "lessons" / _name(config, split, teacher)
    missing = [view for view in range(views) if not _read(folder, view, images, answers)]
    if missing:
        total = len(missing) * len(pool)
        console.print(f"The teacher looks at {total:,} images, once for all runs.")
    with EpochBar("lessons", len(missing) * len(pool)) as bar:
        for view in missing:
            key = jax.random.fold_in(jax.random.key(config.data.seed), view)
            for start in range(0, len(pool), _PART):
                part = slice(start, min(start + _PART, len(pool)))
                digits = np.asarray(split.images)[np.resize(pool[part], _PART)]
                made = lesson(digits, jax.random.fold_in(key, start), teacher.teacher())
                for array, new in zip((images, answers), made, strict=True):
                    array[view, part] = new[: part.stop - start]
                bar.advance(part.stop - start)
            _write(folder, view, images[view], answers[view])
    return Lessons(jnp.asarray(images.reshape(-1, 28, 28)), jnp.asarray(answers.reshape(-1, 10)))


def _name(config: Any, split: Split, teacher: Trained) -> str:
    """Changes with whatever the lessons come from; rounding differs between versions of JAX."""
    how = {name: value for name, value in sorted(config.augment.items()) if name != "per_digit"}
    said = f"{jax.__version__} {jax.default_backend()} {config.data.seed} "
    said += f"{config.distill.temperature} {how}"
    code = (Path(__file__).read_bytes(), Path(augment.__file__).read_bytes())
    digest = hashlib.sha256(said.encode() + b"".join(code))
    for array in jax.tree.leaves((split.images, split.pool, teacher.teacher())):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _read(folder: Path, view: int, images: np.ndarray, answers: np.ndarray) -> bool:
    """Fills in what is kept of a view; False where it is not there, or damaged."""
    try:
        kept = np.load(_path(folder, view), allow_pickle=False)
    except Exception:  # a damaged .npy header can raise nearly anything
        return False
    pixels = images.shape[2]
    if kept.dtype != np.uint8 or kept.shape != (images.shape[1], pixels + 2 * answers.shape[2]):
        return False
    images[view] = kept[:, :pixels]
    answers[view] = np.ascontiguousarray(kept[:, pixels:]).view(np.float16)
    return True


def _write(folder: Path, view: int, images: np.ndarray, answers: np.ndarray) -> None:
    """[N, pixels] and [N, C] as the bytes of one array."""
    path = _path(folder, view)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            both = np.concatenate([images, answers.view(np.uint8)], axis=1)
            np.save(file, both, allow_pickle=False)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        warn(f"the lessons could not be kept in {folder}: {error}")


def _path(folder: Path, view: int) -> Path:
    return folder / f"{view:03}.npy"
