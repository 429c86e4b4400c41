"""Optimisers against optax's own aliases, weight decay and schedules by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from digits_jax.core import optim
from digits_jax.defaults import get_base
from digits_jax.errors import UserError
from digits_jax.types import Hyper


@pytest.fixture
def optimizer():
    return get_base("any", "", ["only"]).optimizer


def hyper(rate, decay=0.0):
    zero = jnp.zeros(())
    return Hyper(jnp.asarray(rate), jnp.asarray(decay), zero, zero)


def ours(optimizer, rate, decay=0.0, steps=5):
    tx = optim.transformation(optimizer)
    params = {"kernel": jnp.asarray([[1.0, -2.0]]), "bias": jnp.asarray([0.5])}
    state = tx.init(params)
    for _ in range(steps):
        grads = jax.grad(loss)(params)
        params, state = optim.apply_gradient(
            tx, grads, state, params, hyper(rate, decay), 1.0, optimizer.decoupled
        )
    return params


def loss(params):
    return (params["kernel"] ** 4).sum() + jnp.sin(params["bias"]).sum()


def theirs(tx, loss=loss, steps=5):
    params = {"kernel": jnp.asarray([[1.0, -2.0]]), "bias": jnp.asarray([0.5])}
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_adam_is_optax_adam(optimizer):
    optimizer.name = "adam"
    chex.assert_trees_all_close(ours(optimizer, 1e-2), theirs(optax.adam(1e-2)), rtol=1e-6)


def test_sgd_is_optax_sgd(optimizer):
    optimizer.update(name="sgd", momentum=0.9, nesterov=True)
    expected = theirs(optax.sgd(1e-2, momentum=0.9, nesterov=True))
    chex.assert_trees_all_close(ours(optimizer, 1e-2), expected, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_numpys_where_channels_mix_and_adam_elsewhere(optimizer, nesterov):
    """Against Jordan's own lines in NumPy, over matrices that are tall and wide."""
    optimizer.update(name="muon", momentum=0.8, nesterov=nesterov, b1=0.7, b2=0.95)
    mixing = {"conv": (3, 3, 4, 8), "wide": (1, 1, 4, 24), "dense": (20, 10)}
    others = {"grey": (3, 3, 1, 16), "depthwise": (3, 3, 1, 8), "bias": (8,)}
    params = {name: jnp.zeros(shape) for name, shape in (mixing | others).items()}
    tx, adam = optim.transformation(optimizer), optax.scale_by_adam(0.7, 0.95)
    state, adams = tx.init(params), adam.init(params)
    momentum = {name: np.zeros(shape) for name, shape in mixing.items()}
    for step in range(1, 5):
        keys = jax.random.split(jax.random.key(step), len(params))
        grads = {
            n: jax.random.normal(k, params[n].shape) for n, k in zip(params, keys, strict=True)
        }
        updates, state = jax.jit(tx.update)(grads, state, params)
        expected, adams = jax.jit(adam.update)(grads, adams)
        for name in others:
            chex.assert_trees_all_close(updates[name], expected[name], rtol=1e-6)
        for name in mixing:
            grad = np.asarray(grads[name], np.float64)
            momentum[name] = m = 0.8 * momentum[name] + 0.2 * grad
            if nesterov:
                m = 0.8 * m / (1 - 0.8 ** (step + 1)) + 0.2 * grad / (1 - 0.8**step)
            update = newton_schulz(m.reshape(-1, m.shape[-1])).reshape(m.shape)
            chex.assert_trees_all_close(updates[name], update, rtol=1e-3, atol=1e-4)


def newton_schulz(matrix):
    """The nearest orthogonal matrix, roughly, as large as Adam's steps are."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return 0.2 * max(matrix.shape) ** 0.5 * x


def test_decoupled_decay_is_adamw_on_weights_alone(optimizer):
    optimizer.update(name="adam", decoupled=True)
    mask = {"kernel": True, "bias": False}
    expected = theirs(optax.adamw(1e-2, weight_decay=0.1, mask=mask))
    chex.assert_trees_all_close(ours(optimizer, 1e-2, 0.1), expected, rtol=1e-6)


def test_coupled_decay_is_the_gradient_of_l2(optimizer):
    optimizer.update(name="adam", decoupled=False)
    penalised = theirs(optax.adam(1e-2), lambda p: loss(p) + 0.1 / 2 * (p["kernel"] ** 2).sum())
    chex.assert_trees_all_close(ours(optimizer, 1e-2, 0.1), penalised, rtol=1e-6)


def factors(optimizer, epochs, per_epoch, steps):
    schedule = optim.rate_schedule(optimizer, epochs, per_epoch)
    return np.asarray([float(schedule(jnp.asarray(s))) for s in steps])


def test_constant_after_warmup(optimizer):
    optimizer.update(schedule="constant", warmup=0.5)
    np.testing.assert_allclose(
        factors(optimizer, 4, 8, [0, 2, 4, 31]), [0.25, 0.25 + 0.75 / 2, 1, 1], rtol=1e-6
    )


def test_cosine(optimizer):
    optimizer.update(schedule="cosine", warmup=0.0, final=0.1)
    values = factors(optimizer, 2, 10, [0, 10, 20])
    np.testing.assert_allclose(values, [1.0, 0.55, 0.1], rtol=1e-6)


def test_step_drops(optimizer):
    optimizer.update(schedule="step", step_epochs=(1, 2), step_factor=0.1)
    values = factors(optimizer, 3, 10, [0, 9, 11, 19, 21])
    np.testing.assert_allclose(values, [1, 1, 0.1, 0.1, 0.01], rtol=1e-5)


def test_one_cycle_rises_and_falls(optimizer):
    optimizer.update(schedule="one_cycle", warmup=0.0, final=0.0)
    values = factors(optimizer, 10, 10, range(101))
    assert values.argmax() == 30
    np.testing.assert_allclose([values[0], values[30], values[100]], [1 / 25, 1, 0], atol=1e-6)
    assert (np.diff(values[:31]) > 0).all()
    assert (np.diff(values[30:]) < 0).all()


def test_names_that_do_not_exist(optimizer):
    optimizer.schedule = "cosin"
    with pytest.raises(UserError, match=r"optimizer\.schedule.*did you mean 'cosine'"):
        optim.rate_schedule(optimizer, 1, 1)
    optimizer.name = "adamm"
    with pytest.raises(UserError, match=r"optimizer\.name.*did you mean 'adam'"):
        optim.transformation(optimizer)


def test_a_warmup_longer_than_the_run(optimizer):
    optimizer.warmup = 3.0
    with pytest.raises(UserError, match="do not fit"):
        optim.rate_schedule(optimizer, 2, 10)
