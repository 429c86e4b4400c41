"""Losses and metrics by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from digits_jax.core.step import cross_entropy, measure, zero_metrics
from digits_jax.types import Batch


def test_cross_entropy_by_hand():
    logits = {"digit": jnp.log(jnp.asarray([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))}
    loss = cross_entropy(logits, {"digit": jnp.asarray([0, 1])})
    np.testing.assert_allclose(loss, -np.log([0.7, 0.1]), rtol=1e-6)


def test_label_smoothing_by_hand():
    p = np.asarray([0.7, 0.2, 0.1])
    target = 0.9 * np.asarray([1, 0, 0]) + 0.1 / 3
    loss = cross_entropy({"d": jnp.log(jnp.asarray([p]))}, {"d": jnp.asarray([0])}, 0.1)
    np.testing.assert_allclose(loss, [-(target * np.log(p)).sum()], rtol=1e-6)


def test_heads_are_averaged():
    logits = {
        "upper": jnp.log(jnp.asarray([[0.5, 0.5]])),
        "lower": jnp.log(jnp.asarray([[0.9, 0.1]])),
    }
    labels = {"upper": jnp.asarray([0]), "lower": jnp.asarray([1])}
    expected = -(np.log(0.5) + np.log(0.1)) / 2
    np.testing.assert_allclose(cross_entropy(logits, labels), [expected], rtol=1e-6)


def test_gradient_of_the_loss_is_numeric_and_p_minus_y(getkey, x64):
    logits = jax.random.normal(getkey(), (4, 5))
    labels = {"d": jnp.asarray([0, 3, 1, 4])}

    def loss(logits, smoothing=0.0):
        return cross_entropy({"d": logits}, labels, smoothing).sum()

    check_grads(loss, (logits,), order=1, modes=["rev"])
    check_grads(lambda x: loss(x, 0.2), (logits,), order=1, modes=["rev"])
    by_hand = jax.nn.softmax(logits) - jax.nn.one_hot(labels["d"], 5)
    chex.assert_trees_all_close(jax.grad(loss)(logits), by_hand, rtol=1e-10, atol=1e-12)


def test_masked_sums_count_every_example_once():
    logits = {"upper": jnp.asarray([[9.0, 0], [9, 0], [0, 9]]), "lower": jnp.eye(3)[:, :2]}
    labels = {"upper": jnp.asarray([0, 1, 1]), "lower": jnp.asarray([0, 1, 1])}
    losses = jnp.asarray([1.0, 2.0, 4.0])
    whole = measure(logits, losses, Batch(jnp.zeros((3, 1, 1)), labels, jnp.ones(3)))
    assert (whole.loss, whole.examples) == (7, 3)
    assert {k: int(v) for k, v in whole.correct.items()} == {"upper": 2, "lower": 2}

    total = zero_metrics(logits)
    for rows, mask in (([0, 1], [1, 1]), ([2, 0], [1, 0])):  # the last batch is padded
        rows = np.asarray(rows)
        part = Batch(
            jnp.zeros((2, 1, 1)), {k: v[rows] for k, v in labels.items()}, jnp.asarray(mask, float)
        )
        new = measure({k: v[rows] for k, v in logits.items()}, losses[rows], part)
        total = jax.tree.map(jnp.add, total, new)
    assert (whole.finite, total.finite) == (1, 2)  # parts with a loss that is a number
    chex.assert_trees_all_close(total._replace(finite=whole.finite), whole)
    assert measure(logits, losses / 0, Batch(jnp.zeros((3, 1, 1)), labels, jnp.ones(3))).finite == 0


def test_means_of_a_member():
    metrics = zero_metrics(["a", "b"], (2,))._replace(
        loss=jnp.asarray([3.0, 8.0]),
        correct={"a": jnp.asarray([1.0, 4.0]), "b": jnp.asarray([2.0, 2.0])},
        examples=jnp.asarray([4.0, 4.0]),
    )
    assert metrics.means(1) == {"loss": 2.0, "accuracy": 0.75}
