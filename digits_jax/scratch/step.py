"""The training step of the NumPy engine; the signatures are those of `digits_jax.core.step`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from digits_jax.core.step import Program, first_state
from digits_jax.scratch import layers
from digits_jax.scratch.network import backward, forward, initialize, predict
from digits_jax.scratch.optim import Tree, each
from digits_jax.types import Hyper, Metrics, TrainState, Weights

_MOMENTUM = 0.9  # of BatchNorm's running statistics


def init_state(rng: np.random.Generator, program: Program, dtype: DTypeLike) -> TrainState:
    """The state before the first step; every weight is drawn from `rng`."""
    shape = program.pipeline.recipe.shape
    weights = Weights(*initialize(rng, program.model, shape, dtype))
    return first_state(weights, program.tx.init(weights.params), program)


def train_step(
    state: TrainState,
    batch: Any,  # a Batch of NumPy arrays
    rng: np.random.Generator,
    hyper: Hyper,
    program: Program,
    masks: Callable[[tuple[int, ...]], np.ndarray | None] | None = None,
) -> tuple[TrainState, Metrics]:
    """One gradient step. batch.images: [B, H, W]; `rng` draws the masks of dropout.

    masks: shape -> the mask of dropout, instead of a random one. Otherwise as
    `digits_jax.core.step.train_step`.
    """
    if masks is None:
        masks = functools.partial(_mask, rng, float(hyper.dropout), batch.images.dtype)
    logits, tape, statistics = forward(program.model, state.params, batch.images, masks)
    smoothing = float(hyper.label_smoothing)
    # The loss is the mean over the examples that count, and over the heads.
    share = batch.mask / (batch.mask.sum() * len(logits))
    losses, dlogits = np.zeros_like(batch.mask), {}
    for head, scores in logits.items():
        loss, saved = layers.softmax_cross_entropy(scores, batch.labels[head], smoothing)
        (dlogits[head],) = layers.softmax_cross_entropy_backward(share, saved)
        losses += loss / len(logits)
    gradients = backward(dlogits, tape)

    # The gradient of L2, of kernels alone: of neither biases nor BatchNorm.
    decay = each(lambda w: float(hyper.weight_decay) * (w.ndim > 1) * w, state.params)
    if not program.decoupled:
        gradients = each(np.add, gradients, decay)
    direction, opt_state = program.tx.update(gradients, state.opt_state)
    if program.decoupled:
        direction = each(np.add, direction, decay)
    rate = float(hyper.learning_rate) * float(program.schedule(state.step))
    params = each(lambda w, d: w - rate * d, state.params, direction)

    t, average = float(state.step), state.ema
    if program.ema:
        average = _moved(state.ema, params, min(program.ema, (1 + t) / (10 + t)))
    state = dataclasses.replace(
        state,
        step=np.asarray(state.step + 1, np.int32),
        params=params,
        model_state=_moved(state.model_state, statistics, _MOMENTUM),
        opt_state=opt_state,
        ema=average,
    )
    return state, measure(logits, losses, batch)


def _moved(average: Tree, values: Tree, momentum: float) -> Tree:
    """An exponential moving average, after one more value."""
    return each(lambda a, x: momentum * a + (1 - momentum) * x, average, values)


def _mask(
    rng: np.random.Generator, rate: float, dtype: DTypeLike, shape: tuple[int, ...]
) -> np.ndarray | None:
    """[*shape]: 0 with probability `rate`, else 1 / (1 - rate); None for a rate of 0."""
    if rate == 0:
        return None
    keep = rng.random(shape, np.float32) >= rate
    return keep * np.asarray(1 / (1 - rate), dtype)


def measure(logits: Mapping[str, np.ndarray], losses: np.ndarray, batch: Any) -> Metrics:
    """Sums over the batch. logits: {head: [B, C]}; losses: [B]."""
    right = {head: scores.argmax(axis=1) == batch.labels[head] for head, scores in logits.items()}
    loss = (losses * batch.mask).sum()
    return Metrics(
        loss=loss,
        correct={head: (hit * batch.mask).sum() for head, hit in right.items()},
        examples=batch.mask.sum(),
        finite=np.isfinite(loss).astype(batch.mask.dtype),
    )


def eval_step(
    weights: Weights, batch: Any, program: Program
) -> tuple[Metrics, dict[str, np.ndarray]]:
    """-> (metrics of the batch, {head: [B, C] log-probabilities}), without dropout."""
    logits = predict(program.model, *weights, batch.images)
    losses, log_p = np.zeros_like(batch.mask), {}
    for head, scores in logits.items():
        loss, saved = layers.softmax_cross_entropy(scores, batch.labels[head])
        losses += loss / len(logits)
        log_p[head] = saved[0]
    return measure(logits, losses, batch), log_p
