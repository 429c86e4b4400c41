"""Optimisers and schedules without the learning rate, which may differ between members."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax import contrib

from digits_jax.errors import UserError, check_choice
from digits_jax.types import Array, Hyper, PyTree

OPTIMIZERS = ("adam", "sgd", "muon")
SCHEDULES = ("constant", "step", "cosine", "one_cycle")
OVER_ALL_EPOCHS = ("cosine", "one_cycle")  # whose shape depends on how many there are


def transformation(optimizer: ConfigDict) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015), SGD with (Nesterov) momentum, or Muon, as optax names them.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes the momentum of each
    matrix orthogonal, a convolution's [H * W * I, O] as well. Its updates are scaled to Adam's size
    (Liu et al. 2025, arXiv:2502.16982), for Adam moves all weights that mix no channels: biases,
    BatchNorm, depthwise kernels and convolutions of grey images. The heads are Muon's, unlike
    Jordan's, and so are `momentum` and `nesterov`.

    Updates point uphill; `apply_gradient` multiplies them by minus the learning rate.
    """
    check_choice("optimizer.name", optimizer.name, OPTIMIZERS)
    if optimizer.name == "sgd":
        return optax.trace(decay=optimizer.momentum, nesterov=optimizer.nesterov)
    adam = optax.scale_by_adam(optimizer.b1, optimizer.b2)
    if optimizer.name == "adam":
        return adam
    rules = {True: _muon(optimizer), False: adam}
    return optax.partition(rules, lambda params: jax.tree.map(_mixes, params))


def _mixes(weight: Array) -> bool:
    return weight.ndim > 1 and weight.shape[-2] > 1


def _muon(optimizer: ConfigDict) -> optax.GradientTransformation:
    def matrix(w: Array) -> contrib.MuonDimensionNumbers:
        return contrib.MuonDimensionNumbers(tuple(range(w.ndim - 1)), w.ndim - 1)

    def scale(update: Array) -> Array:
        columns = update.shape[-1]
        return 0.2 * max(update.size // columns, columns) ** 0.5 * update

    return optax.chain(
        contrib.scale_by_muon(
            beta=optimizer.momentum,
            nesterov=optimizer.nesterov,
            weight_dimension_numbers=lambda params: jax.tree.map(matrix, params),
        ),
        optax.stateless_with_tree_map(lambda update, _: scale(update)),
    )


def rate_schedule(
    optimizer: ConfigDict, epochs: int, steps_per_epoch: int
) -> Callable[[Array | int], Array | float]:
    """step [] -> the factor of the peak learning rate, at most 1.

    `warmup` epochs rise linearly; then `constant`, `step` (times `step_factor` at each of
    `step_epochs`) or `cosine` (down to `final`). `one_cycle` (Smith and Topin 2017,
    arXiv:1708.07120) rises from 1/25 over `warmup` epochs, three tenths of the run if 0, by a
    cosine, and falls to `final`.
    """
    check_choice("optimizer.schedule", optimizer.schedule, SCHEDULES)
    total = epochs * steps_per_epoch
    warmup = round(optimizer.warmup * steps_per_epoch)
    if not 0 <= optimizer.warmup <= epochs:
        raise UserError(
            f"optimizer.warmup: {optimizer.warmup} epochs do not fit into epochs={epochs}"
        )
    if optimizer.schedule == "one_cycle":
        rise = warmup or max(round(0.3 * total), 1)
        return optax.join_schedules(
            [_cosine(1 / 25, 1.0, rise), _cosine(1.0, optimizer.final, total - rise)], [rise]
        )
    if optimizer.schedule == "cosine":
        body = _cosine(1.0, optimizer.final, total - warmup)
    elif optimizer.schedule == "step":
        drops = {
            round(epoch * steps_per_epoch) - warmup: optimizer.step_factor
            for epoch in optimizer.step_epochs
        }
        body = optax.piecewise_constant_schedule(1.0, drops)
    else:
        body = optax.constant_schedule(1.0)
    if not warmup:
        return body
    return optax.join_schedules([optax.linear_schedule(1 / warmup, 1.0, warmup), body], [warmup])


def _cosine(start: float, end: float, steps: int) -> optax.Schedule:
    wave = optax.cosine_decay_schedule(1.0, max(steps, 1))
    return lambda step: end + (start - end) * wave(step)


def apply_gradient(
    tx: optax.GradientTransformation,
    grads: PyTree,
    opt_state: PyTree,
    params: PyTree,
    hyper: Hyper,
    factor: Array | float,
    decoupled: bool,
    sparse: bool = False,
) -> tuple[PyTree, PyTree]:
    """-> (params, opt_state) after one update at the rate `hyper.learning_rate * factor`.

    Weight decay touches weights alone, neither biases nor BatchNorm: coupled, it is the gradient of
    lambda/2 |w|^2 and passes through the optimiser; decoupled (Loshchilov and Hutter 2019,
    arXiv:1711.05101), it shrinks the weights after it. `sparse`: a weight that is zero stays zero.
    """
    decay = jax.tree.map(
        lambda w: hyper.weight_decay * w if w.ndim > 1 else jnp.zeros_like(w), params
    )
    if not decoupled:
        grads = jax.tree.map(jnp.add, grads, decay)
    updates, opt_state = tx.update(grads, opt_state, params)
    if decoupled:
        updates = jax.tree.map(jnp.add, updates, decay)
    if sparse:
        updates = jax.tree.map(
            lambda w, u: jnp.where((w == 0) & (w.ndim > 1), 0, u), params, updates
        )
    rate = hyper.learning_rate * factor
    return jax.tree.map(lambda w, u: w - (rate * u).astype(w.dtype), params, updates), opt_state
