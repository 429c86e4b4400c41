"""The step of `core.step`, vmapped over the members of a slice, and the batches that it takes.

A run trains a population of members, `population.slice` of them at once: a slice. All randomness is
derived from a member's seed and the step or the epoch with `fold_in`. The state holds no keys, so
a resumed run is identical. `Shared` and scalars are the same for all members; all other arrays have
a leading axis of members, S.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from digits_jax import models
from digits_jax.core import optim
from digits_jax.core.step import (
    Program,
    apply,
    eval_step,
    init_state,
    log_probabilities,
    track_best,
    train_step,
)
from digits_jax.data import batches
from digits_jax.models import layers
from digits_jax.types import (
    Array,
    Batch,
    Carry,
    Hyper,
    Members,
    Metrics,
    Normalizer,
    PrecomputedTargets,
    Shared,
    Teacher,
    TrainState,
    Weights,
)

JITTABLE = True  # these functions are meant to be jitted
_INIT, _ORDER, _STEP = range(3)  # streams of a member's seed


def program(
    config: ConfigDict, pipeline: batches.Pipeline, teacher: Program | None = None
) -> Program:
    """What of `config` is static. teacher: the program of the run that it learns from."""
    optimizer = config.optimizer
    return Program(
        model=models.from_config(config, pipeline.recipe.heads),
        tx=optim.transformation(optimizer),
        schedule=optim.rate_schedule(optimizer, config.epochs, pipeline.steps_per_epoch),
        pipeline=pipeline,
        ema=optimizer.ema,
        decoupled=optimizer.decoupled,
        sparse=bool(config.prune.run),
        bfloat16=config.bfloat16,
        dropout=config.model.dropout > 0,
        distill_weight=config.distill.weight,
        temperature=config.distill.temperature,
        patience=config.early_stopping.patience,
        min_delta=config.early_stopping.min_delta,
        teacher=teacher,
    )


def hyper_of(config: ConfigDict) -> Hyper:
    """The config's hyperparameters, as floats."""
    return Hyper(
        learning_rate=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        dropout=config.model.dropout,
        label_smoothing=config.label_smoothing,
    )


def members_of(config: ConfigDict, ids: Sequence[int]) -> Members:
    """Member i has the seed `seed + i` and leaves out fold i % folds.

    The hyperparameters are the config's.
    """
    dtype = jnp.result_type(float)
    return Members(
        seed=np.asarray([config.seed + i for i in ids], np.uint32),
        fold=np.asarray([i % max(config.data.folds, 1) for i in ids], np.int32),
        hyper=jax.tree.map(lambda value: np.full(len(ids), value, dtype), hyper_of(config)),
    )


def slice_size(size: int, backend: str, devices: int = 1, shared: bool = False) -> int:
    """How many of `size` members to vmap at once.

    On CPU one per device: vmap of three takes twice as long as a loop. On GPU and TPU the largest
    multiple of `devices`; one per device if several devices share each batch (`shared`), since XLA
    would gather it for convolutions of several members.
    """
    one_each = devices if size >= devices else 1
    return one_each if backend == "cpu" or shared else size - size % devices or size


def slices(size: int, width: int) -> list[range]:
    """range(size) in chunks of `width`; the last may be shorter."""
    return [range(start, min(start + width, size)) for start in range(0, size, width)]


def init_keys(members: Members) -> jax.Array:
    """[S] keys, of the members' first weights."""
    return jax.vmap(lambda seed: _key(seed, _INIT))(members.seed)


def init(members: Members, *, program: Program) -> TrainState:
    """The members' states before the first step."""
    return jax.vmap(functools.partial(init_state, program=program))(init_keys(members))


def shapes(members: Members, *, program: Program) -> TrainState:
    """`init` as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(functools.partial(init, program=program), members)


def order(members: Members, epoch: Array | int, *, program: Program, n: int) -> Array:
    """[S, steps * B] int32: the examples of an epoch of `n`, in each member's own order."""

    def one(seed: Array) -> Array:
        return batches.epoch_order(_key(seed, _ORDER), epoch, n, program.pipeline.batch_size)

    return jax.vmap(one)(members.seed)


def train_steps(carry: Carry, shared: Shared, *, program: Program, steps: int) -> Carry:
    """The next `steps` steps of the epoch; their metrics are added to the totals.

    Each step makes a batch for each member (`member_batch`) and maps `step.train_step` over the
    members. Several steps are one `lax.scan`. On CPU use steps=1: a convolution's gradient inside a
    scan is 20 to 46 times slower there (https://github.com/jax-ml/jax/issues/12868).
    """
    make_batch = jax.vmap(functools.partial(member_batch, program=program), in_axes=(0, None))
    update = jax.vmap(functools.partial(train_step, program=program))

    def one_step(carry: Carry, _: None = None) -> tuple[Carry, None]:
        batch, dropout_keys = make_batch(carry, shared)
        with layers.members(len(carry.members.seed)):
            state, new = update(carry.state, batch, dropout_keys, carry.members.hyper)
        totals = jax.tree.map(jnp.add, carry.totals, new)
        return carry._replace(state=state, totals=totals), None

    if steps == 1:
        return one_step(carry)[0]
    return jax.lax.scan(one_step, carry, length=steps)[0]


def member_batch(carry: Carry, shared: Shared, *, program: Program) -> tuple[Batch, jax.Array]:
    """-> (one member's next batch, the key of its dropout). carry: of one member, not vmapped.

    The batch has targets if there is a teacher.
    """
    pipeline, split = program.pipeline, shared.split.of(carry.members.fold)
    key = jax.random.fold_in(_key(carry.members.seed, _STEP), carry.state.step)
    key_pairs, key_augment, key_dropout = jax.random.split(key, 3)
    rows = batches.next_rows(split, carry.order, carry.state.step, key_pairs, pipeline)
    if isinstance(shared.teacher, PrecomputedTargets):
        batch = batches.precomputed_batch(
            split, rows, shared.normalizer, shared.teacher, key_augment, pipeline
        )
        return batch, key_dropout
    pixels = batches.distorted(split, rows, key_augment, pipeline)
    batch = batches.batch_of(split, rows, pixels, shared.normalizer, pipeline.recipe)
    if shared.teacher and program.teacher:
        targets = teacher_targets(
            shared.teacher, pixels, program.temperature, program=program.teacher
        )
        batch = batch._replace(targets=targets)
    return batch, key_dropout


def teacher_targets(
    teacher: Teacher, images: Array, temperature: float, *, program: Program
) -> dict[str, Array]:
    """The teacher's probabilities at `temperature`, the mean over its members.

    images: [B, H, W] in [0, 1] -> {head: [B, C]}. program: the teacher's own.
    """
    pixels = batches.normalize(images, teacher.normalizer)
    log_p = [_log_probabilities(weights, pixels, program) for weights in teacher.weights]
    soft = jax.tree.map(lambda x: jax.nn.softmax(x / temperature), log_p)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts).mean(axis=0), *soft)


def evaluate(
    population: tuple[Weights, Members], shared: Shared, *, program: Program
) -> tuple[Metrics, dict[str, Array]]:
    """`step.eval_step` of each member, on all of `shared.split` as one batch."""

    def one(weights: Weights, fold: Array) -> tuple[Metrics, dict[str, Array]]:
        split, mask = shared.split.of(fold), jnp.asarray(shared.mask)
        batch = batches.eval_batch(split, mask, shared.normalizer, program.pipeline.recipe)
        return eval_step(weights, batch, program)

    weights, members = population
    with layers.members(len(members.seed)):
        return jax.vmap(one)(weights, members.fold)


def predict(
    weights: Weights, images: Array, normalizer: Normalizer, *, program: Program
) -> dict[str, Array]:
    """images: [B, H, W] uint8 -> {head: [S, B, C] log-probabilities}."""
    pixels = batches.normalize(batches.to_float(images), normalizer)
    return _log_probabilities(weights, pixels, program)


def _log_probabilities(weights: Weights, pixels: Array, program: Program) -> dict[str, Array]:
    with layers.members(len(jax.tree.leaves(weights)[0])):
        return jax.vmap(lambda one: log_probabilities(apply(program.model, one, pixels)[0]))(
            weights
        )


def track(state: TrainState, score: Array, epoch: Array | int, *, program: Program) -> TrainState:
    """`step.track_best` for each member; score: [S]."""
    return jax.vmap(lambda one, its_score: track_best(one, its_score, epoch, program))(state, score)


def _key(seed: Array, stream: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), stream)
