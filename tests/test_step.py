"""The step: what it computes, compiles and remembers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import slow_except
from flax import linen as nn
from ml_collections import FrozenConfigDict

from digits_jax import models
from digits_jax.core.step import (
    Program,
    cross_entropy,
    eval_step,
    eval_weights,
    init_state,
    track_best,
    train_step,
)
from digits_jax.data.batches import Pipeline
from digits_jax.data.recipes import RECIPES
from digits_jax.types import Batch, Hyper

SHAPE = (6, 12)


def tiny(name="cnn"):
    fields = {
        "cnn": {"features": (3,), "hidden": (5,)},
        "mlp": {"hidden": (5,)},
        "tower": {"stem": 3, "features": (4,)},
        "vgg": {"features": (3, 4), "depths": (1, 1), "hidden": (5,)},
    }[name]
    return models.build(name, {"number": 100} if name == "tower" else {"a": 3, "b": 4}, **fields)


def a_batch(key, model, n=4):
    images = jax.random.uniform(key, (n, *SHAPE), jnp.result_type(float))
    labels = {head: jnp.arange(n) % classes for head, classes in model.heads.items()}
    return Batch(images, labels, jnp.ones(n, images.dtype))


def a_hyper(rate=0.1, decay=0.0, dropout=0.0, smoothing=0.0):
    return Hyper(*(jnp.asarray(x) for x in (rate, decay, dropout, smoothing)))


def a_program(model, tx=None, **options):
    recipe = RECIPES["mnist"]._replace(shape=SHAPE)
    pipeline = Pipeline(recipe, batch_size=4, steps_per_epoch=1, augment=FrozenConfigDict())
    tx = tx or optax.trace(0.9, nesterov=True)
    return Program(model, tx, optax.constant_schedule(1.0), pipeline, **options)


def a_step(model, tx=None, **options):
    program = a_program(model, tx, **options)
    state = jax.jit(functools.partial(init_state, program=program))(jax.random.key(1))
    return state, functools.partial(train_step, program=program)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_plain_gradient_descent_by_hand(self):
        """w - rate * dL/dw, with L written down a second time."""
        model = tiny("mlp")
        state, step = a_step(model, optax.trace(0.0))
        batch = a_batch(jax.random.key(2), model)

        def loss(params):
            x = batch.images.reshape(4, -1)
            x = nn.relu(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
            losses = [
                -jax.nn.log_softmax(x @ params[h]["kernel"] + params[h]["bias"][None])[
                    jnp.arange(4), batch.labels[h]
                ]
                for h in ("a", "b")
            ]
            return jnp.stack(losses).mean()

        expected = jax.tree.map(
            lambda w, g: w - 0.1 * g, state.params, jax.grad(loss)(state.params)
        )
        after, metrics = self.variant(step)(state, batch, jax.random.key(0), a_hyper())
        chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(metrics.loss / metrics.examples, loss(state.params), rtol=1e-6)
        assert int(after.step) == 1


@pytest.mark.parametrize("name", slow_except(["cnn"], ["cnn", "mlp", "tower", "vgg"]))
def test_a_few_steps_learn_a_batch(getkey, name):
    model = tiny(name)
    state, step = a_step(model, optax.scale_by_adam())
    step, batch = jax.jit(step), a_batch(getkey(), model)
    losses = []
    for _ in range(60):
        state, metrics = step(state, batch, getkey(), a_hyper(rate=0.02))
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", slow_except(["cnn"], ["cnn", "mlp", "tower"]))
def test_bfloat16_in_the_network_alone(getkey, name):
    """The same step to bfloat16's 8 bits; what is kept stays float32."""
    model = tiny(name)
    state, step = a_step(model)
    _, short = a_step(model, bfloat16=True)
    args = (state, a_batch(getkey(), model), jax.random.key(0), a_hyper(rate=1.0))
    (one, metrics), (two, expected) = jax.jit(short)(*args), jax.jit(step)(*args)
    chex.assert_trees_all_equal_dtypes((one, metrics), (two, expected))
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=0.02)

    def moved(after):
        pairs = zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True)
        return np.concatenate([np.ravel(a - b) for a, b in pairs])

    difference = np.linalg.norm(moved(one) - moved(two))
    assert 0 < difference < 0.1 * np.linalg.norm(moved(two))
    products = [
        line for line in jax.jit(short).lower(*args).as_text().splitlines() if "dot_general" in line
    ]
    assert products
    assert all("bf16" in line for line in products)


def test_one_compilation_per_shape(getkey):
    model = tiny()
    state, step = a_step(model)

    @jax.jit
    @chex.assert_max_traces(n=2)
    def traced(state, batch, key, hyper):
        return step(state, batch, key, hyper)

    chex.clear_trace_counter()
    for n in (4, 4, 4, 2, 2):
        state, _ = traced(state, a_batch(getkey(), model, n), getkey(), a_hyper(rate=0.1 / n))


def test_no_tracer_leaks(getkey):
    model = tiny("tower")
    state, step = a_step(model, ema=0.9)
    batch = a_batch(getkey(), model)
    with jax.checking_leaks():
        jax.jit(step)(state, batch, getkey(), a_hyper(dropout=0.5))


def test_a_masked_example_does_not_count(getkey):
    """Dropping an example and masking it give the same step."""
    model = tiny()
    state, step = a_step(model)
    batch = a_batch(getkey(), model)
    masked = batch._replace(mask=batch.mask.at[3].set(0))
    shorter = jax.tree.map(lambda x: x[:3], batch)
    step = jax.jit(step)
    one, metrics_one = step(state, masked, jax.random.key(0), a_hyper())
    two, metrics_two = step(state, shorter, jax.random.key(0), a_hyper())
    chex.assert_trees_all_close((one.params, metrics_one), (two.params, metrics_two), rtol=1e-5)


def test_ema_by_hand(getkey):
    model = tiny("mlp")
    state, step = a_step(model, ema=0.5)
    step, batch = jax.jit(step), a_batch(getkey(), model)
    average = state.params
    for t in range(12):
        state, _ = step(state, batch, getkey(), a_hyper())
        decay = min(0.5, (1 + t) / (10 + t))
        average = jax.tree.map(lambda a, w, d=decay: d * a + (1 - d) * w, average, state.params)
    chex.assert_trees_all_close(state.ema, average, rtol=1e-5)
    chex.assert_trees_all_equal(eval_weights(state)[0], state.ema)


def test_eval_step_is_the_loss_without_smoothing_or_dropout(getkey):
    model = tiny()
    state, _ = a_step(model)
    batch = a_batch(getkey(), model)
    metrics, log_p = eval_step(eval_weights(state), batch, a_program(model))
    np.testing.assert_allclose(metrics.loss, cross_entropy(log_p, batch.labels).sum(), rtol=1e-6)
    for values in log_p.values():
        np.testing.assert_allclose(jnp.exp(values).sum(axis=1), np.ones(4), rtol=1e-5)


def tracked(scores, **rule):
    """Runs track_best over epochs whose weights are their number."""
    state, _ = a_step(model := tiny("mlp"))
    track = jax.jit(functools.partial(track_best, program=a_program(model, **rule)))
    for epoch, score in enumerate(scores, 1):
        params = jax.tree.map(lambda w, e=epoch: jnp.full_like(w, e), state.params)
        state = track(state.replace(params=params), jnp.asarray(score), jnp.asarray(epoch))
    return state.best


def test_the_best_is_kept_and_the_earlier_wins_a_tie():
    best = tracked([0.5, 0.9, 0.9, 0.7])
    assert (int(best.epoch), float(best.score)) == (2, np.float32(0.9))
    assert all((leaf == 2).all() for leaf in jax.tree.leaves(best.params))
    assert not best.stopped


def test_early_stopping_by_hand():
    """0.5004 and 0.5008 are better, but not by min_delta: patience 2 ends at epoch 3."""
    best = tracked([0.5, 0.5004, 0.5008, 0.9], patience=2, min_delta=1e-3)
    assert bool(best.stopped)
    assert int(best.epoch) == 3  # what came after the stop does not count
    assert not tracked([0.5, 0.5004, 0.6, 0.6004], patience=2, min_delta=1e-3).stopped


def test_a_score_that_is_nan_is_never_best():
    assert int(tracked([0.2, float("nan")]).epoch) == 1
