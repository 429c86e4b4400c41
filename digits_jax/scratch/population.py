"""The NumPy engine as the loop knows it: members one after the other, batches from JAX."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from digits_jax.core.population import Lessons, Population, Teacher
from digits_jax.data.batches import Normalizer, Split, eval_batch
from digits_jax.data.recipes import Recipe
from digits_jax.errors import UserError, check_choice
from digits_jax.scratch import network
from digits_jax.scratch import optim as rules
from digits_jax.scratch.step import eval_step, init_state, train_step
from digits_jax.types import Array, Batch, Members, Metrics, PyTree, TrainState


class NumpyPopulation(Population):
    """`Population` by the NumPy engine; nothing of it is to be jitted.

    Orders and batches (pairs, distortion, normalisation) are the JAX engine's, so that both train
    on the same examples; weights and dropout are drawn by NumPy, from generators that are seeded by
    the keys of the JAX engine. Raises UserError for what this engine cannot do.
    """

    compiled = False

    def __init__(
        self,
        config: ConfigDict,
        recipe: Recipe,
        steps_per_epoch: int,
        teaching: Population | None = None,
    ):
        super().__init__(config, recipe, steps_per_epoch)
        asked_for = {"bfloat16": config.bfloat16, "prune.run": config.prune.run}
        for field, asked in {**asked_for, "distill.teacher": teaching}.items():
            if asked:
                raise UserError(f"config.{field} is for config.engine=jax")
        self._network = network.build(config.model, recipe.heads)
        self._rule = _rule(config.optimizer)
        self._draw = jax.jit(self.batch)
        self._examples = jax.jit(functools.partial(eval_batch, recipe=recipe))
        self._factor = jax.jit(lambda step: jnp.asarray(self.schedule(step)))

    def init(self, members: Members) -> TrainState:
        dtype, ema = jnp.result_type(float), self._config.optimizer.ema
        shape, network, rule = self._recipe.shape, self._network, self._rule
        return _stack(
            init_state(rng, model=network, tx=rule, image_shape=shape, ema=ema, dtype=dtype)
            for rng in map(_generator, self.init_keys(members))
        )

    def shapes(self, members: Members) -> TrainState:
        like = self.init(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), members))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)

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
        states, sums = [], []
        for m in range(len(members.seed)):
            one, own = _part((jax.tree.map(np.asarray, state), totals), m)
            member, examples = _part(members, m), order[m]
            for i in range(int(start), int(start) + steps):
                batch, key = self._draw(one.step, examples, i, split, normalizer, member)
                one, new = train_step(
                    one,
                    jax.tree.map(np.asarray, batch),
                    _generator(key),
                    member.hyper,
                    model=self._network,
                    tx=self._rule,
                    schedule=self._factor,
                    decoupled=self._config.optimizer.decoupled,
                    ema=self._config.optimizer.ema,
                )
                own = jax.tree.map(np.add, own, new)
            states.append(one)
            sums.append(own)
        return _stack(states), _stack(sums)

    def evaluate(
        self,
        weights: tuple[PyTree, PyTree],
        split: Split,
        normalizer: Normalizer,
        rows: Array,
        mask: Array,
    ) -> tuple[Metrics, dict[str, Array]]:
        arrays: Any = jax.tree.map(np.asarray, weights)
        parts = []
        for m in range(_count(arrays)):
            own = rows[m] if rows.ndim == 3 else rows
            batch = self._examples(split, own, mask, normalizer=normalizer)
            batch = jax.tree.map(np.asarray, batch)
            params, model_state = _part(arrays, m)
            parts.append(eval_step(params, model_state, batch, model=self._network))
        return _stack(parts)

    def log_probabilities(self, weights: tuple[PyTree, PyTree], pixels: Array) -> dict[str, Array]:
        nobody = {head: np.zeros(len(pixels), np.int32) for head in self._recipe.heads}
        batch = Batch(np.asarray(pixels), nobody, np.ones(len(pixels), pixels.dtype))
        arrays: Any = jax.tree.map(np.asarray, weights)
        members = (_part(arrays, m) for m in range(_count(arrays)))
        return _stack(
            eval_step(params, model_state, batch, model=self._network)[1]
            for params, model_state in members
        )


def _rule(optimizer: ConfigDict) -> rules.Rule:
    check_choice("config.engine=numpy: optimizer.name", optimizer.name, ("adam", "sgd"))
    if optimizer.name == "adam":
        return rules.adam(optimizer.b1, optimizer.b2)
    return rules.sgd(optimizer.momentum, optimizer.nesterov)


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _count(weights: PyTree) -> int:
    return len(jax.tree.leaves(weights)[0])


def _part(tree: PyTree, m: int) -> Any:
    return jax.tree.map(lambda x: x[m], tree)


def _stack(trees: Any) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *trees)
