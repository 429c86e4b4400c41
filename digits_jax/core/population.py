"""A run as a population: the pure functions of a step, vmapped over a slice of members.

A member's weights, its order of batches, its augmentation and its dropout are streams of its seed,
each folded with the step, so nothing random lives in the state and a resumed run is the same run.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from digits_jax import models
from digits_jax.core import metrics, optim
from digits_jax.core.step import eval_step, init_state, track_best, train_step
from digits_jax.data.batches import (
    Normalizer,
    Split,
    epoch_order,
    eval_batch,
    normalize,
    taught_batch,
    train_batch,
)
from digits_jax.data.recipes import Recipe
from digits_jax.devices.mesh import over_data
from digits_jax.types import Array, Batch, Hyper, Members, Metrics, PyTree, TrainState

_INIT, _ORDER, _STEP = range(3)


def slice_size(size: int, backend: str, devices: int = 1, shared: bool = False) -> int:
    """Members per program: one on each of `devices` on CPU, where a loop beats vmap (three members
    by vmap took twice the time of three solo runs), on GPU and TPU all that divide evenly over the
    devices. One on each, too, where they are `shared` with others that compute the same batch: XLA
    would gather it for convolutions of several members.
    """
    one_each = devices if size >= devices else 1
    return one_each if backend == "cpu" or shared else size - size % devices or size


def slices(size: int, width: int) -> list[range]:
    """The members 0 to size - 1 in runs of `width`; the last may be shorter."""
    return [range(start, min(start + width, size)) for start in range(0, size, width)]


def hyper_of(config: ConfigDict) -> Hyper:
    """The config's hyperparameters, as floats."""
    return Hyper(
        learning_rate=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        dropout=config.model.dropout,
        label_smoothing=config.label_smoothing,
    )


def members_of(config: ConfigDict, ids: Sequence[int]) -> Members:
    """Member i has the seed `seed + i` and leaves out fold i % folds; all share the config's
    hyperparameters.
    """
    shape, dtype = len(ids), jnp.result_type(float)
    return Members(
        seed=np.asarray([config.seed + i for i in ids], np.uint32),
        fold=np.asarray([i % max(config.data.folds, 1) for i in ids], np.int32),
        hyper=jax.tree.map(lambda value: np.full(shape, value, dtype), hyper_of(config)),
    )


class Teacher(NamedTuple):
    """A trained run that others learn from: its weights by slice, and what normalises for it."""

    weights: list[tuple[PyTree, PyTree]]
    normalizer: Normalizer


class Lessons(NamedTuple):
    """V distorted copies of the P training digits, and a teacher's softened answers to them.

    images: [V * P, 28, 28] uint8, one copy of the whole pool after another; answers: [V * P, 10]
    float16.
    """

    images: Array
    answers: Array


class Population:
    """The programs of one run, vmapped over the members of a slice, neither jitted nor run.

    The leading axis of states, totals and members is the member's; `split`, `normalizer` and the
    teacher are shared. `teaching`: the programs of the run that teaches, if there is one.
    """

    compiled = True  # they are meant to be jitted

    def __init__(
        self,
        config: ConfigDict,
        recipe: Recipe,
        steps_per_epoch: int,
        teaching: "Population | None" = None,
    ):
        model = models.from_config(config, recipe.heads)
        tx = optim.transformation(config.optimizer)
        self.schedule = optim.unit_schedule(config.optimizer, config.epochs, steps_per_epoch)
        self._config, self._recipe, self.model = config, recipe, model
        self._teaching = teaching
        ema = config.optimizer.ema
        self._init = functools.partial(
            init_state, model=model, tx=tx, image_shape=recipe.shape, ema=ema
        )
        self._train = functools.partial(
            train_step,
            model=model,
            tx=tx,
            schedule=self.schedule,
            decoupled=config.optimizer.decoupled,
            ema=ema,
            bfloat16=config.bfloat16,
            drops=config.model.dropout > 0,
            distill=(config.distill.weight, config.distill.temperature),
            sparse=bool(config.prune.run),
        )

    def init(self, members: Members) -> TrainState:
        """The members' first states."""
        return jax.vmap(self._init)(self.init_keys(members))

    def init_keys(self, members: Members) -> jax.Array:
        """[S] keys, of the members' first weights."""
        return jax.vmap(lambda seed: _key(seed, _INIT))(members.seed)

    def shapes(self, members: Members) -> TrainState:
        """`init` as `jax.ShapeDtypeStruct`s."""
        return jax.eval_shape(self.init, members)

    def order(self, members: Members, epoch: Array | int, n: int) -> Array:
        """[S, steps * B]: the examples of an epoch of `n`, in each member's own order."""
        batch_size = self._config.batch_size
        one = functools.partial(epoch_order, epoch=epoch, n=n, batch_size=batch_size)
        return jax.vmap(lambda seed: one(_key(seed, _ORDER)))(members.seed)

    def zeros(self, members: int) -> Metrics:
        """Empty sums for a slice."""
        return metrics.zeros(self._recipe.heads, (members,))

    def train(
        self,
        state: TrainState,
        totals: Metrics,
        order: Array,
        start: Array | int,
        split: Split,
        normalizer: Normalizer,
        members: Members,
        teacher: Teacher | Lessons | None = None,
        *,
        steps: int,
    ) -> tuple[TrainState, Metrics]:
        """`steps` steps from step `start` of the epoch; adds their metrics to `totals`.

        Several steps are one scan. On CPU take one: a convolution's gradient inside a scan is 20 to
        46 times slower there (https://github.com/jax-ml/jax/issues/12868).
        """

        def one(carry: tuple[TrainState, Metrics], i: Any) -> tuple[Any, None]:
            step = jax.vmap(self._member, in_axes=(0, 0, 0, None, None, None, 0, None))
            return step(*carry, order, i, split, normalizer, members, teacher), None

        if steps == 1:
            return one((state, totals), start)[0]
        return jax.lax.scan(one, (state, totals), start + jnp.arange(steps))[0]

    def _member(
        self,
        state: TrainState,
        totals: Metrics,
        order: Array,
        i: Array,
        split: Split,
        normalizer: Normalizer,
        member: Members,
        teacher: Teacher | Lessons | None,
    ) -> tuple[TrainState, Metrics]:
        batch, key = self.batch(state.step, order, i, split, normalizer, member, teacher)
        state, new = self._train(state, batch, key, member.hyper)
        return state, metrics.add(totals, new)

    def batch(
        self,
        step: Array,
        order: Array,
        i: Array,
        split: Split,
        normalizer: Normalizer,
        member: Members,
        teacher: Teacher | Lessons | None = None,
    ) -> tuple[Batch, jax.Array]:
        """What one member trains on in step `i` of the epoch, its `step`-th, and dropout's key."""
        batch_size, split = self._config.batch_size, split.of(member.fold)
        key = jax.random.fold_in(_key(member.seed, _STEP), step)
        key_pairs, key_augment, key_dropout = jax.random.split(key, 3)
        if self._config.data.fresh_pairs and self._recipe.digits > 1:
            shape = (batch_size, self._recipe.digits)
            rows = split.pool[jax.random.randint(key_pairs, shape, 0, len(split.pool))]
        else:
            rows = split.rows[jax.lax.dynamic_slice_in_dim(order, i * batch_size, batch_size)]
        rows = over_data(rows)
        if isinstance(teacher, Lessons):
            size = len(split.pool)
            view = jax.random.randint(key_augment, rows.shape, 0, len(teacher.images) // size)
            copies = view * size + jnp.searchsorted(split.pool, rows)
            return taught_batch(
                split, rows, self._recipe, normalizer, *teacher, copies
            ), key_dropout
        teach = functools.partial(self._targets, teacher) if teacher else None
        batch = train_batch(split, rows, self._recipe, normalizer, key_augment, self._config, teach)
        return batch, key_dropout

    def _targets(self, teacher: Teacher, images: Array) -> dict[str, Array]:
        teaching: Any = self._teaching
        return teaching.soften(teacher, images, self._config.distill.temperature)

    def evaluate(
        self,
        weights: tuple[PyTree, PyTree],
        split: Split,
        normalizer: Normalizer,
        rows: Array,
        mask: Array,
    ) -> tuple[Metrics, dict[str, Array]]:
        """One batch under the members' (params, model_state), see `step.eval_step`.

        rows: [B, k], or each member's own, [S, B, k].
        """

        def one(params: PyTree, model_state: PyTree, rows: Array) -> Any:
            batch = eval_batch(split, over_data(rows), mask, self._recipe, normalizer)
            return eval_step(params, model_state, batch, model=self.model)

        return jax.vmap(one, in_axes=(0, 0, 0 if rows.ndim == 3 else None))(*weights, rows)

    def predict(
        self, weights: tuple[PyTree, PyTree], images: Array, normalizer: Normalizer
    ) -> dict[str, Array]:
        """images: [B, H, W] uint8 -> {head: [S, B, C] log-probabilities}."""
        pixels = normalize(images.astype(jnp.result_type(float)) / 255, normalizer)
        return self.log_probabilities(weights, pixels)

    def soften(self, trained: Teacher, images: Array, temperature: float) -> dict[str, Array]:
        """images: [B, H, W] in [0, 1] -> {head: [B, C]} probabilities at that temperature.

        The mean over the members, whose slices are looped over, as they were when it was trained.
        """
        pixels = normalize(images, trained.normalizer)
        said = [self.log_probabilities(weights, pixels) for weights in trained.weights]
        soft = jax.tree.map(lambda x: jax.nn.softmax(x / temperature), said)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts).mean(axis=0), *soft)

    def log_probabilities(self, weights: tuple[PyTree, PyTree], pixels: Array) -> dict[str, Array]:
        """pixels: [B, H, W] float, normalised -> {head: [S, B, C]}."""
        nobody = {head: jnp.zeros(len(pixels), jnp.int32) for head in self._recipe.heads}
        batch = Batch(pixels, nobody, jnp.ones(len(pixels), pixels.dtype))
        step = functools.partial(eval_step, model=self.model)
        return jax.vmap(lambda params, model_state: step(params, model_state, batch)[1])(*weights)

    def track(self, state: TrainState, score: Array, epoch: Array | int) -> TrainState:
        """`step.track_best` for each member; score: [S]."""
        rule = functools.partial(
            track_best,
            patience=self._config.early_stopping.patience,
            min_delta=self._config.early_stopping.min_delta,
        )
        return jax.vmap(rule, in_axes=(0, 0, None))(state, score, epoch)

    def chosen(self, state: TrainState) -> tuple[PyTree, PyTree]:
        """The weights a run is judged by, as `track` chose them."""
        return state.best.params, state.best.model_state


def _key(seed: Array, stream: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), stream)
