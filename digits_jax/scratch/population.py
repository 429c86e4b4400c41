"""The NumPy engine: the functions of `digits_jax.core.population`, one member after another.

Orders and batches (pairs, distortion, normalisation) are the JAX engine's, so that both train on
the same examples. Weights and dropout are drawn by NumPy, seeded by the JAX engine's keys.
"""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from digits_jax.core import optim
from digits_jax.core.population import init_keys, member_batch
from digits_jax.core.step import Program
from digits_jax.data import batches
from digits_jax.errors import UserError, check_choice
from digits_jax.scratch import network
from digits_jax.scratch import optim as rules
from digits_jax.scratch.step import eval_step, init_state, train_step
from digits_jax.types import (
    Array,
    Batch,
    Carry,
    Members,
    Metrics,
    Normalizer,
    PyTree,
    Shared,
    TrainState,
    Weights,
)

__all__ = ("evaluate", "init", "predict", "program", "shapes", "train_steps")
JITTABLE = False  # nothing of this engine is to be jitted


def program(
    config: ConfigDict, pipeline: batches.Pipeline, teacher: Program | None = None
) -> Program:
    """As `core.population.program`. Raises UserError for what this engine cannot do."""
    unsupported = {
        "bfloat16": config.bfloat16,
        "prune.run": config.prune.run,
        "distill.teacher": config.distill.teacher,
    }
    for field, value in unsupported.items():
        if value:
            raise UserError(f"config.{field} is for config.engine=jax")
    optimizer = config.optimizer
    schedule = optim.rate_schedule(optimizer, config.epochs, pipeline.steps_per_epoch)
    return Program(
        model=network.build(config.model, pipeline.recipe.heads),
        tx=_rule(optimizer),
        schedule=jax.jit(lambda step: jnp.asarray(schedule(step))),
        pipeline=pipeline,
        ema=optimizer.ema,
        decoupled=optimizer.decoupled,
        patience=config.early_stopping.patience,
        min_delta=config.early_stopping.min_delta,
    )


def init(members: Members, *, program: Program) -> TrainState:
    dtype = jnp.result_type(float)
    return _stack(init_state(_generator(key), program, dtype) for key in init_keys(members))


def train_steps(own: Carry, shared: Shared, *, program: Program, steps: int) -> Carry:
    states, totals = [], []
    for m in range(len(own.members.seed)):
        member = _part(_numpy(own), m)
        for _ in range(steps):
            batch, key = _drawing(program)(member, shared)
            batch, hyper = _numpy(batch), member.members.hyper
            state, new = train_step(member.state, batch, _generator(key), hyper, program)
            member = member._replace(state=state, totals=jax.tree.map(np.add, member.totals, new))
        states.append(member.state)
        totals.append(member.totals)
    return own._replace(state=_stack(states), totals=_stack(totals))


def evaluate(
    own: tuple[Weights, Members], shared: Shared, *, program: Program
) -> tuple[Metrics, dict[str, Array]]:
    weights, members = _numpy(own)
    parts = []
    for m in range(_count(weights)):
        split = shared.split.of(members.fold[m])
        batch = _examples(split, shared.mask, shared.normalizer, recipe=program.pipeline.recipe)
        parts.append(eval_step(_part(weights, m), _numpy(batch), program))
    return _stack(parts)


def predict(
    weights: Weights, images: Array, normalizer: Normalizer, *, program: Program
) -> dict[str, Array]:
    pixels = np.asarray(batches.normalize(batches.to_float(images), normalizer))
    none = {head: np.zeros(len(pixels), np.int32) for head in program.pipeline.recipe.heads}
    batch, arrays = Batch(pixels, none, np.ones_like(pixels[:, 0, 0])), _numpy(weights)
    return _stack(eval_step(_part(arrays, m), batch, program)[1] for m in range(_count(arrays)))


def shapes(members: Members, *, program: Program) -> TrainState:
    """`init` as `jax.ShapeDtypeStruct`s."""
    like = init(jax.tree.map(np.zeros_like, members), program=program)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)


@functools.lru_cache(maxsize=2)  # the programs of a run go soon after it
def _drawing(program: Program) -> Callable[[Carry, Shared], tuple[Batch, jax.Array]]:
    return jax.jit(functools.partial(member_batch, program=program))


_examples = jax.jit(batches.eval_batch, static_argnames="recipe")


def _rule(optimizer: ConfigDict) -> rules.Rule:
    check_choice("config.engine=numpy: optimizer.name", optimizer.name, ("adam", "sgd"))
    if optimizer.name == "adam":
        return rules.adam(optimizer.b1, optimizer.b2)
    return rules.sgd(optimizer.momentum, optimizer.nesterov)


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _count(weights: PyTree) -> int:
    return len(jax.tree.leaves(weights)[0])


def _numpy(tree: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, tree)


def _part(tree: PyTree, m: int) -> PyTree:
    return jax.tree.map(lambda x: x[m], tree)


def _stack(trees: Iterable[PyTree]) -> PyTree:
    return jax.tree.map(lambda *x: np.stack(x), *trees)
