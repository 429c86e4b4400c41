"""One step of one member: pure functions of arrays, neither jitted nor vmapped here."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from digits_jax.core.losses import cross_entropy, distillation
from digits_jax.core.metrics import measure
from digits_jax.core.optim import apply_gradient
from digits_jax.types import Array, Batch, Best, Hyper, Metrics, PyTree, TrainState


def init_state(
    key: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int],
    ema: float = 0.0,
) -> TrainState:
    """The state before the first step; every weight is drawn from `key`."""
    images = jnp.zeros((1, *image_shape), jnp.result_type(float))
    variables = model.init(key, images, train=False, dropout_rate=0.0)
    params, model_state = variables["params"], variables.get("batch_stats", {})
    worst = jnp.full((), -jnp.inf, jnp.result_type(float))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        ema=params if ema else None,
        best=Best(
            params=params,
            model_state=model_state,
            score=worst,
            epoch=jnp.zeros((), jnp.int32),
            reference=worst,
            wait=jnp.zeros((), jnp.int32),
            stopped=jnp.zeros((), bool),
        ),
    )


def starting(state: TrainState, params: PyTree, model_state: PyTree) -> TrainState:
    """A first state with those weights instead."""
    best = dataclasses.replace(state.best, params=params, model_state=model_state)
    ema = None if state.ema is None else params
    return dataclasses.replace(state, params=params, model_state=model_state, ema=ema, best=best)


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    hyper: Hyper,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    decoupled: bool = False,
    ema: float = 0.0,
    bfloat16: bool = False,
    drops: bool = True,
    distill: tuple[float, float] = (0.0, 1.0),
    sparse: bool = False,
) -> tuple[TrainState, Metrics]:
    """One gradient step. batch.images: [B, H, W]; `key` feeds dropout alone.

    Returns the next state and the metrics of the batch as it was trained on. `ema` is the decay
    of the averaged weights, shortened at the start to (1 + t) / (10 + t). With `bfloat16` the
    network computes in it; weights, BatchNorm's statistics, the loss and the update do not
    (Micikevicius et al. 2018, arXiv:1710.03740; bfloat16 needs no scaling of the loss).
    Without `drops` there is no dropout, whatever `hyper` says, and no bits are drawn for it.
    `distill` is (weight, temperature): with batch.targets the loss is (1 - weight) times that of
    the labels plus weight times `losses.distillation`. `sparse`: as in `apply_gradient`.
    """
    chex.assert_rank(batch.images, 3)
    chex.assert_equal_shape_prefix((batch.images, batch.mask, *batch.labels.values()), 1)

    apply: Any = model.apply
    full = batch.images.dtype
    short = jnp.bfloat16 if bfloat16 else full

    def loss_fn(params: PyTree) -> tuple[Array, tuple[Any, Array, PyTree]]:
        logits, updates = apply(
            {"params": _cast(params, short), "batch_stats": state.model_state},
            batch.images.astype(short),
            train=True,
            dropout_rate=hyper.dropout if drops else 0.0,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        logits = _cast(logits, full)
        losses = cross_entropy(logits, batch.labels, hyper.label_smoothing)
        if batch.targets is not None:
            weight, temperature = distill
            soft = distillation(logits, batch.targets, temperature)
            losses = (1 - weight) * losses + weight * soft
        loss = (losses * batch.mask).sum() / batch.mask.sum()
        return loss, (logits, losses, updates.get("batch_stats", {}))

    grads, (logits, losses, model_state) = jax.grad(loss_fn, has_aux=True)(state.params)
    factor = schedule(state.step)
    params, opt_state = apply_gradient(
        tx, grads, state.opt_state, state.params, hyper, factor, decoupled, sparse
    )
    average = state.ema
    if ema:
        t = state.step.astype(jnp.result_type(float))
        decay = jnp.minimum(ema, (1 + t) / (10 + t))
        average = jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, state.ema, params)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        ema=average,
    )
    return state, measure(logits, losses, batch)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def eval_step(
    params: PyTree, model_state: PyTree, batch: Batch, *, model: nn.Module
) -> tuple[Metrics, dict[str, Array]]:
    """-> (metrics of the batch, {head: [B, C] log-probabilities}), without dropout."""
    apply: Any = model.apply
    logits = apply(
        {"params": params, "batch_stats": model_state},
        batch.images,
        train=False,
        dropout_rate=0.0,
    )
    metrics = measure(logits, cross_entropy(logits, batch.labels), batch)
    return metrics, {head: jax.nn.log_softmax(scores) for head, scores in logits.items()}


def current(state: TrainState) -> tuple[PyTree, PyTree]:
    """-> (params, model_state) to evaluate: the averaged weights where there are any."""
    return (state.params if state.ema is None else state.ema), state.model_state


def track_best(
    state: TrainState,
    score: Array,
    epoch: Array | int,
    *,
    patience: int = 0,
    min_delta: float = 0.0,
) -> TrainState:
    """Remembers the current weights if `score` [] is the highest so far; ties go to the earlier.

    Stops the member once `patience` epochs (0: never) have passed without `score` beating the
    reference by more than `min_delta`; what a stopped member does no longer counts.
    """
    best = state.best
    params, model_state = current(state)
    improved = (score > best.score) & ~best.stopped
    risen = (score > best.reference + min_delta) & ~best.stopped
    wait = jnp.where(risen, 0, best.wait + 1)

    def pick(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(improved, a, b), new, old)

    return dataclasses.replace(
        state,
        best=Best(
            params=pick(params, best.params),
            model_state=pick(model_state, best.model_state),
            score=pick(score, best.score),
            epoch=pick(epoch, best.epoch),
            reference=jnp.where(risen, score, best.reference),
            wait=wait,
            stopped=best.stopped | ((wait >= patience) if patience else jnp.zeros((), bool)),
        ),
    )
