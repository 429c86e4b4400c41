"""Layers against their textbook formulation and numeric gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_except
from flax import linen as nn
from jax.test_util import check_grads

from digits_jax.errors import UserError
from digits_jax.models import batched, cpu, layers
from digits_jax.models.layers import (
    ACTIVATIONS,
    AdaptiveAveragePool,
    AveragePool,
    Edges,
    MaxPool,
    SqueezeExcite,
    activation,
    batch_norm,
    conv,
    convolution,
    crop,
    dense,
    dropout,
    float_dtype,
    formulation,
    portable,
)


def max_pool(x):
    return MaxPool().apply({}, x)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 7, 5, 2)])
def test_max_pool_is_flax_max_pool(getkey, shape):
    x = jax.random.normal(getkey(), shape)
    expected = nn.max_pool(x, (2, 2), strides=(2, 2))
    chex.assert_trees_all_equal(max_pool(x), expected)
    weights = jax.random.normal(getkey(), expected.shape)
    ours = jax.grad(lambda x: (max_pool(x) * weights).sum())(x)
    theirs = jax.grad(lambda x: (nn.max_pool(x, (2, 2), strides=(2, 2)) * weights).sum())(x)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6)


def test_what_is_jitted_is_traced_anew_where_it_is_portable(getkey, monkeypatch):
    """By the squared maximum, whose second derivative is 2 at the largest of four."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    x = jax.random.permutation(getkey(), 4).astype(float).reshape(1, 2, 2, 1)
    loss = jax.jit(lambda x: (max_pool(x) ** 2).sum())
    assert loss(x) == 9
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.hessian(loss)(x)
    with portable():
        curvature = jax.hessian(loss)(x).reshape(4, 4)
    np.testing.assert_array_equal(curvature, np.diag(2.0 * (x.ravel() == 3)))
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.linearize(loss, x)[1](x)


def test_the_backend_chooses_the_formulation_and_portable_overrules_it(monkeypatch):
    plain = jax.lax.conv_general_dilated
    for backend, expected in (("cpu", cpu.convolution), ("gpu", plain), ("tpu", plain)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert formulation().convolution is expected
        with layers.members(1):
            assert formulation().convolution is expected
        with layers.members(5):
            together = formulation()
            if backend == "cpu":
                assert together.convolution is expected
            else:
                assert together.convolution.func is batched.convolution
                assert together.convolution.args == (5,)
                assert together.max_pool is batched.max_pool
        with portable(), layers.members(5):
            assert formulation().convolution is plain


def test_max_pool_off_cpu_is_flaxs_too(getkey, monkeypatch):
    """With the gradient that it has on CPU, where it is the maximum of several as well."""
    x = jnp.rint(2 * jax.random.normal(getkey(), (2, 7, 9, 3)))

    def both():
        y, back = jax.vjp(max_pool, x)
        return y, back(jnp.ones_like(y))

    results = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        results.append(both())
    chex.assert_trees_all_equal(*results)


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
        lambda: batch_norm(train=True, scale=False),
        lambda: conv(2, depthwise=True),
        lambda: AveragePool(),
        lambda: AdaptiveAveragePool(3),
        lambda: SqueezeExcite(1),
    ],
    ids=(
        "conv",
        "conv_valid",
        "dense",
        "norm",
        "norm_train",
        "norm_unscaled",
        "depthwise",
        "average",
        "adaptive",
        "squeeze",
    ),
)
def test_numeric_gradients(getkey, x64, layer):
    module = layer()
    x = jax.random.normal(getkey(), (2, 5, 4, 2), float_dtype())
    variables = jax.jit(module.init)(getkey(), x)
    rest = {k: v for k, v in variables.items() if k != "params"}

    def f(params, x):
        y, _ = module.apply({"params": params, **rest}, x, mutable=["batch_stats"])
        return jnp.tanh(y)

    inputs = variables.get("params", {}), x
    check_grads(jax.jit(f), inputs, order=1, modes=["rev"])
    with portable():
        check_grads(jax.jit(f), inputs, order=2)


@pytest.mark.parametrize(
    "batch", slow_except([3, 41, 300], [3, 16, 41, 300]), ids="a batch of {}".format
)
@pytest.mark.parametrize("channels", slow_except([(3, 13)], [(1, 4), (3, 4), (3, 13)]))
@pytest.mark.parametrize(
    ("size", "padding"), [(3, "SAME"), (5, "VALID"), (4, "SAME"), (1, "VALID")]
)
def test_convolutions_and_gradients_are_laxs(getkey, batch, channels, size, padding):
    """41 leaves a part of a slice; 300 would take more than 16 slices of 16."""
    before, after = channels
    module = conv(after, size, padding=padding, bias=False)
    x = jax.random.normal(getkey(), (batch, 6, 7, before))
    assert_is_laxs(module, x, jax.random.normal(getkey(), (size, size, before, after)), 1)


@pytest.mark.parametrize(
    ("size", "padding"), [(3, "SAME"), (5, "VALID"), (4, "SAME"), (1, "VALID")]
)
def test_depthwise_convolutions_and_gradients_are_laxs(getkey, size, padding):
    module = conv(3, size, padding=padding, bias=False, depthwise=True)
    x = jax.random.normal(getkey(), (5, 6, 7, 3))
    assert_is_laxs(module, x, jax.random.normal(getkey(), (size, size, 1, 3)), 3)


def assert_is_laxs(module, x, kernel, groups):
    def ours(x, kernel):
        return module.apply({"params": {"kernel": kernel}}, x)

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            module.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    @jax.jit
    def both(x, kernel):
        (y, back), (expected, expected_back) = (jax.vjp(f, x, kernel) for f in (ours, theirs))
        weights = jax.random.normal(jax.random.key(0), y.shape)
        return (y, expected), (back(weights), expected_back(weights))

    values, gradients = both(x, kernel)
    chex.assert_trees_all_close(*values, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "groups", "features", "strides", "dilation"),
    [
        (1, 1, 4, 2, 1),
        (3, 1, 4, 2, 1),
        (3, 1, 4, 1, 2),
        (3, 4, 4, 2, 1),
        (3, 2, 4, 1, 1),
        (3, 4, 8, 1, 1),
    ],
)
def test_other_convolutions_are_laxs(getkey, size, groups, features, strides, dilation):
    """Strides, dilation, groups of several channels, and several features of each."""
    how = {"use_bias": False, "feature_group_count": groups, "kernel_dilation": dilation}
    x = jax.random.normal(getkey(), (2, 7, 7, 4))
    ours = nn.Conv(features, (size, size), strides, conv_general_dilated=convolution, **how)
    laxs = nn.Conv(features, (size, size), strides, **how)
    params = laxs.init(getkey(), x)
    chex.assert_trees_all_close(ours.apply(params, x), laxs.apply(params, x), rtol=1e-5, atol=1e-5)


def test_depthwise_gradients_of_half_floats_are_summed_in_whole_ones(getkey):
    """Of ones it is the number of places; bfloat16's own sums would stop at 256."""
    x, kernel = jnp.ones((1, 384, 1, 2), jnp.bfloat16), jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    module = conv(2, 1, padding="VALID", bias=False, depthwise=True)
    gradient = jax.grad(lambda kernel: module.apply({"params": {"kernel": kernel}}, x).sum())
    chex.assert_trees_all_equal(gradient(kernel), jnp.full_like(kernel, 384))


def test_numeric_gradients_of_pool_and_dropout(getkey, x64):
    x, key = jax.random.normal(getkey(), (2, 4, 5, 2), float_dtype()), getkey()
    check_grads(jax.jit(max_pool), (x,), order=1, modes=["rev"])
    with portable():
        check_grads(jax.jit(lambda x: max_pool(x) ** 2), (x,), order=2)
    drop = jax.jit(lambda x: dropout(x, jnp.asarray(0.3), key))
    check_grads(drop, (x,), order=1, modes=["rev"])


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 4, 5)], ids=["vectors", "images"])
def test_dense_is_flaxs(getkey, shape):
    """What it gives and its gradients, alone and for two members at once."""
    ours, flaxs = dense(3), nn.Dense(3)
    x, weights = jax.random.normal(getkey(), (2, *shape)), jax.random.normal(getkey(), (3,))
    params = jax.vmap(flaxs.init, in_axes=(0, None))(jax.random.split(getkey()), x[0])
    for members in (slice(0, 1), slice(0, 2)):
        results = []
        for module in (ours, flaxs):

            def loss(params, x, module=module):
                y = module.apply(params, x)
                return jnp.tanh(y @ weights).sum(), y

            gradient = jax.vmap(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
            results.append(jax.jit(gradient)(*jax.tree.map(lambda a, m=members: a[m], (params, x))))
        chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)


def test_batch_norm_by_hand():
    x = jnp.asarray([[1.0], [3.0]])
    module = batch_norm(train=True)
    variables = module.init(jax.random.key(0), x)
    y, updates = module.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, [[-1.0], [1.0]], atol=1e-4)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], [0.9 * 0 + 0.1 * 2], rtol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["var"], [0.9 * 1 + 0.1 * 1], rtol=1e-6)


@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluate"])
@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (6, 2)], ids=["images", "vectors"])
def test_batch_norm_is_flaxs(getkey, train, shape):
    """What it gives, its gradients and its statistics."""
    x, weights = 3 + 2 * jax.random.normal(getkey(), (2, *shape))
    ours = batch_norm(train, 0.8)
    flaxs = nn.BatchNorm(use_running_average=not train, momentum=0.8)
    scale, bias, mean, var = jax.random.uniform(getkey(), (4, 2), minval=0.5)
    params, statistics = {"scale": scale, "bias": bias}, {"mean": mean, "var": var}
    results = []
    for module in (ours, flaxs):

        def loss(params, x, module=module):
            variables = {"params": params, "batch_stats": statistics}
            y, updates = module.apply(variables, x, mutable=["batch_stats"])
            return (jnp.tanh(y) * weights).mean(), (y, updates)

        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        results.append(gradient(params, x))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)
    shapes = (jax.eval_shape(module.init, getkey(), x) for module in (ours, flaxs))
    chex.assert_trees_all_equal_shapes(*shapes)


def test_dropout_keeps_the_mean_and_zeroes_the_rate(getkey):
    x = jnp.ones((100, 200))
    y = dropout(x, jnp.asarray(0.25), getkey())
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert abs(float((y == 0).mean()) - 0.25) < 0.02
    chex.assert_trees_all_equal(dropout(x, jnp.asarray(0.0), getkey()), x)


def test_without_dropout_no_bits_are_drawn(getkey):
    draws = [
        str(jax.make_jaxpr(lambda x, key, rate=rate: dropout(x, rate, key))(jnp.ones(3), getkey()))
        for rate in (0.0, 0.5)
    ]
    assert ["random_bits" in program for program in draws] == [False, True]


def test_spatial_dropout_takes_whole_channels_of_an_example(getkey):
    y = dropout(jnp.ones((50, 4, 3, 40)), jnp.asarray(0.25), getkey(), spatial=True)
    channels = y.reshape(50, 12, 40)
    assert (channels == channels[:, :1]).all()
    assert abs(float((y == 0).mean()) - 0.25) < 0.04


def test_average_pools_by_hand():
    x = jnp.arange(49.0).reshape(1, 7, 7, 1)
    np.testing.assert_allclose(
        AveragePool().apply({}, x)[0, :, :, 0], [[4, 6, 8], [18, 20, 22], [32, 34, 36]]
    )
    # PyTorch's AdaptiveAvgPool2d(3): rows 0 to 2, 2 to 4 and 4 to 6, and so the columns.
    np.testing.assert_allclose(
        AdaptiveAveragePool(3).apply({}, x)[0, :, :, 0], [[8, 10, 12], [22, 24, 26], [36, 38, 40]]
    )
    np.testing.assert_allclose(AdaptiveAveragePool(1).apply({}, x), [[[[24]]]])
    wide = jnp.arange(24.0).reshape(1, 4, 6, 1)
    np.testing.assert_allclose(
        AdaptiveAveragePool(2).apply({}, wide)[0, :, :, 0], [[4, 7], [16, 19]]
    )


def test_edges_are_derivatives_of_a_gaussian(getkey):
    """By lax with filters of 7x7 from the formula, one direction at a time."""
    images = jax.random.uniform(getkey(), (2, 11, 12, 1))
    y, x = np.mgrid[-3:4, -3:4]
    gauss = np.exp(-(x**2 + y**2) / 2)
    gauss /= gauss.sum()
    for features, slopes in ((12, 6), (7, 3)):
        edges = Edges(features).apply({}, images)
        for k in range(features):
            turn = k / slopes if k < slopes else (k - slopes) / (features - slopes) / 2
            u = x * np.cos(2 * np.pi * turn) + y * np.sin(2 * np.pi * turn)
            kernel = u * gauss if k < slopes else ((x**2 * gauss).sum() - u**2) * gauss
            assert abs(kernel.sum()) < 1e-12  # flat areas give nothing
            kernel /= kernel[kernel > 0].sum()
            expected = jax.lax.conv_general_dilated(
                images,
                jnp.asarray(kernel[:, :, None, None], images.dtype),
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            chex.assert_trees_all_close(edges[..., k], nn.relu(expected[..., 0]), atol=1e-5)


def test_edges_turn_with_the_image(getkey):
    image = jax.random.uniform(getkey(), (1, 9, 9, 1))
    edges, turned = (Edges(16).apply({}, x) for x in (image, jnp.rot90(image, 1, (1, 2))))
    slopes, lines = jnp.split(jnp.rot90(edges, 1, (1, 2)), 2, axis=-1)
    # A quarter turn against the clock, where angles run with it: from the rows' axis downwards.
    expected = [jnp.roll(slopes, -2, -1), jnp.roll(lines, 4, -1)]
    chex.assert_trees_all_close(turned, jnp.concatenate(expected, -1), atol=1e-5)


def test_squeeze_excite_by_hand():
    """Means 2 and 6; a hidden unit of relu(2 + 6 - 5) = 3; gates sigmoid(3 w)."""
    x = jnp.asarray([[1.0, 4.0], [3.0, 8.0]]).reshape(1, 2, 1, 2)
    params = {
        "Dense_0": {"kernel": jnp.ones((2, 1)), "bias": jnp.asarray([-5.0])},
        "Dense_1": {"kernel": jnp.asarray([[1.0, -1.0]]), "bias": jnp.zeros(2)},
    }
    gates = 1 / (1 + np.exp([-3, 3]))
    y = SqueezeExcite(2).apply({"params": params}, x)
    np.testing.assert_allclose(y[0, :, 0], [[1, 4], [3, 8]] * gates[None], rtol=1e-6)


def test_activations_by_hand():
    x = jnp.asarray([-2.0, 0.0, 1.0])
    expected = {
        "relu": [0, 0, 1],
        "leaky_relu": [-0.02, 0, 1],
        "silu": [-2 / (1 + np.exp(2)), 0, 1 / (1 + np.exp(-1))],
        "sigmoid": 1 / (1 + np.exp([2, 0, -1])),
        "tanh": np.tanh([-2, 0, 1]),
    }
    assert set(expected) == set(ACTIVATIONS)
    for name, values in expected.items():
        np.testing.assert_allclose(activation(name)(x), values, rtol=1e-6)
    with pytest.raises(UserError, match=r"model\.activation.*did you mean 'relu'"):
        activation("rleu")


def test_a_convolution_that_does_not_fit():
    with pytest.raises(UserError, match=r"too small.*2x9 is left for a convolution of 3x3"):
        conv(3, padding="VALID").init(jax.random.key(0), jnp.zeros((1, 2, 9, 1)))


def test_crop_is_what_an_unpadded_convolution_leaves(getkey):
    x = jax.random.normal(getkey(), (2, 7, 9, 1))
    middle = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    expected = conv(1, padding="VALID", bias=False).apply({"params": {"kernel": middle}}, x)
    chex.assert_trees_all_close(crop(x, (2, 5, 7, 4)), expected)
