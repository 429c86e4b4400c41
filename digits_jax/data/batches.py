"""From digits in memory to the batches that a step takes: pure functions of arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict, FrozenConfigDict

from digits_jax.data.augment import augment
from digits_jax.data.recipes import RECIPES, Recipe
from digits_jax.devices.mesh import over_data
from digits_jax.types import Array, Batch, Normalizer, PrecomputedTargets, Split


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """How the batches of a run are made; all of it static. By default of single digits.

    augment: the frozen `config.augment`; fresh: pairs are drawn anew in every batch.
    """

    recipe: Recipe = RECIPES["mnist"]
    batch_size: int = 256
    steps_per_epoch: int = 1
    augment: FrozenConfigDict = dataclasses.field(default_factory=FrozenConfigDict)
    fresh: bool = False


def pipeline_of(config: ConfigDict, recipe: Recipe, n: int) -> Pipeline:
    """What `config` says of it, for `n` training examples."""
    return Pipeline(
        recipe=recipe,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch(n, config.batch_size),
        augment=FrozenConfigDict(config.augment),
        fresh=config.data.fresh_pairs and recipe.digits > 1,
    )


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Every example at least once: the last batch is full, too."""
    return -(-n // batch_size)


def epoch_order(key: Array, epoch: Array | int, n: int, batch_size: int) -> Array:
    """[steps * B] int32: each of `n` examples once, then the first of the next epoch's order.

    Padding would reach BatchNorm, so the last batch is filled with real examples.
    """
    missing = steps_per_epoch(n, batch_size) * batch_size - n
    order = jax.random.permutation(jax.random.fold_in(key, epoch), n)
    while missing > 0:
        epoch = epoch + 1
        extra = jax.random.permutation(jax.random.fold_in(key, epoch), n)[:missing]
        order = jnp.concatenate([order, extra])
        missing -= n
    return order.astype(jnp.int32)


def next_rows(split: Split, order: Array, step: Array, key: jax.Array, pipeline: Pipeline) -> Array:
    """[B, k] int32: the digits of the examples of step `step` of a run.

    order: [steps * B], of its epoch. Fresh pairs are drawn by `key` instead.
    """
    if pipeline.fresh:
        shape = (pipeline.batch_size, pipeline.recipe.digits)
        rows = split.pool[jax.random.randint(key, shape, 0, len(split.pool))]
    else:
        start = step % pipeline.steps_per_epoch * pipeline.batch_size
        rows = split.rows[jax.lax.dynamic_slice_in_dim(order, start, pipeline.batch_size)]
    return over_data(rows)


def distorted(split: Split, rows: Array, key: jax.Array, pipeline: Pipeline) -> Array:
    """[B, H, W] float in [0, 1]: the examples of `rows` [B, k], augmented.

    With `augment.per_digit` each digit is distorted before the image is composed.
    """
    digits, recipe = _gather(split.images, rows), pipeline.recipe
    if not pipeline.augment.per_digit:
        return augment(key, to_float(recipe.compose(digits)), pipeline.augment)
    flat = augment(key, to_float(digits.reshape(-1, 28, 28)), pipeline.augment)
    return recipe.compose(flat.reshape(digits.shape))


def batch_of(
    split: Split, rows: Array, pixels: Array, normalizer: Normalizer, recipe: Recipe
) -> Batch:
    """The batch of `pixels` [B, H, W] in [0, 1], whose digits are `rows` [B, k]."""
    return Batch(
        images=normalize(pixels, normalizer),
        labels=recipe.label(split.labels[rows]),
        mask=jnp.ones(rows.shape[0], pixels.dtype),
    )


def precomputed_batch(
    split: Split,
    rows: Array,
    normalizer: Normalizer,
    teacher: PrecomputedTargets,
    key: jax.Array,
    pipeline: Pipeline,
) -> Batch:
    """The batch of `rows` [B, k], each digit as one of its distorted copies, with targets."""
    size, recipe = len(split.pool), pipeline.recipe
    view = jax.random.randint(key, rows.shape, 0, len(teacher.images) // size)
    copies = view * size + jnp.searchsorted(split.pool, rows)
    pixels = to_float(recipe.compose(_gather(teacher.images, copies)))
    batch = batch_of(split, rows, pixels, normalizer, recipe)
    answers = teacher.probabilities[copies].astype(pixels.dtype)
    return batch._replace(targets=recipe.target(answers))


def eval_batch(split: Split, mask: Array, normalizer: Normalizer, recipe: Recipe) -> Batch:
    """All of `split` without augmentation; `mask` [B] marks the examples that count."""
    rows = over_data(split.rows)
    pixels = to_float(recipe.compose(_gather(split.images, rows)))
    return batch_of(split, rows, pixels, normalizer, recipe)._replace(
        mask=mask.astype(pixels.dtype)
    )


def padded_rows(index: Array, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cuts [..., N, k] into (rows [..., B, k], mask [B]); the last is padded with zeros."""
    index = np.asarray(index)
    batches = []
    for start in range(0, index.shape[-2], batch_size):
        rows = index[..., start : start + batch_size, :]
        missing = batch_size - rows.shape[-2]
        mask = np.arange(batch_size) < batch_size - missing
        padding = [(0, 0)] * (index.ndim - 2) + [(0, missing), (0, 0)]
        batches.append((np.pad(rows, padding), mask))
    return batches


def _gather(images: Array, rows: Array) -> Array:
    """[D, H, W], [B, k] -> [B, k, H, W]. The barrier stops XLA on CPU from looking up each pixel by
    itself: a step of the two-head MLP takes 0.8 of the time.
    """
    flat = jax.lax.optimization_barrier(images.reshape(len(images), -1)[rows])
    return flat.reshape(*rows.shape, *images.shape[1:])


def to_float(images: Array, dtype: DTypeLike = float) -> Array:
    """uint8 to floats in [0, 1]; by default of the precision that JAX is set to."""
    return images.astype(jnp.result_type(dtype)) / 255


def normalize(images: Array, normalizer: Normalizer) -> Array:
    """images: [B, H, W] float in [0, 1] -> what a network reads."""
    return (images - normalizer.mean[None]) * normalizer.scale[None]
