"""One training step of one network: pure functions of arrays, neither jitted nor vmapped here.

`train_step` is the whole of it: `apply`, the loss, its gradient, `optim.apply_gradient`. The
members of a population are mapped over it in `population`, which also makes its batches.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.typing import DTypeLike

from digits_jax.core.optim import apply_gradient
from digits_jax.data.batches import Pipeline
from digits_jax.types import Array, Batch, Best, Hyper, Metrics, PyTree, TrainState, Weights

_CONSTANT = optax.constant_schedule(1.0)


@dataclasses.dataclass(frozen=True)
class Program:
    """All that is static in a run; a static argument of `jax.jit`, so it is hashable.

    ema: the decay of the averaged weights, 0 without. decoupled, sparse: as in `apply_gradient`.
    bfloat16: the network computes in it; weights, BatchNorm's statistics, the loss and the update
    do not (Micikevicius et al. 2018, arXiv:1710.03740; bfloat16 needs no scaling of the loss).
    dropout: False if no member uses it; then no random bits are drawn. distill_weight,
    temperature: used if the batch has targets. patience (epochs, 0: never), min_delta: of early
    stopping. teacher: of the teacher that predicts in every step.
    """

    model: Any  # a Flax module; of the NumPy engine its own, and so is `tx`
    tx: Any  # an optax.GradientTransformation
    schedule: optax.Schedule = _CONSTANT
    pipeline: Pipeline = dataclasses.field(default_factory=Pipeline)
    ema: float = 0.0
    decoupled: bool = False
    sparse: bool = False
    bfloat16: bool = False
    dropout: bool = True
    distill_weight: float = 0.0
    temperature: float = 1.0
    patience: int = 0
    min_delta: float = 0.0
    teacher: "Program | None" = None


def init_state(key: jax.Array, program: Program) -> TrainState:
    """The state before the first step; every weight is drawn from `key`."""
    images = jnp.zeros((1, *program.pipeline.recipe.shape), jnp.result_type(float))
    variables = program.model.init(key, images, train=False, dropout_rate=0.0)
    weights = Weights(variables["params"], variables.get("batch_stats", {}))
    return first_state(weights, program.tx.init(weights.params), program)


def first_state(weights: Weights, opt_state: PyTree, program: Program) -> TrainState:
    """The state before the first step, with these weights and this state of the optimiser."""
    worst, zero = jnp.full((), -jnp.inf, jnp.result_type(float)), jnp.zeros((), jnp.int32)
    best = Best(*weights, worst, zero, reference=worst, wait=zero, stopped=jnp.zeros((), bool))
    ema = weights.params if program.ema else None
    return TrainState(zero, *weights, opt_state, ema, best)


def train_step(
    state: TrainState, batch: Batch, key: jax.Array, hyper: Hyper, program: Program
) -> tuple[TrainState, Metrics]:
    """One gradient step. -> (the next state, the metrics of the batch).

    batch.images: [B, H, W]; key: of dropout. The loss is the cross-entropy; with batch.targets it
    is (1 - w) * cross_entropy + w * distillation, w = distill_weight. The decay of the averaged
    weights is min(ema, (1 + t) / (10 + t)).
    """
    chex.assert_rank(batch.images, 3)
    chex.assert_equal_shape_prefix((batch.images, batch.mask, *batch.labels.values()), 1)
    dtype = batch.images.dtype
    compute_dtype = jnp.bfloat16 if program.bfloat16 else dtype
    dropout = (hyper.dropout if program.dropout else 0.0, key)

    def loss_fn(params: PyTree) -> tuple[Array, tuple[Mapping[str, Array], Array, PyTree]]:
        weights = Weights(_cast(params, compute_dtype), state.model_state)
        images = batch.images.astype(compute_dtype)
        logits, model_state = apply(program.model, weights, images, dropout)
        logits = _cast(logits, dtype)
        losses = cross_entropy(logits, batch.labels, hyper.label_smoothing)
        if batch.targets is not None:
            soft = distillation(logits, batch.targets, program.temperature)
            losses = (1 - program.distill_weight) * losses + program.distill_weight * soft
        loss = (losses * batch.mask).sum() / batch.mask.sum()
        return loss, (logits, losses, model_state)

    grads, (logits, losses, model_state) = jax.grad(loss_fn, has_aux=True)(state.params)
    factor = program.schedule(state.step)
    options = {"decoupled": program.decoupled, "sparse": program.sparse}
    params, opt_state = apply_gradient(
        program.tx, grads, state.opt_state, state.params, hyper, factor, **options
    )
    ema = state.ema
    if program.ema:
        t = state.step.astype(jnp.result_type(float))
        decay = jnp.minimum(program.ema, (1 + t) / (10 + t))
        ema = jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, ema, params)
    state = TrainState(state.step + 1, params, model_state, opt_state, ema, state.best)
    return state, measure(logits, losses, batch)


def _cast(tree: PyTree, dtype: DTypeLike) -> PyTree:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def apply(
    model: nn.Module,
    weights: Weights,
    images: Array,
    dropout: tuple[Array | float, jax.Array] | None = None,
) -> tuple[Mapping[str, Array], PyTree]:
    """images: [B, H, W] float, normalised -> ({head: [B, C] logits}, the next model_state).

    dropout: (rate, key) in training, where BatchNorm uses the statistics of the batch; None to
    predict.
    """
    variables = {"params": weights.params, "batch_stats": weights.model_state}
    if dropout is None:
        logits: Any = model.apply(variables, images, train=False, dropout_rate=0.0)
        return logits, weights.model_state
    rate, key = dropout
    options: Any = {"rngs": {"dropout": key}, "mutable": ["batch_stats"]}
    logits, updates = model.apply(variables, images, train=True, dropout_rate=rate, **options)
    return logits, updates.get("batch_stats", {})


def eval_step(weights: Weights, batch: Batch, program: Program) -> tuple[Metrics, dict[str, Array]]:
    """-> (metrics of the batch, {head: [B, C] log-probabilities})."""
    logits, _ = apply(program.model, weights, batch.images)
    metrics = measure(logits, cross_entropy(logits, batch.labels), batch)
    return metrics, log_probabilities(logits)


def log_probabilities(logits: Mapping[str, Array]) -> dict[str, Array]:
    """{head: [..., C]} of logits."""
    return {head: jax.nn.log_softmax(scores) for head, scores in logits.items()}


def cross_entropy(
    logits: Mapping[str, Array], labels: Mapping[str, Array], label_smoothing: Array | float = 0.0
) -> Array:
    """logits: {head: [B, C]}; labels: {head: [B] int} -> [B], the mean over heads.

    Label smoothing s mixes the one-hot target with the uniform one: (1 - s) y + s / C (Szegedy et
    al. 2016, arXiv:1512.00567); it may be traced.
    """
    losses = []
    for head, scores in logits.items():
        log_p = jax.nn.log_softmax(scores)
        picked = jnp.take_along_axis(log_p, labels[head][:, None], axis=1)[:, 0]
        losses.append(-(1.0 - label_smoothing) * picked - label_smoothing * log_p.mean(axis=1))
    return jnp.stack(losses).mean(axis=0)


def distillation(
    logits: Mapping[str, Array], targets: Mapping[str, Array], temperature: float
) -> Array:
    """The distillation loss, T^2 KL(targets || softmax(logits / T)).

    Hinton et al. 2015, arXiv:1503.02531. logits: {head: [B, C]}; targets: {head: [B, C]}
    probabilities at the same temperature -> [B], the mean over heads.
    """
    losses = []
    for head, scores in logits.items():
        log_q, p = jax.nn.log_softmax(scores / temperature), targets[head]
        losses.append((jax.scipy.special.xlogy(p, p) - p * log_q).sum(axis=1))
    return temperature**2 * jnp.stack(losses).mean(axis=0)


def measure(logits: Mapping[str, Array], losses: Array, batch: Batch) -> Metrics:
    """Sums over the examples that count. logits: {head: [B, C]}; losses: [B]."""
    right = {head: scores.argmax(axis=1) == batch.labels[head] for head, scores in logits.items()}
    loss = (losses * batch.mask).sum()
    return Metrics(
        loss=loss,
        correct={head: (hit * batch.mask).sum() for head, hit in right.items()},
        examples=batch.mask.sum(),
        finite=jnp.isfinite(loss).astype(batch.mask.dtype),
    )


def zero_metrics(heads: Iterable[str], shape: tuple[int, ...] = ()) -> Metrics:
    """Sums over no examples; a buffer for each leaf, since they are donated."""

    def zero() -> Array:
        return jnp.zeros(shape, jnp.result_type(float))

    return Metrics(zero(), {head: zero() for head in heads}, zero(), zero())


def eval_weights(state: TrainState) -> Weights:
    """The weights to evaluate after an epoch: the averaged ones if `optimizer.ema` is on."""
    return Weights(state.params if state.ema is None else state.ema, state.model_state)


def best_weights(state: TrainState) -> Weights:
    """The best weights so far, as `track_best` selected them."""
    return Weights(state.best.params, state.best.model_state)


def track_best(state: TrainState, score: Array, epoch: Array | int, program: Program) -> TrainState:
    """Keeps the weights of this epoch if its validation `score` [] is the highest so far.

    Early stopping: after `patience` epochs without a gain above `min_delta` the member is marked
    as stopped, and nothing is kept any more.
    """
    best, weights = state.best, eval_weights(state)
    improved = (score > best.score) & ~best.stopped
    risen = (score > best.reference + program.min_delta) & ~best.stopped
    wait = jnp.where(risen, 0, best.wait + 1)
    over = (wait >= program.patience) if program.patience else jnp.zeros((), bool)

    def pick(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(improved, a, b), new, old)

    best = Best(
        params=pick(weights.params, best.params),
        model_state=pick(weights.model_state, best.model_state),
        score=pick(score, best.score),
        epoch=pick(epoch, best.epoch),
        reference=jnp.where(risen, score, best.reference),
        wait=wait,
        stopped=best.stopped | over,
    )
    return dataclasses.replace(state, best=best)
