"""A population against its members trained alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, config_of, shrink, slow_except

from digits_jax.core import population
from digits_jax.core.population import members_of, slice_size, slices
from digits_jax.core.step import eval_weights, zero_metrics
from digits_jax.data import batches, dataset
from digits_jax.devices.backend import once
from digits_jax.training.resolve import resolve
from digits_jax.training.run import build
from digits_jax.types import Carry, Shared, Weights


def trained(program, data, members, steps):
    """The states of `members` after `steps` steps, as one slice."""
    own, shared = beginning(program, data, members), Shared(data.train, data.normalizer)
    for i in range(steps):
        epoch = 1 + i // program.pipeline.steps_per_epoch
        order = order_of(members, epoch, program=program, n=data.train.size)
        own = train(own._replace(order=order), shared, program=program, steps=1)
    return own.state, own.totals


train = jax.jit(population.train_steps, static_argnames=("program", "steps"))
predict = jax.jit(population.predict, static_argnames="program")
order_of = jax.jit(population.order, static_argnames=("program", "n"))
first = jax.jit(population.init, static_argnames="program", **once())


def program_of(config, data):
    pipeline = batches.pipeline_of(config, data.recipe, data.train.size)
    assert pipeline.steps_per_epoch == -(-data.train.size // config.batch_size)
    return population.program(config, pipeline)


def beginning(program, data, members, init=first):
    """Those members before their first step."""
    order = order_of(members, 1, program=program, n=data.train.size)
    zeros = zero_metrics(data.recipe.heads, (len(members.seed),))
    return Carry(init(members, program=program), zeros, order, members)


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
    data = dataset.load(config.data)
    program = program_of(config, data)
    together, totals = trained(program, data, members_of(config, range(2)), 20)
    for i in range(2):
        alone, total = trained(program, data, members_of(config, [i]), 20)
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
    data = dataset.load(config.data)
    images, _ = dataset.examples(data.test, data.recipe)
    program = program_of(config, data)

    def log_p(members):
        state, _ = trained(program, data, members, 1)
        weights = Weights(state.params, state.model_state)
        return predict(weights, images[:8], data.normalizer, program=program)

    together = log_p(members_of(config, range(2)))
    for i in range(2):
        alone = log_p(members_of(config, [i]))
        member = jax.tree.map(lambda x, i=i: x[i : i + 1], together)
        chex.assert_trees_all_close(member, alone, rtol=1e-5, atol=1e-5)


def test_scanned_steps_are_single_steps(cache, x64):
    config = shrink(config_of("mnist100:mlp"), cache)
    config.model.hidden = (8,)
    data = dataset.load(config.data)
    program, members = program_of(config, data), members_of(config, range(2))
    own, shared = beginning(program, data, members), Shared(data.train, data.normalizer)
    scanned = train(own, shared, program=program, steps=3)
    one_by_one = trained(program, data, members, 3)
    chex.assert_trees_all_close(scanned[:2], one_by_one, rtol=1e-10, atol=1e-12)


def test_predictions_are_those_of_the_evaluation(cache):
    config = shrink(config_of("two_head"), cache)
    data = dataset.load(config.data)
    program, members = program_of(config, data), members_of(config, range(2))
    weights = eval_weights(first(members, program=program))
    rows, mask = batches.padded_rows(data.test.rows, 40)[0]
    shared = Shared(data.test._replace(rows=rows), data.normalizer, mask=mask)
    evaluate = jax.jit(population.evaluate, static_argnames="program")
    metrics, log_p = evaluate((weights, members), shared, program=program)
    images, labels = dataset.examples(data.test, data.recipe)
    predicted = predict(weights, images, data.normalizer, program=program)
    chex.assert_trees_all_close(predicted, log_p, rtol=1e-5, atol=1e-6)
    for head, truth in labels.items():
        correct = (log_p[head].argmax(axis=2) == truth[None]).sum(axis=1)
        np.testing.assert_array_equal(metrics.correct[head], correct)


@pytest.mark.parametrize("name", slow_except(["mnist100", "compact:phase5"], CONFIGS))
def test_every_train_step_lowers_for_every_platform(cache, name):
    """Whole chunks of the program that trains: batches, augmentation, members and scan included."""
    config = shrink(config_of(name), cache)
    config.engine = "jax"
    config.population.update(size=2, slice=2)
    run = build(resolve(config), shapes=True)
    members = run.members[0]
    own = jax.eval_shape(lambda: beginning(run.program, run.data, members, population.init))
    traced = train.trace(own, run.shared, program=run.program, steps=2)
    chex.assert_trees_all_equal_shapes_and_dtypes(traced.out_info, own)
    assert "stablehlo" in traced.lower(lowering_platforms=("cpu", "cuda", "tpu")).as_text()


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
