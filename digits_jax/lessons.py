"""Distorted copies of the training examples with what a teacher says of them, made once and kept.

A teacher of many networks takes longer over an image than the small one that learns from it. With
`distill.views` copies of each example it is asked once, and any number of epochs, members and runs
learn from its answers. Each pair of image and answer belongs together, as Beyer et al. 2022
(arXiv:2106.05237) ask for.
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
from digits_jax.data.batches import Dataset, cache_dir, distorted
from digits_jax.population import Lessons, Population, Teacher

_PART = 100  # examples at a time: of ten small networks on a CPU 1.4 times as fast as of 500


def make(config: Any, data: Dataset, programs: Population, teacher: Teacher) -> Lessons:
    """`config.distill.views` copies of each training example, as `config.augment` distorts them.

    programs: those of the run that learns, which know how to ask the teacher. `data.seed` says
    which distortions. Each copy of the training data is kept in the cache by itself, so that making
    them goes on where it was stopped; a full disk costs that alone.
    """
    recipe, rows, views = data.recipe, np.asarray(data.train.rows), config.distill.views
    n, (height, width) = len(rows), recipe.shape
    said = sum(recipe.heads.values())
    table = np.empty((views, n, height * width), np.uint8)
    answers = np.empty((views, n, said), np.float16)

    @jax.jit
    def lesson(split: Any, teacher: Teacher, rows: jax.Array, key: jax.Array) -> Any:
        images = jnp.rint(255 * distorted(split, rows, recipe, key, config)).astype(jnp.uint8)
        targets = programs.targets(teacher, images.astype(jnp.result_type(float)) / 255)
        soft = jnp.concatenate([targets[head] for head in recipe.heads], axis=1)
        return images.reshape(len(images), -1), soft.astype(jnp.float16)

    folder = cache_dir(config.data) / "lessons" / _name(config, data, teacher)
    missing = [view for view in range(views) if not _read(_path(folder, view), table, answers)]
    if missing:
        console.print(
            f"The teacher looks at {len(missing) * n:,} images, once; then they are kept."
        )
    bare = data.train._replace(rows=rows[:0], pool=rows[:0, 0])
    with EpochBar("lessons", len(missing) * n) as bar:
        for view in missing:
            key = jax.random.fold_in(jax.random.key(config.data.seed), view)
            for start in range(0, n, _PART):
                some = rows[start : start + _PART]
                padded = np.resize(some, (_PART, *some.shape[1:]))
                made = lesson(bare, teacher, padded, jax.random.fold_in(key, start))
                for array, part in zip((table, answers), made, strict=True):
                    array[view, start : start + len(some)] = part[: len(some)]
                bar.advance(len(some))
            _write(_path(folder, view), table[view], answers[view])
    parts = np.split(answers, np.cumsum([*recipe.heads.values()])[:-1], axis=2)
    return Lessons(
        jnp.asarray(table.reshape(views * n, height, width)),
        {
            head: jnp.asarray(part.reshape(views * n, -1))
            for head, part in zip(recipe.heads, parts, strict=True)
        },
    )


def _name(config: Any, data: Dataset, teacher: Teacher) -> str:
    """Changes with whatever the lessons come from; rounding differs between versions of JAX."""
    said = f"{jax.__version__} {jax.default_backend()} {config.data.seed} "
    said += f"{config.distill.temperature} {config.augment.to_json(sort_keys=True)}"
    code = (Path(__file__).read_bytes(), Path(augment.__file__).read_bytes())
    digest = hashlib.sha256(said.encode() + b"".join(code))
    for array in jax.tree.leaves((data.train, teacher)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _path(folder: Path, view: int) -> Path:
    return folder / f"{view:03}.npy"


def _read(path: Path, table: np.ndarray, answers: np.ndarray) -> bool:
    """Fills in what is kept of a view; False where it is not there, or damaged."""
    view, pixels = int(path.stem), table.shape[2]
    try:
        kept = np.load(path, allow_pickle=False)
    except Exception:  # a damaged .npy header can raise nearly anything
        return False
    if kept.dtype != np.uint8 or kept.shape != (table.shape[1], pixels + 2 * answers.shape[2]):
        return False
    table[view] = kept[:, :pixels]
    answers[view] = np.ascontiguousarray(kept[:, pixels:]).view(np.float16)
    return True


def _write(path: Path, images: np.ndarray, answers: np.ndarray) -> None:
    """[N, pixels] and [N, C] as the bytes of one array."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            both = np.concatenate([images, answers.view(np.uint8)], axis=1)
            np.save(file, both, allow_pickle=False)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        warn(f"the lessons could not be kept in {path.parent}: {error}")
