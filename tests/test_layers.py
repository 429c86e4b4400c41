"""Layers against their textbook formulation and numeric gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from digits_jax.errors import UserError
from digits_jax.layers import batch_norm, conv, dense, dropout, float_dtype, max_pool


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 7, 5, 2)])
def test_max_pool_is_flax_max_pool(getkey, shape):
    x = jax.random.normal(getkey(), shape)
    expected = nn.max_pool(x, (2, 2), strides=(2, 2))
    chex.assert_trees_all_equal(max_pool(x), expected)
    weights = jax.random.normal(getkey(), expected.shape)
    ours = jax.grad(lambda x: (max_pool(x) * weights).sum())(x)
    theirs = jax.grad(lambda x: (nn.max_pool(x, (2, 2), strides=(2, 2)) * weights).sum())(x)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6)


def test_max_pool_refuses_what_has_no_2x2():
    with pytest.raises(UserError, match="too small"):
        max_pool(jnp.zeros((1, 1, 4, 1)))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: conv(3),
        lambda: conv(3, padding="VALID", bias=False),
        lambda: dense(3),
        lambda: batch_norm(train=False),
        lambda: batch_norm(train=True),
    ],
    ids=["conv", "conv_valid", "dense", "batch_norm", "batch_norm_train"],
)
def test_numeric_gradients(getkey, x64, layer):
    module = layer()
    x = jax.random.normal(getkey(), (2, 5, 4, 2), float_dtype())
    variables = module.init(getkey(), x)
    rest = {k: v for k, v in variables.items() if k != "params"}

    def f(params, x):
        y, _ = module.apply({"params": params, **rest}, x, mutable=["batch_stats"])
        return jnp.tanh(y)

    check_grads(f, (variables["params"], x), order=1, modes=["rev"])


def test_numeric_gradients_of_pool_and_dropout(getkey, x64):
    x, key = jax.random.normal(getkey(), (2, 4, 5, 2), float_dtype()), getkey()
    check_grads(max_pool, (x,), order=1, modes=["rev"])
    check_grads(lambda x: dropout(x, jnp.asarray(0.3), key), (x,), order=1, modes=["rev"])


def test_batch_norm_by_hand():
    x = jnp.asarray([[1.0], [3.0]])
    module = batch_norm(train=True)
    variables = module.init(jax.random.key(0), x)
    y, updates = module.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, [[-1.0], [1.0]], atol=1e-4)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], [0.9 * 0 + 0.1 * 2], rtol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["var"], [0.9 * 1 + 0.1 * 1], rtol=1e-6)


def test_dropout_keeps_the_mean_and_zeroes_the_rate(getkey):
    x = jnp.ones((100, 200))
    y = dropout(x, jnp.asarray(0.25), getkey())
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert abs(float((y == 0).mean()) - 0.25) < 0.02
    chex.assert_trees_all_equal(dropout(x, jnp.asarray(0.0), getkey()), x)
