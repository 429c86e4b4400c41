"""Layers of members that share a program on GPU or TPU, against JAX's own for each of them."""

import functools
import math
import re
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAMILIES, config_of, slow_except
from flax import linen as nn
from jax.test_util import check_grads

from digits_jax import models
from digits_jax.core import population
from digits_jax.core.population import members_of
from digits_jax.core.step import init_state, train_step
from digits_jax.data.batches import Pipeline
from digits_jax.data.recipes import RECIPES
from digits_jax.models import batched, layers
from digits_jax.models.layers import MaxPool, batch_norm, conv, formulation
from digits_jax.types import Batch, Hyper, Weights

MEMBERS = 3


@pytest.fixture
def accelerator(monkeypatch):
    """The CPU computes what a GPU would."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def together(function, *arguments):
    """`function` for members at once, in the formulation for them."""
    with layers.members(MEMBERS):
        return jax.jit(jax.vmap(function))(*arguments)


def one_by_one(function, *arguments):
    """The same, each in JAX's own operations."""
    with layers.portable():
        parts = [
            jax.jit(function)(*jax.tree.map(lambda a, i=i: a[i], arguments)) for i in range(MEMBERS)
        ]
    return jax.tree.map(lambda *x: jnp.stack(x), *parts)


def assert_equal(function, *arguments, **tolerance):
    """What it gives, and its gradients times a fixed random array."""

    def both(*arguments):
        y, back = jax.vjp(function, *arguments)
        return y, back(jax.random.normal(jax.random.key(7), y.shape, y.dtype))

    chex.assert_trees_all_close(
        together(both, *arguments), one_by_one(both, *arguments), **tolerance
    )


CONVOLUTIONS = [  # channels before and after, size, padding
    (3, 5, 3, "SAME"),
    (4, 2, 3, "VALID"),
    (6, 16, 5, "VALID"),
    (2, 3, 4, "SAME"),
    (3, 4, (1, 5), "SAME"),
    (5, 3, 1, "VALID"),
    (1, 4, 3, "SAME"),
    (1, 3, 5, "VALID"),
    (1, 1, 4, "SAME"),
    (1, 3, 1, "SAME"),
]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("before", "after", "size", "padding"), CONVOLUTIONS)
def test_convolutions_and_gradients_are_laxs(
    getkey, x64, accelerator, before, after, size, padding, bias
):
    module = conv(after, size, padding=padding, bias=bias)
    check_convolution(module, getkey, (4, 6, 7, before), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("size", "padding"), [(3, "SAME"), (5, "VALID"), (4, "SAME"), (1, "SAME")])
def test_depthwise_convolutions_and_gradients_are_laxs(getkey, x64, accelerator, size, padding):
    module = conv(3, size, padding=padding, depthwise=True)
    check_convolution(module, getkey, (5, 6, 7, 3), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("before", "after", "size", "padding"), CONVOLUTIONS[:3] + CONVOLUTIONS[6:7])
def test_convolutions_in_single_precision(getkey, accelerator, before, after, size, padding):
    module = conv(after, size, padding=padding)
    check_convolution(module, getkey, (8, 6, 7, before), rtol=1e-5, atol=1e-5)


def check_convolution(module, getkey, shape, **tolerance):
    x = jax.random.normal(getkey(), (MEMBERS, *shape), layers.float_dtype())
    params = jax.vmap(module.init)(jax.random.split(getkey(), MEMBERS), x)
    params = jax.tree.map(lambda w: jax.random.normal(getkey(), w.shape, w.dtype) / 4, params)
    assert_equal(module.apply, params, x, **tolerance)
