"""A population against its members trained alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, config_of, shrink, slow_except

from digits_jax.core.population import Population, members_of, slice_size, slices
from digits_jax.core.step import current
from digits_jax.data import batches
from digits_jax.devices.backend import once


def trained(config, data, members, steps):
    """The states of `members` after `steps` steps, as one slice."""
    population = Population(config, data.recipe, steps_per_epoch=3)
    state, totals = jax.jit(population.init, **once())(members), population.zeros(len(members.seed))
    next_order = jax.jit(population.order, static_argnames="n")
    step = jax.jit(population.train, static_argnames="steps")
    for i in range(steps):
        order = next_order(members, 1 + i // 3, n=data.train.size)
        state, totals = step(
            state, totals, order, i % 3, data.train, data.normalizer, members, steps=1
        )
    return state, totals


SMALL = {  # every network, as small as it can be made
    "mnist100": {"features": (2, 3), "hidden": (8,)},
    "mnist100:tower": {"stem": 2, "features": (3,)},
    "two_head:mlp": {"hidden": (8,)},
    "lenet5": {},
    "compact:phase4": {
        "layers": ("conv3 4", "pool", "conv3 6", "average 1", "linear1 classes"),
    },
    "resnet": {"stem": 2, "features": (3,)},
    "drawn": {"features": (2, 3), "depths": (1, 1), "hidden": (4,)},
}


@pytest.mark.parametrize("name", slow_except(["two_head:mlp", "compact:phase4"], SMALL))
def test_member_i_is_the_solo_run_with_its_seed(cache, x64, name):
    """float64, 20 steps, augmentation, dropout, BatchNorm and EMA included: equal to 1e-8."""
    config = shrink(config_of(name), cache)
    config.model.update(SMALL[name])
    config.batch_size = 2
    data = batches.load(config.data)
    together, totals = trained(config, data, members_of(config, range(2)), 20)
    for i in range(2):
        alone, total = trained(config, data, members_of(config, [i]), 20)
        member = jax.tree.map(lambda x, i=i: x[i : i + 1], (together, totals))
        chex.assert_trees_all_close(member, (alone, total), rtol=1e-8, atol=1e-8)
    kernels = [x for x in jax.tree.leaves(together.params) if x.ndim > 2]
    assert not np.allclose(kernels[0][0], kernels[0][1])  # the members do differ


@pytest.mark.parametrize("name", slow_except(["compact:phase4"], SMALL))
def test_members_after_a_step_of_sgd(cache, name):
    """float32: logits of two members together and alone, equal to 1e-5."""
    config = shrink(config_of(name), cache)
    config.model.update(SMALL[name])
    config.update(batch_size=4, label_smoothing=0.0)
    config.optimizer.update(name="sgd", learning_rate=1e-2, momentum=0.0, nesterov=False)
    data = batches.load(config.data)
    images, _ = batches.examples(data.test, data.recipe)
    population = Population(config, data.recipe, steps_per_epoch=3)
    predict = jax.jit(population.predict)

    def log_p(members):
        state, _ = trained(config, data, members, 1)
        return predict((state.params, state.model_state), images[:8], data.normalizer)

    together = log_p(members_of(config, range(2)))
    for i in range(2):
        alone = log_p(members_of(config, [i]))
        member = jax.tree.map(lambda x, i=i: x[i : i + 1], together)
        chex.assert_trees_all_close(member, alone, rtol=1e-5, atol=1e-5)


def test_scanned_steps_are_single_steps(cache, x64):
    config = shrink(config_of("mnist100:mlp"), cache)
    config.model.hidden = (8,)
    data = batches.load(config.data)
    population = Population(config, data.recipe, steps_per_epoch=3)
    members = members_of(config, range(2))
    order = jax.jit(population.order, static_argnames="n")(members, 1, n=data.train.size)
    rest = (data.train, data.normalizer, members)
    scanned = jax.jit(population.train, static_argnames="steps")(
        jax.jit(population.init, **once())(members),
        population.zeros(2),
        order,
        jnp.asarray(0),
        *rest,
        steps=3,
    )
    chex.assert_trees_all_close(scanned, trained(config, data, members, 3), rtol=1e-10, atol=1e-12)


def test_predictions_are_those_of_the_evaluation(cache):
    config = shrink(config_of("two_head"), cache)
    data = batches.load(config.data)
    population = Population(config, data.recipe, steps_per_epoch=3)
    weights = current(jax.jit(population.init, **once())(members_of(config, range(2))))
    rows, mask = batches.padded_rows(data.test.rows, 40)[0]
    evaluate, predict = jax.jit(population.evaluate), jax.jit(population.predict)
    metrics, log_p = evaluate(weights, data.test, data.normalizer, rows, mask)
    images, labels = batches.examples(data.test, data.recipe)
    chex.assert_trees_all_close(
        predict(weights, images, data.normalizer), log_p, rtol=1e-5, atol=1e-6
    )
    for head, truth in labels.items():
        correct = (log_p[head].argmax(axis=2) == truth[None]).sum(axis=1)
        np.testing.assert_array_equal(metrics.correct[head], correct)


@pytest.mark.parametrize("name", slow_except(["mnist100", "compact:phase5"], CONFIGS))
def test_every_train_step_lowers_for_every_platform(cache, name):
    """Whole chunks of the program that trains: batches, augmentation, members and scan included."""
    config = shrink(config_of(name), cache)
    data = batches.load(config.data)
    population = Population(config, data.recipe, steps_per_epoch=3)
    members = members_of(config, range(2))
    state = jax.eval_shape(population.init, members)
    order = jax.eval_shape(lambda m: population.order(m, 1, data.train.size), members)
    train = jax.jit(population.train, static_argnames="steps", donate_argnums=(0, 1))
    arguments = (state, population.zeros(2), order, 0, data.train, data.normalizer, members)
    for steps in (1, 2):
        traced = train.trace(*arguments, steps=steps)
        for platform in ("cpu", "cuda", "tpu"):
            assert "stablehlo" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_order_of_batches():
    order = np.asarray(batches.epoch_order(jax.random.key(0), jnp.asarray(1), 10, 4))
    following = np.asarray(batches.epoch_order(jax.random.key(0), jnp.asarray(2), 10, 4))
    assert len(order) == 12
    assert sorted(order[:10]) == list(range(10))
    np.testing.assert_array_equal(order[10:], following[:2])  # the last batch is filled from it
    assert list(order[:10]) != list(following[:10])
    few = np.asarray(batches.epoch_order(jax.random.key(0), jnp.asarray(1), 3, 8))
    assert sorted(few[:3]) == sorted(few[3:6]) == [0, 1, 2]


def test_slices():
    assert slices(5, 2) == [range(2), range(2, 4), range(4, 5)]
    assert slices(3, 8) == [range(3)]
    assert (slice_size(7, "cpu"), slice_size(7, "gpu")) == (1, 7)
    assert (slice_size(7, "cpu", 4), slice_size(7, "gpu", 4), slice_size(3, "cpu", 4)) == (4, 4, 1)
    assert slice_size(7, "gpu", 2, shared=True) == 2
