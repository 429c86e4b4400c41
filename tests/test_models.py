"""Shapes and published parameter counts of every network; what they do with wrong input."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from conftest import CONFIGS, FAMILIES, config_of, slow_except
from jax.flatten_util import ravel_pytree

from digits_jax import models
from digits_jax.core.step import cross_entropy
from digits_jax.data.recipes import RECIPES
from digits_jax.devices import backend
from digits_jax.errors import UserError
from digits_jax.models import layers

NETWORKS = (
    "mnist100",
    "mnist100:mlp",
    "mnist100:tower",
    "lenet5:skip",
    "resnet",
    "compact",
    "drawn",
)
TOWERS = {
    "tower": {"stem": 3, "features": (4,)},
    "compact_tower": {"layers": ("conv3 4", "pool", "conv3 5", "average 1", "linear1 classes")},
}
PARAMETERS = {
    "mnist100": 833_572,  # published
    "two_head": 390_164,  # published, as all that follow but the last
    "two_head:mlp": 80_788,
    "mnist": 225_034,
    "mnist:mlp10": 7_960,
    "mnist:mlp10-tuned": 7_960,
    "mnist:mlp128": 101_770,
    "mnist:mlp128-tuned": 101_770,
    "lenet5": 61_706,
    "compact": 16_966,
    "compact:phase1": 7_600,
    "compact:phase2": 7_600,
    "compact:phase3": 9_660,
    "compact:phase4": 9_980,
    "compact:phase5": 9_980,
    "compact:phase5-tuned": 9_980,
    "mnist100:mlp": (28 * 56 * 512 + 512) + (512 * 256 + 256) + (256 * 100 + 100),
}


def architecture(name):
    """-> (model, recipe, how to draw its variables) of a config."""
    config = config_of(name)
    recipe = RECIPES[config.data.dataset]
    model = models.from_config(config, recipe.heads)

    def init(key):
        return model.init(key, jnp.zeros((1, *recipe.shape)), train=False, dropout_rate=0.0)

    return model, recipe, init


@functools.cache
def network(name):
    """-> (model, recipe, variables) of a config."""
    model, recipe, init = architecture(name)
    return model, recipe, jax.jit(init, **backend.once())(jax.random.key(0))


def parameters(name):
    """Counted without drawing any."""
    _, _, init = architecture(name)
    return models.count_parameters(jax.eval_shape(init, jax.random.key(0))["params"])


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name, count):
    assert parameters(name) == count


def test_vgg_parameter_count_by_hand():
    convolutions = 9 * (1 * 24 + 24 * 48 + 48 * 96 + 96 * 96)
    norms = 2 * (24 + 48 + 96 + 96 + 128)
    dense = (3 * 3 * 96 * 128 + 128) + (128 * 10 + 10)
    assert parameters("drawn") == convolutions + norms + dense


def test_tower_is_one_resnet_for_both_halves():
    assert parameters("mnist100:tower") == parameters("resnet")


@pytest.mark.parametrize("name", slow_except(FAMILIES, CONFIGS))
def test_logits_have_the_classes_of_the_data(name):
    model, recipe, init = architecture(name)
    variables = jax.eval_shape(init, jax.random.key(0))
    apply = functools.partial(model.apply, train=False, dropout_rate=0.0)
    images = jax.ShapeDtypeStruct((3, *recipe.shape), jnp.float32)
    logits = jax.eval_shape(apply, variables, images)
    assert {head: x.shape for head, x in logits.items()} == {
        head: (3, classes) for head, classes in recipe.heads.items()
    }


class Families(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*NETWORKS)
    def test_logits(self, name):
        model, recipe, variables = network(name)

        def apply(variables, images):
            return model.apply(variables, images, train=False, dropout_rate=0.0)

        logits = self.variant(apply)(variables, jnp.ones((3, *recipe.shape)))
        assert set(logits) == set(recipe.heads)
        for head, classes in recipe.heads.items():
            chex.assert_shape(logits[head], (3, classes))
        chex.assert_tree_all_finite(logits)


SMALL = TOWERS | {  # every family, as small as it can be made, with all that it may hold
    "cnn": {"features": (2, 3), "hidden": (4,)},
    "compact": {
        "layers": ("edges 4", "sep3 4", "again", "pool", "conv3 3", "average 1", "linear1 classes"),
        "norm": "before",
        "squeeze": 2,
        "residual": True,
    },
    "lenet5": {"batch_norm": True, "skip": True},
    "line": {"stem": 2, "features": (3,), "mix": 4},
    "mlp": {"hidden": (8, 4)},
    "resnet": {"stem": 2, "features": (3,), "squeeze": 2},
    "vgg": {"features": (2, 3), "depths": (1, 2), "hidden": (4,)},
}


def loss_of(model, rest, heads, key):
    """-> how wrong it is in training, dropout and BatchNorm included, of (weights, images)."""

    def loss(params, images):
        logits, _ = model.apply(
            {"params": params, **rest},
            images,
            train=True,
            dropout_rate=0.2,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        nobody = {head: jnp.zeros(len(images), int) for head in heads}
        return cross_entropy(logits, nobody).mean()

    return loss


@pytest.mark.parametrize("name", slow_except(("mlp", "cnn"), models.MODELS))
def test_second_derivatives(getkey, x64, name):
    """Along a line through weights and images: the slope is the gradient's, and how the gradient
    changes is what it is a bit further on less what it was a bit before, by the layers' own rules.
    """
    shape, heads = ((28, 56), {"number": 100}) if name in TOWERS else ((28, 28), {"digit": 10})
    variables = initialised(model := models.build(name, heads, **SMALL[name]), shape)
    params, images = variables.pop("params"), jax.random.uniform(getkey(), (3, *shape))
    start, back = ravel_pytree((params, images))
    line = jax.random.normal(getkey(), start.shape)
    line, loss = line / jnp.linalg.norm(line), loss_of(model, variables, heads, getkey())
    gradient = jax.jit(jax.grad(lambda x: loss(*back(x))))
    before, here, after = (gradient(start + step * line) for step in (-1e-6, 0, 1e-6))
    with layers.portable():
        slope, change = jax.jvp(
            jax.jit(jax.value_and_grad(lambda x: loss(*back(x)))), *((start,), (line,))
        )[1]
    np.testing.assert_allclose(slope, here @ line, rtol=1e-9)
    assert jnp.linalg.norm(change) > 1e-3
    np.testing.assert_allclose(change, (after - before) / 2e-6, atol=1e-6 * jnp.abs(change).max())


@pytest.mark.parametrize("name", slow_except(FAMILIES, CONFIGS))
def test_every_network_has_all_derivatives_off_cpu_and_where_it_is_portable(name, monkeypatch):
    """Off CPU, too, the maximum pool's is no select-and-scatter."""
    model, recipe, init = architecture(name)
    variables = dict(jax.eval_shape(init, jax.random.key(0)))
    images = jax.ShapeDtypeStruct((2, *recipe.shape), jnp.float32)
    inputs = variables.pop("params"), images

    def loss(params, images):
        rest = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), variables)
        return loss_of(model, rest, recipe.heads, jax.random.key(1))(params, images)

    def change(*inputs):
        return jax.jvp(jax.grad(loss, argnums=(0, 1)), inputs, inputs)[1]

    # optax raises its rates to the power of an integer step: it bears no strict promotion.
    with layers.portable(), jax.numpy_dtype_promotion("strict"):
        chex.assert_trees_all_equal_shapes(jax.eval_shape(change, *inputs), inputs)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program = jax.jit(loss).trace(*inputs)
    assert "custom_vjp" not in str(program.jaxpr)
    chex.assert_trees_all_equal_shapes(jax.eval_shape(change, *inputs), inputs)
    lowered = jax.jit(jax.grad(loss)).trace(*inputs).lower(lowering_platforms=("cuda",))
    assert "select_and_scatter" not in lowered.as_text()


@pytest.mark.parametrize("name", ["tower", "compact_tower"])
def test_tower_is_the_outer_sum_of_its_halves(getkey, name):
    """Exchanging the halves of an image exchanges tens and ones, and the 100 sum to one."""
    recipe = RECIPES["mnist100"]
    model = models.build(name, recipe.heads, **TOWERS[name])
    images = jax.random.uniform(getkey(), (4, *recipe.shape))
    variables = initialised(model, recipe.shape)
    swapped = jnp.concatenate([images[:, :, 28:], images[:, :, :28]], axis=2)

    def log_p(x):
        return model.apply(variables, x, train=False, dropout_rate=0.0)["number"]

    table = log_p(images).reshape(4, 10, 10)
    chex.assert_trees_all_close(
        log_p(swapped).reshape(4, 10, 10), table.swapaxes(1, 2), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(jnp.exp(table).sum(axis=(1, 2)), np.ones(4), rtol=1e-5)


def test_a_compact_tower_is_its_compact_network_on_either_side(getkey):
    fields = TOWERS["compact_tower"] | {"activation": "silu", "norm": "before", "scale": False}
    tower = models.build("compact_tower", {"number": 100}, **fields)
    digit = models.build("compact", {"digit": 10}, **fields)
    variables = initialised(tower, (28, 56))
    inner = {kind: tree["tower"] for kind, tree in variables.items()}
    images = jax.random.uniform(getkey(), (3, 28, 56))
    left, right = (
        jax.nn.log_softmax(digit.apply(inner, x, train=False, dropout_rate=0.0)["digit"])
        for x in (images[:, :, :28], images[:, :, 28:])
    )
    both = tower.apply(variables, images, train=False, dropout_rate=0.0)["number"]
    expected = (left[:, :, None] + right[:, None, :]).reshape(3, 100)
    chex.assert_trees_all_close(both, expected, rtol=1e-5, atol=1e-6)


def test_dropout_is_active_in_training_alone(getkey):
    model, recipe, variables = network("mnist100")
    images = jax.random.uniform(getkey(), (2, *recipe.shape))

    def logits(rate, key):
        rngs = {"dropout": key}
        return model.apply(variables, images, train=True, dropout_rate=rate, rngs=rngs)["number"]

    one, two, off = logits(0.5, getkey()), logits(0.5, getkey()), logits(0.0, getkey())
    assert not np.allclose(one, two)
    evaluated = model.apply(variables, images, train=False, dropout_rate=0.5)["number"]
    chex.assert_trees_all_close(off, evaluated, rtol=1e-6)


def test_unknown_names_are_named():
    with pytest.raises(UserError, match="did you mean 'cnn'"):
        models.build("cmn", {"digit": 10})
    with pytest.raises(UserError, match=r"model\.featurs.*did you mean 'features'"):
        models.build("cnn", {"digit": 10}, featurs=(1,))


@pytest.mark.parametrize(
    ("heads", "shape"), [({"upper": 10, "lower": 10}, (28, 56)), ({"number": 100}, (42, 28))]
)
@pytest.mark.parametrize("name", ["tower", "compact_tower"])
def test_tower_refuses_other_images(heads, shape, name):
    model = models.build(name, heads, **TOWERS[name])
    with pytest.raises(UserError, match="two square digits"):
        model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False, dropout_rate=0.0)


def test_an_unusable_value_is_named():
    for field, value in (("hidden", (0,)), ("hidden", ("a",)), ("activation", 3)):
        with pytest.raises(UserError, match=f"model.{field} must be"):
            models.build("mlp", {"digit": 10}, **{field: value})
    assert models.build("resnet", {"digit": 10}, squeeze=0).squeeze == 0  # a default may be 0
    with pytest.raises(UserError, match=r"model\.squeeze must be .* above 0 \(default 0\), not -1"):
        models.build("resnet", {"digit": 10}, squeeze=-1)


def compact(**fields):
    layers = ("conv3 4", "conv3 4", "pool", "linear1 3", "average 1", "linear1 classes")
    return models.build("compact", {"digit": 10}, **({"layers": layers} | fields))


def initialised(model, shape=(28, 28)):
    def init(key):
        return model.init(key, jnp.zeros((1, *shape)), train=False, dropout_rate=0.0)

    return jax.jit(init, **backend.once())(jax.random.key(0))


@pytest.mark.parametrize("norm", ["after", "before", "none"])
def test_compact_against_lax(getkey, norm):
    """Two layers with BatchNorm's scale and shift as they are drawn, by hand with lax."""
    model = compact(layers=("conv3 4", "linear3 classes", "average 1"), norm=norm)
    variables = initialised(model)
    images = jax.random.normal(getkey(), (2, 28, 28))

    def convolve(x, kernel):
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=axes)

    def normalised(x):
        return (x - x.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(
            x.var((0, 1, 2), keepdims=True) + 1e-5
        )

    params = variables["params"]
    x = convolve(images[..., None], params["Conv_0"]["kernel"])
    x = jax.nn.relu(normalised(x)) if norm == "before" else jax.nn.relu(x)
    x = normalised(x) if norm == "after" else x
    expected = convolve(x, params["Conv_1"]["kernel"]).mean((1, 2))
    rngs = {"dropout": getkey()}
    logits, _ = model.apply(
        variables, images, train=True, dropout_rate=0.0, rngs=rngs, mutable=["batch_stats"]
    )
    chex.assert_trees_all_close(logits["digit"], expected, rtol=1e-4, atol=1e-5)


def test_compact_with_a_residual_and_without(getkey):
    """With a kernel of zeros a residual layer passes its input on, cropped."""
    images = jax.random.uniform(getkey(), (1, 9, 9))
    plain, residual = (
        compact(layers=("conv3 2", "conv3 2", "linear1 classes"), norm="none", residual=residual)
        for residual in (False, True)
    )
    variables = initialised(plain, (9, 9))
    kernel = variables["params"]["Conv_1"]["kernel"]
    variables["params"]["Conv_1"]["kernel"] = jnp.zeros_like(kernel)

    def logits(model, images, variables=variables):
        return model.apply(variables, images, train=False, dropout_rate=0.0)["digit"]

    chex.assert_trees_all_equal(logits(plain, images), jnp.zeros((1, 10)))
    shorter = compact(layers=("conv3 2", "linear1 classes"), norm="none")
    params = variables["params"]
    fewer = {"params": {"Conv_0": params["Conv_0"], "Conv_1": params["Conv_2"]}}
    inner = logits(shorter, images[:, 1:-1, 1:-1], fewer)
    chex.assert_trees_all_close(logits(residual, images), inner, rtol=1e-5)


def test_dropout_rises_from_layer_to_layer(getkey, monkeypatch):
    rates = []

    def record(x, rate, key, *, spatial):
        rates.append((x.shape[1:], round(float(rate), 6), spatial))
        return x

    monkeypatch.setattr("digits_jax.models.compact.dropout", record)
    layers = ("conv3 2", "pool", "conv3 2", "conv1 2", "linear1 2", "fc 4", "fc classes")
    model = compact(layers=layers, dropout_start=0.25)
    variables = initialised(model)
    training = {"rngs": {"dropout": getkey()}, "mutable": ["batch_stats"]}
    model.apply(variables, jnp.zeros((2, 28, 28)), train=True, dropout_rate=0.4, **training)
    assert rates == [
        ((13, 13, 2), 0.1, True),  # past the pool
        ((11, 11, 2), 0.2, True),
        ((11, 11, 2), 0.3, True),
        ((4,), 0.4, False),
    ]


def test_heads_of_a_compact_net_are_their_own():
    model = models.build(
        "compact", {"upper": 10, "lower": 7}, layers=("conv3 2", "linear3 classes", "average 1")
    )
    variables = initialised(model)
    logits = model.apply(variables, jnp.ones((3, 28, 28)), train=False, dropout_rate=0.0)
    assert {head: x.shape for head, x in logits.items()} == {"upper": (3, 10), "lower": (3, 7)}
    count = 9 * 2 + 4 + 9 * 2 * (10 + 7)
    assert models.count_parameters(variables["params"]) == count


@pytest.mark.parametrize(
    "layers",
    [
        ("conv3 4", "conv3"),
        ("cnv3 4", "fc classes"),
        ("conv3 4",),
        ("conv3 classes",),
        ("fc classes", "fc classes"),
        ("linear1 classes", "conv3 8"),
        ("fc 8", "conv3 8", "linear1 classes"),
        ("fc 8", "pool", "fc classes"),
        ("fc classes", "average 1"),
        ("average 0", "linear1 classes"),
        ("conv0 4", "linear1 classes"),
        ("sep 4", "linear1 classes"),
        ("fc 8", "sep3 8", "fc classes"),
        ("again", "linear1 classes"),
        ("linear3 4", "again", "linear1 classes"),
        ("conv3 4", "average 3", "again", "linear1 classes"),
        ("conv3 4", "edges 4", "linear1 classes"),
        ("edges 4", "again", "linear1 classes"),
    ],
    ids=str,
)
def test_layers_that_do_not_exist(layers):
    with pytest.raises(UserError, match=r"model\.layers.*'conv3 16'"):
        initialised(compact(layers=layers))


def test_separable_is_each_channel_and_then_all(getkey):
    """By hand with lax."""
    model = compact(layers=("sep3 4", "sep5 3", "linear1 classes"), norm="none", activation="tanh")
    variables = initialised(model)
    assert models.count_parameters(variables["params"]) == 9 + 4 + 25 * 4 + 4 * 3 + 30
    images = jax.random.uniform(getkey(), (2, 28, 28))
    x = images[..., None]
    kernels = [variables["params"][f"Conv_{i}"]["kernel"] for i in range(5)]
    for depthwise, pointwise in (kernels[:2], kernels[2:4]):
        x = jax.lax.conv_general_dilated(
            x,
            depthwise,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )
        x = jnp.tanh(x @ pointwise[0, 0])
    expected = (x @ kernels[4][0, 0]).mean((1, 2))
    logits = model.apply(variables, images, train=False, dropout_rate=0.0)["digit"]
    chex.assert_trees_all_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_again_is_the_same_kernels_with_another_norm(getkey):
    """As the network without it, whose kernels are equal; what it counts, it counts once."""
    how = {"norm": "before", "residual": True, "activation": "silu"}
    shared, apart = (
        compact(layers=("conv3 6", "sep3 6", layer, "pool", layer, "linear1 classes"), **how)
        for layer in ("again", "sep3 6")
    )
    variables, images = initialised(shared), jax.random.uniform(getkey(), (2, 28, 28))
    params = {name: jax.tree.map(jnp.array, layer) for name, layer in variables["params"].items()}
    assert models.count_parameters(params) == 9 * 6 + (9 * 6 + 36) + 4 * 12 + 60
    for norm in range(4):
        params[f"BatchNorm_{norm}"]["bias"] = jax.random.normal(getkey(), (6,))
    more = params | {f"Conv_{i}": params[f"Conv_{1 + (i + 1) % 2}"] for i in range(1, 7)}
    more["Conv_7"] = params["Conv_3"]
    stats, how = variables["batch_stats"], {"train": False, "dropout_rate": 0.0}
    one = shared.apply({"params": params, "batch_stats": stats}, images, **how)
    other = apart.apply({"params": more, "batch_stats": stats}, images, **how)
    chex.assert_trees_all_close(one, other, rtol=1e-5)


def test_again_needs_as_many_channels_as_it_began_with():
    with pytest.raises(UserError, match=r"'again' meets 8 channels.*began with 4"):
        initialised(compact(layers=("conv3 4", "sep3 8", "again", "linear1 classes")))


def test_batch_norm_without_scale_has_one_of_ones(getkey):
    with_scale, without = (
        compact(layers=("conv3 4", "linear1 classes"), norm="before", scale=scale)
        for scale in (True, False)
    )
    variables = initialised(with_scale)
    shift = variables["params"]["BatchNorm_0"]["bias"]
    fewer = variables | {"params": variables["params"] | {"BatchNorm_0": {"bias": shift}}}
    chex.assert_trees_all_equal_shapes(fewer, initialised(without))
    images = jax.random.uniform(getkey(), (3, 28, 28))
    rngs, how = {"dropout": getkey()}, {"train": True, "dropout_rate": 0.0}
    one, other = (
        model.apply(weights, images, **how, rngs=rngs, mutable=["batch_stats"])
        for model, weights in ((with_scale, variables), (without, fewer))
    )
    chex.assert_trees_all_close(one, other, rtol=1e-6)


def test_compact_refuses_a_small_image():
    with pytest.raises(UserError, match="too small for this network: 2x2 is left for a conv"):
        initialised(compact(), (4, 4))


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_lenet5_options(pooling, batch_norm):
    model = models.build("lenet5", {"digit": 10}, pooling=pooling, batch_norm=batch_norm)
    shapes = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 28, 28)), train=False, dropout_rate=0.0),
        jax.random.key(0),
    )
    count = models.count_parameters(shapes["params"])
    assert count == 61_706 + (2 * (6 + 16) if batch_norm else 0)


def test_lenet5_refuses_an_unknown_pooling():
    with pytest.raises(UserError, match=r"model\.pooling.*there are: average, max"):
        initialised(models.build("lenet5", {"digit": 10}, pooling="median"))


def test_skip_adds_two_projections(getkey):
    """A 1x1 kernel of a skip is the middle of a 5x5 one: the same network without skips."""
    assert parameters("lenet5:skip") == 61_706 + 6 + 6 * 16
    skip, _, variables = network("lenet5:skip")
    plain, _, _ = network("lenet5")
    params = variables["params"]
    merged = {k: v for k, v in params.items() if not k.startswith("Conv")}
    for i in range(2):
        beside, kernel = params[f"Conv_{2 * i}"]["kernel"], params[f"Conv_{2 * i + 1}"]["kernel"]
        bias = params[f"Conv_{2 * i + 1}"]["bias"]
        merged[f"Conv_{i}"] = {"kernel": kernel.at[2:3, 2:3].add(beside), "bias": bias}
    images = jax.random.uniform(getkey(), (3, 28, 28))
    one = skip.apply(variables, images, train=False, dropout_rate=0.0)
    two = plain.apply({"params": merged}, images, train=False, dropout_rate=0.0)
    chex.assert_trees_all_close(one, two, rtol=1e-4, atol=1e-5)


def test_resnet_parameter_count_by_hand():
    stem = 9 * 16 + 2 * 16
    blocks = [
        9 * (c * d + d * d) + c * d + 3 * 2 * d  # two convolutions, a projection, three norms
        for c, d in ((16, 32), (32, 64))
    ]
    assert parameters("resnet") == stem + sum(blocks) + 64 * 10 + 10


def test_a_residual_block_of_zeros_is_its_shortcut(getkey):
    """Positive inputs pass as they are, or through the 1x1 convolution before the last ReLU."""
    x = jax.random.uniform(getkey(), (2, 5, 5, 4))
    block = models.resnet.Residual(6, squeeze=0)
    variables = block.init(getkey(), x, train=False)
    params = dict(variables["params"])
    for layer in ("Conv_1", "Conv_2"):
        params[layer] = jax.tree.map(jnp.zeros_like, params[layer])
    y = block.apply({**variables, "params": params}, x, train=False)
    projected = x @ params["Conv_0"]["kernel"][0, 0] / np.sqrt(1 + 1e-5)
    chex.assert_trees_all_close(y, jnp.maximum(projected, 0), rtol=1e-4, atol=1e-6)

    block = models.resnet.Residual(4, squeeze=2)
    x = jax.random.uniform(getkey(), (2, 5, 5, 4))
    variables = block.init(getkey(), x, train=False)
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    y = block.apply({**variables, "params": params}, x, train=False)
    chex.assert_trees_all_equal(y, x)
