"""The NumPy engine against JAX, and both against numbers: layers, networks, optimisers, runs."""

import doctest
import functools
import json
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import config_of, shrink, slow_except
from flax import linen as nn

from digits_jax import models
from digits_jax.core import step as jax_step
from digits_jax.core.optim import transformation
from digits_jax.core.step import cross_entropy
from digits_jax.data import batches, dataset
from digits_jax.errors import UserError
from digits_jax.scratch import example, layers, network
from digits_jax.scratch import optim as rules
from digits_jax.scratch import population as numpy_population
from digits_jax.scratch import step as numpy_step
from digits_jax.training.predictor import FILE, Predictor
from digits_jax.training.train import train
from digits_jax.types import Batch, Hyper, Weights

pytestmark = pytest.mark.usefixtures("unpictured")

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_draws(monkeypatch):
    """A test's numbers do not depend on those that ran before it."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


def normal(*shape):
    return RNG.standard_normal(shape)


def last(function):
    """A function of [B, H, W, C] as one of [C, B, H, W]."""
    return lambda x, *rest: jnp.moveaxis(function(jnp.moveaxis(x, 0, -1), *rest), -1, 0)


def jax_conv(stride, padding):
    def convolve(x, kernel, bias):
        numbers = ("NHWC", "HWIO", "NHWC")
        pads = [(padding, padding)] * 2
        y = jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, pads, dimension_numbers=numbers)
        return y + bias[None, None, None]

    return last(convolve)


def jax_batch_norm(x, scale, bias):
    mean = x.mean((0, 1, 2))[None, None, None]
    var = ((x - mean) ** 2).mean((0, 1, 2))[None, None, None]
    unit = (x - mean) / jnp.sqrt(var + 1e-5)
    return unit * scale[None, None, None] + bias[None, None, None]


def pool(kind):
    window = getattr(nn, f"{kind}_pool")
    return last(lambda x: window(x, (2, 2), (2, 2)))


IMAGES = normal(3, 2, 7, 9)
MASK = RNG.integers(0, 2, (4, 5)) * 2.0
# name: (its arrays, its options, the same in JAX)
LAYERS = {
    "linear": ((normal(4, 5), normal(5, 3), normal(3)), {}, lambda x, k, b: x @ k + b[None]),
    "conv": ((IMAGES, normal(3, 3, 3, 4), normal(4)), {"padding": 1}, jax_conv(1, 1)),
    "conv, valid": ((IMAGES, normal(5, 5, 3, 2), normal(2)), {}, jax_conv(1, 0)),
    "conv, strides": (
        (IMAGES, normal(3, 3, 3, 2), normal(2)),
        {"stride": 2, "padding": 2},
        jax_conv(2, 2),
    ),
    "max_pool": ((IMAGES,), {}, pool("max")),
    "average_pool": ((IMAGES,), {}, pool("avg")),
    "flatten": ((IMAGES,), {}, lambda x: jnp.moveaxis(x, 0, -1).reshape(x.shape[1], -1)),
    "relu": ((normal(4, 5),), {}, nn.relu),
    "leaky_relu": ((normal(4, 5),), {}, nn.leaky_relu),
    "sigmoid": ((3 * normal(4, 5),), {}, nn.sigmoid),
    "tanh": ((normal(4, 5),), {}, jnp.tanh),
    "batch_norm": ((IMAGES, normal(3), normal(3)), {}, last(jax_batch_norm)),
    "dropout": ((normal(4, 5),), {"mask": MASK}, lambda x: x * MASK),
    "softmax_cross_entropy": (
        (normal(4, 5),),
        {"labels": np.array([0, 4, 2, 2]), "label_smoothing": 0.1},
        lambda x: cross_entropy({"a": x}, {"a": jnp.array([0, 4, 2, 2])}, 0.1),
    ),
}


def of(case):
    """-> (forward, backward, arrays, the function in JAX)."""
    name, (arrays, options, function) = case.partition(",")[0], LAYERS[case]
    forward = getattr(layers, name)
    return (
        lambda *a: forward(*a, **options),
        getattr(layers, f"{name}_backward"),
        arrays,
        function,
    )


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_and_its_gradients_are_those_of_jax(case, x64):
    forward, backward, arrays, function = of(case)
    y, saved = forward(*arrays)
    expected, pull = jax.vjp(function, *map(jnp.asarray, arrays))
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
    dy = normal(*np.shape(y))
    for mine, theirs in zip(backward(dy, saved), pull(jnp.asarray(dy)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_in_single_precision(case):
    forward, backward, arrays, function = of(case)
    arrays = [np.asarray(x, np.float32) for x in arrays]
    y, saved = forward(*arrays)
    expected, pull = jax.vjp(function, *map(jnp.asarray, arrays))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    dy = np.asarray(normal(*np.shape(y)), np.float32)
    for mine, theirs in zip(backward(dy, saved), pull(jnp.asarray(dy)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_against_central_differences(case):
    """(f(x + h) - f(x - h)) / 2h for every entry of every array."""
    forward, backward, arrays, _ = of(case)
    y, saved = forward(*arrays)
    dy, h = normal(*np.shape(y)), 1e-5
    for array, mine in zip(arrays, backward(dy, saved), strict=True):
        numeric = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            kept = array[place]
            ends = []
            for moved in (kept + h, kept - h):
                array[place] = moved
                ends.append((dy * forward(*arrays)[0]).sum())
            array[place] = kept
            numeric[place] = (ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(mine, numeric, rtol=1e-6, atol=1e-7)


def test_a_convolution_by_hand():
    """3x3 ones over 1..9 with a border of zeros: the middle sums all, a corner its four."""
    x = np.arange(1.0, 10).reshape(1, 1, 3, 3)
    y, saved = layers.conv(x, np.ones((3, 3, 1, 1)), np.array([0.5]), padding=1)
    assert y[0, 0].tolist() == [[12.5, 21.5, 16.5], [27.5, 45.5, 33.5], [24.5, 39.5, 28.5]]
    dx, dkernel, dbias = layers.conv_backward(np.ones_like(y), saved)
    assert dx[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    assert dkernel[..., 0, 0].tolist() == [[12, 21, 16], [27, 45, 33], [24, 39, 28]]
    assert dbias.tolist() == [9]


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (5, 1, 0), (2, 3, 1)])
def test_col2im_is_the_transpose_of_im2col(size, stride, padding):
    columns = layers.im2col(IMAGES, size, stride, padding)
    other = normal(*columns.shape)
    back = layers.col2im(other, IMAGES.shape, stride, padding)
    np.testing.assert_allclose((columns * other).sum(), (IMAGES * back).sum())


def test_the_first_of_equals_is_the_largest():
    x = np.zeros((1, 1, 2, 2))
    (dx,) = layers.max_pool_backward(np.ones((1, 1, 1, 1)), layers.max_pool(x)[1])
    assert dx[0, 0].tolist() == [[1, 0], [0, 0]]


def test_a_sure_sigmoid_does_not_overflow():
    assert layers.sigmoid(np.array([-1000.0, 1000.0]))[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (rules.sgd(0.0, False), optax.trace(0.0)),
        (rules.sgd(0.9, False), optax.trace(0.9)),
        (rules.sgd(0.9, True), optax.trace(0.9, nesterov=True)),
        (rules.adam(0.9, 0.99), optax.scale_by_adam(0.9, 0.99)),
    ],
    ids=["sgd", "momentum", "nesterov", "adam"],
)
def test_optimisers_are_those_of_optax(mine, theirs, x64):
    params = {"a": {"kernel": normal(2, 3), "bias": normal(3)}}
    memory, state = mine.init(params), theirs.init(params)
    for _ in range(5):
        gradients = rules.each(lambda w: normal(*w.shape), params)
        direction, memory = mine.update(gradients, memory)
        expected, state = theirs.update(gradients, state)
        chex.assert_trees_all_close(direction, expected, rtol=1e-12)


NETWORKS = {  # config: the fields that make it small, or try what no config has
    "mnist:mlp10": {},
    "mnist:mlp128-tuned": {},
    "mnist100:mlp": {"dropout": 0.3, "hidden": (8, 6)},
    "two_head:mlp": {"dropout": 0.3},
    "mnist": {"features": (3, 4)},
    "mnist100": {"features": (3, 4), "hidden": (8,)},
    "two_head": {"features": (3, 4)},
    "lenet5": {"dropout": 0.2},
    "lenet5 as in 1998": {"activation": "tanh", "pooling": "average"},
    "lenet5 with BatchNorm": {"batch_norm": True, "activation": "sigmoid"},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", slow_except([np.float64], [np.float64, np.float32]))
def test_a_step_of_a_network_is_that_of_jax(name, precision, monkeypatch):
    """From the same weights and batch, with the same masks: loss, gradients, the next state."""
    with jax.enable_x64(precision == np.float64):
        config = config_of(name.split()[0])
        config.model.update(NETWORKS[name])
        config.optimizer.update(weight_decay=1e-2, ema=0.9)
        recipe = dataset.RECIPES[config.data.dataset]
        model = models.from_config(config, recipe.heads)
        mine = network.build(config.model, recipe.heads)
        # Plain steps of rate 1: the difference of the weights is the gradient.
        config.optimizer.update(name="sgd", momentum=0.0)
        pipeline = batches.pipeline_of(config, recipe, n=4)
        plain = {"schedule": optax.constant_schedule(1.0), "pipeline": pipeline, "ema": 0.9}
        program = jax_step.Program(model, transformation(config.optimizer), **plain)
        init = functools.partial(jax_step.init_state, program=program)
        state = jax.jit(init)(jax.random.key(0))
        n = 4
        labels = {head: RNG.integers(0, k, n) for head, k in recipe.heads.items()}
        images = np.asarray(RNG.random((n, *recipe.shape)), precision)
        batch = Batch(images, labels, np.array([1, 1, 1, 0], precision))
        hyper = Hyper(*np.asarray([1.0, 1e-2, config.model.dropout, 0.1], precision))
        masks = []

        def masked(x, rate, key, **_):
            masks.append(RNG.integers(0, 2, x.shape).astype(precision) * 2)
            return x * masks[-1]

        module = {"mlp": models.mlp, "cnn": models.cnn, "lenet5": models.lenet5}
        monkeypatch.setattr(module[config.model.name], "dropout", masked)
        step = jax.jit(functools.partial(jax_step.train_step, program=program))
        after, metrics = step(state, batch, jax.random.key(1), hyper)
        drawn, rule = iter(masks), rules.sgd(0.0, False)
        ours = jax.tree.map(np.asarray, state)
        ours = ours.replace(opt_state=rule.init(ours.params))
        by_hand = jax_step.Program(mine, rule, **plain)
        ours, sums = numpy_step.train_step(
            ours, batch, RNG, hyper, by_hand, masks=lambda _: next(drawn)
        )
        tolerance = {"rtol": 1e-10, "atol": 1e-10}
        if precision == np.float32:
            tolerance = {"rtol": 1e-5, "atol": 1e-5}
        chex.assert_trees_all_close(ours.params, after.params, **tolerance)
        chex.assert_trees_all_close(ours.ema, after.ema, **tolerance)
        chex.assert_trees_all_close(ours.model_state, after.model_state, **tolerance)
        chex.assert_trees_all_close(sums, metrics, **tolerance)
        chex.assert_trees_all_equal_dtypes(ours.params, after.params)

        weights = Weights(after.params, after.model_state)
        theirs = jax.jit(functools.partial(jax_step.eval_step, program=program))(weights, batch)
        weights = jax.tree.map(np.asarray, weights)
        evaluated = numpy_step.eval_step(weights, batch, by_hand)
        chex.assert_trees_all_close(evaluated, theirs, **tolerance)


def test_first_weights_have_the_shapes_of_jax_and_the_variance_of_he(x64):
    config = config_of("mnist100")
    recipe = dataset.RECIPES["mnist100"]
    net, model = (
        make(fields, recipe.heads)
        for make, fields in ((network.build, config.model), (models.from_config, config))
    )
    pipeline, schedule = batches.pipeline_of(config, recipe, n=1), optax.constant_schedule(1.0)
    by_hand = jax_step.Program(net, rules.adam(), schedule, pipeline)
    program = jax_step.Program(model, optax.scale_by_adam(), schedule, pipeline)
    mine = numpy_step.init_state(RNG, by_hand, np.float64)
    init = functools.partial(jax_step.init_state, program=program)
    theirs = jax.eval_shape(init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(mine.params, theirs.params)
    kernel = mine.params["Dense_0"]["kernel"]
    assert kernel.var() == pytest.approx(2 / len(kernel), rel=0.01)


def small(cache, name="mnist", **fields):
    config = shrink(config_of(name), cache)
    config.update(engine="numpy", **fields)
    config.model.dropout = 0.2
    if config.model.name == "cnn":
        config.model.update(features=(3, 4), hidden=(8,))
    return config


@pytest.mark.parametrize("name", slow_except(["mnist"], ["mnist", "lenet5"]))
def test_a_run_by_numpy(cache, tmp_path, name):
    """The same folder, that every mode reads: the JAX engine predicts with its weights."""
    config = small(cache, name, epochs=3)
    config.population.size = 2
    train(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [member["seed"] for member in summary["members"]] == [0, 1]
    run, data = Predictor(tmp_path), dataset.load(config.data)
    images, labels = dataset.examples(data.test, data.recipe)
    log_p = run.predict(images)
    right = (log_p["digit"].argmax(-1) == labels["digit"]).mean(1)
    assert right == pytest.approx([member["test"] for member in summary["members"]])
    program = numpy_population.program(config, batches.pipeline_of(config, data.recipe, n=1))
    mine = numpy_population.predict(run.weights, images[:5], run.normalizer, program=program)
    np.testing.assert_allclose(mine["digit"], log_p["digit"][:, :5], atol=1e-5)
    (tmp_path / FILE).unlink()  # then the checkpoint is read
    np.testing.assert_array_equal(Predictor(tmp_path).predict(images)["digit"], log_p["digit"])


def test_numpy_resumes_as_if_nothing_had_happened(cache, tmp_path, monkeypatch):
    config = small(cache, "two_head", epochs=3)
    train(config, tmp_path / "whole")
    monkeypatch.setattr("digits_jax.training.train.train_epoch", _failing_at(3))
    with pytest.raises(KeyboardInterrupt):
        train(small(cache, "two_head", epochs=3), tmp_path / "cut")
    monkeypatch.undo()
    train(small(cache, "two_head", epochs=3), tmp_path / "cut")
    rows = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("whole", "cut")
    ]
    assert rows[0] == rows[1]


def _failing_at(epoch):
    from digits_jax.training.train import train_epoch as go

    def failing(run, number, *rest):
        if number == epoch:
            raise KeyboardInterrupt
        return go(run, number, *rest)

    return failing


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet", {}, "model.name"),
        ("lenet5:skip", {}, "knows no model.skip"),
        ("mnist", {"optimizer": {"name": "muon"}}, r"optimizer\.name.*'muon'"),
        ("lenet5", {"bfloat16": True}, r"config\.bfloat16 is for config\.engine=jax"),
    ],
)
def test_what_numpy_cannot_do_is_said(cache, tmp_path, name, fields, message):
    with pytest.raises(UserError, match=message):
        train(small(cache, name, **fields), tmp_path)


def test_the_example_is_true():
    assert isinstance(example, types.ModuleType)
    failed, tried = doctest.testmod(example)
    assert (failed, tried > 5) == (0, True)


def test_the_examples_gradients_against_central_differences():
    weights = example.start()
    x, target = normal(4, 2), normal(4)
    mine = example.gradients(weights, x, target)
    for field, array, gradient in zip(weights._fields, weights, mine, strict=True):
        numeric = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            ends = []
            for h in (1e-6, -1e-6):
                moved = array.copy()
                moved[place] += h
                ends.append(example.loss(weights._replace(**{field: moved}), x, target))
            numeric[place] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)


@pytest.mark.parametrize("name", ["mnist:mlp128-tuned", "mnist100", "two_head", "lenet5"])
def test_a_networks_gradient_against_central_differences(name):
    """Along a random direction d: (L(w + h d) - L(w - h d)) / 2h = dL/dw . d."""
    config = config_of(name)
    small = {"cnn": {"features": (3, 4), "hidden": (8,)}, "lenet5": {"activation": "tanh"}}
    config.model.update(small.get(config.model.name, {}))
    recipe = dataset.RECIPES[config.data.dataset]
    net = network.build(config.model, recipe.heads)
    params, _ = network.initialize(RNG, net, recipe.shape, np.float64)
    images = RNG.random((3, *recipe.shape))
    labels = {head: RNG.integers(0, n, 3) for head, n in recipe.heads.items()}

    def loss(params):
        logits, tape, _ = network.forward(net, params, images, lambda _: None)
        losses = {h: layers.softmax_cross_entropy(logits[h], labels[h]) for h in logits}
        return sum(value.sum() for value, _ in losses.values()), losses, tape

    _, losses, tape = loss(params)
    ones = np.ones(3)
    dlogits = {
        head: layers.softmax_cross_entropy_backward(ones, saved)[0]
        for head, (_, saved) in losses.items()
    }
    gradients = network.backward(dlogits, tape)
    direction = rules.each(lambda w: normal(*w.shape), params)
    h = 1e-6
    ends = [loss(rules.each(lambda w, d, s=s: w + s * d, params, direction))[0] for s in (h, -h)]
    along = rules.each(lambda g, d: (g * d).sum(), gradients, direction)
    expected = sum(sum(weights.values()) for weights in along.values())
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(expected, rel=1e-5)
