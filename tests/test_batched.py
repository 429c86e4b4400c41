"""What members that share a program compute on a GPU or TPU, against JAX's own for each of them."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAMILIES, config_of, shrink, slow_except
from flax import linen as nn
from ml_collections import FrozenConfigDict

from digits_jax.core import population
from digits_jax.core.step import init_state, train_step
from digits_jax.data.batches import Pipeline
from digits_jax.data.recipes import RECIPES
from digits_jax.models import batched, layers
from digits_jax.models.layers import MaxPool, batch_norm, conv
from digits_jax.training.resolve import resolve
from digits_jax.training.run import build
from digits_jax.types import Batch, Hyper, Weights

MEMBERS = 3


@pytest.fixture
def accelerator(monkeypatch):
    """The CPU computes what a GPU would."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def together(function, *arguments):
    """`function` for all members at once, in their formulation."""
    with layers.members(MEMBERS):
        return jax.jit(jax.vmap(function))(*arguments)


def one_by_one(function, *arguments):
    """The same, each in JAX's own operations."""
    with layers.portable():
        alone = jax.jit(function)
        parts = [alone(*jax.tree.map(lambda a, i=i: a[i], arguments)) for i in range(MEMBERS)]
    return jax.tree.map(lambda *x: jnp.stack(x), *parts)


def assert_equal(function, *arguments, **tolerance):
    """What it gives, and its gradients of a fixed random sum."""

    def both(*arguments):
        y, back = jax.vjp(function, *arguments)
        weights = [
            jax.random.normal(jax.random.key(7), v.shape, v.dtype) for v in jax.tree.leaves(y)
        ]
        return y, back(jax.tree.unflatten(jax.tree.structure(y), weights))

    computed, expected = together(both, *arguments), one_by_one(both, *arguments)
    chex.assert_trees_all_close(computed, expected, **tolerance)


CONVOLUTIONS = {  # channels before and after, size, padding, whether it has a bias
    "plain": (3, 5, 3, "SAME", True),
    "fewer channels": (4, 2, 3, "VALID", False),
    "LeNet-5's": (6, 16, 5, "VALID", True),
    "even": (2, 3, 4, "SAME", False),
    "a row": (3, 4, (1, 5), "SAME", True),
    "1x1": (5, 3, 1, "VALID", True),
    "of one channel": (1, 4, 3, "SAME", True),
    "of one channel, large": (1, 3, 5, "VALID", False),
    "of one channel, even": (1, 1, 4, "SAME", True),
    "of one channel, 1x1": (1, 3, 1, "SAME", False),
    "depthwise": (3, 3, 3, "SAME", True),
    "depthwise, large": (3, 3, 5, "VALID", False),
    "depthwise, even": (3, 3, 4, "SAME", False),
}


def convolutions(getkey, *names):
    """-> (a function of a list of [params, x], that list), for those names at once."""
    modules, inputs = [], []
    for name in names:
        before, after, size, padding, bias = CONVOLUTIONS[name]
        module = conv(after, size, padding=padding, bias=bias, depthwise=name.startswith("depth"))
        x = jax.random.normal(getkey(), (MEMBERS, 4, 6, 7, before), layers.float_dtype())
        shapes = jax.eval_shape(module.init, jax.random.key(0), x[0])
        params = jax.tree.map(
            lambda w: jax.random.normal(getkey(), (MEMBERS, *w.shape), w.dtype), shapes
        )
        modules.append(module)
        inputs.append((params, x))
    return lambda all_: [m.apply(*one) for m, one in zip(modules, all_, strict=True)], inputs


def test_convolutions_and_gradients_are_laxs(getkey, x64, accelerator):
    apply, inputs = convolutions(getkey, *CONVOLUTIONS)
    assert_equal(apply, inputs, rtol=1e-11, atol=1e-11)


def test_convolutions_and_gradients_are_laxs_in_single_precision(getkey, accelerator):
    apply, inputs = convolutions(getkey, "plain", "of one channel", "depthwise")
    assert_equal(apply, inputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("features", "groups", "strides", "dilation"), [(4, 1, 2, 1), (4, 1, 1, 2), (4, 2, 1, 1)]
)
def test_other_convolutions_are_laxs(getkey, accelerator, features, groups, strides, dilation):
    """Strides, dilation, and groups of several channels."""
    how = {"use_bias": False, "feature_group_count": groups, "kernel_dilation": dilation}
    module = nn.Conv(features, (3, 3), strides, conv_general_dilated=layers.convolution, **how)
    x = jax.random.normal(getkey(), (MEMBERS, 2, 7, 7, 4))
    params = jax.vmap(nn.Conv(features, (3, 3), strides, **how).init)(
        jax.random.split(getkey(), MEMBERS), x
    )
    assert_equal(module.apply, params, x, rtol=1e-5, atol=1e-5)


def test_what_is_not_trained_is_computed_in_parts_of_the_batch(getkey, accelerator, monkeypatch):
    """Two examples of each member at once here; 7 are one by one, and training is at once."""
    monkeypatch.setattr(batched, "_EXAMPLES", 2 * MEMBERS)
    module = conv(4, padding="VALID")
    for examples, parts in ((6, 3), (7, 7), (2, 1)):
        x = jax.random.normal(getkey(), (MEMBERS, examples, 5, 6, 3))
        params = jax.vmap(module.init)(jax.random.split(getkey(), MEMBERS), x)
        computed = together(module.apply, params, x)
        chex.assert_trees_all_close(
            computed, one_by_one(module.apply, params, x), rtol=1e-5, atol=1e-5
        )
        with layers.members(MEMBERS):
            program = str(jax.make_jaxpr(jax.vmap(module.apply))(params, x))
            gradient = jax.grad(lambda params, x: module.apply(params, x).sum())
            assert "scan" not in str(jax.make_jaxpr(jax.vmap(gradient))(params, x))
        assert (f"length={parts}" in program) == (parts > 1)


@pytest.mark.parametrize(
    ("members", "batch", "groups"),
    [(100, 64, 8), (16, 128, 32), (4, 64, 64), (600, 64, 1), (9, 50, 2)],
)
def test_parts_of_a_kernels_gradient(members, batch, groups):
    """512 products or more, where the batch has as many parts."""
    assert batched._groups(members, batch) == groups


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (1, 7, 5, 2)], ids=["even", "odd"])
def test_max_pool_and_gradient_are_those_of_one_member(getkey, accelerator, shape):
    """Also where two, three or four pixels are the largest."""
    x = jnp.rint(jax.random.normal(getkey(), (MEMBERS, *shape)))

    def both(x):
        y, back = jax.vjp(lambda x: MaxPool().apply({}, x), x)
        return y, back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0]

    y, dx = together(both, x)
    chex.assert_trees_all_equal((y, dx), one_by_one(both, x))
    largest = (dx != 0).sum(axis=(1, 2)) / math.prod(y.shape[1:3])
    assert largest.max() > 1.2  # there were such pixels


@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluate"])
@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (6, 2)], ids=["images", "vectors"])
def test_batch_norm_is_that_of_one_member(getkey, x64, accelerator, train, shape):
    """What it gives, its gradients and its statistics; with a scale and without one."""
    modules = [batch_norm(train), batch_norm(train, scale=False)]
    x = 3 + 2 * jax.random.normal(getkey(), (MEMBERS, *shape), layers.float_dtype())
    drawn = jax.random.uniform(getkey(), (4, MEMBERS, 2), x.dtype, 0.5)
    scale, bias, mean, var = drawn

    def apply(scale, bias, x, mean, var):
        results = []
        for module, params in zip(modules, ({"scale": scale}, {}), strict=True):
            variables = {
                "params": params | {"bias": bias},
                "batch_stats": {"mean": mean, "var": var},
            }
            y, updates = module.apply(variables, x, mutable=["batch_stats"])
            results.append((jnp.tanh(y), updates))
        return results

    assert_equal(apply, scale, bias, x, mean, var, rtol=1e-10, atol=1e-10)


def test_half_floats_are_summed_in_whole_ones(accelerator):
    """Of ones each gradient is a number of pixels; bfloat16's own sums would stop at 256."""
    ones = functools.partial(jnp.ones, dtype=jnp.bfloat16)
    x = ones((MEMBERS, 4, 20, 20, 2))
    for module, images in (
        (conv(2, 1), x),
        (conv(2, 1, depthwise=True), x),
        (conv(2, 1), x[..., :1]),
    ):
        params = jax.eval_shape(module.init, jax.random.key(0), images[0])
        params = jax.tree.map(lambda w: ones((MEMBERS, *w.shape)), params)
        gradient = jax.grad(lambda params, x, m=module: m.apply(params, x).sum())
        expected = jax.tree.map(lambda w: jnp.full_like(w, 1600), params)
        chex.assert_trees_all_equal(together(gradient, params, images), expected)
    gradient = jax.grad(lambda w, x: layers.formulation().affine(x, *w).sum())
    weights = (jnp.ones((MEMBERS, 2)),) * 2
    expected = (jnp.full((MEMBERS, 2), 1600.0),) * 2
    chex.assert_trees_all_equal(together(gradient, weights, x), expected)


def program_and_inputs(name, members, images, **changes):
    """-> (the program of a config, shapes of the arguments of `train_step` for its members)."""
    config = config_of(name)
    config.update(changes)
    recipe = RECIPES[config.data.dataset]
    pipeline = Pipeline(recipe, images, augment=FrozenConfigDict(config.augment))
    program = population.program(config, pipeline)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members))
    state = jax.eval_shape(jax.vmap(functools.partial(init_state, program=program)), keys)
    floats = functools.partial(jax.ShapeDtypeStruct, dtype=layers.float_dtype())
    labels = jax.ShapeDtypeStruct((members, images), jnp.int32)
    batch = Batch(
        images=floats((members, images, *recipe.shape)),
        labels=dict.fromkeys(recipe.heads, labels),
        mask=floats((members, images)),
    )
    return program, (state, batch, keys, Hyper(*(floats((members,)),) * 4))


@pytest.mark.parametrize("name", slow_except(["compact:phase5"], [*FAMILIES, "compact", "resnet"]))
def test_a_step_of_members_is_that_of_each(getkey, x64, accelerator, name):
    """Every weight and statistic after a step of gradient descent, dropout included."""
    program, shapes = program_and_inputs(name, MEMBERS, 4)
    state, batch, keys, hyper = shapes
    first = jax.jit(jax.vmap(functools.partial(init_state, program=program)))
    state = first(jax.random.split(getkey(), MEMBERS))
    images = jax.random.uniform(getkey(), batch.images.shape, batch.images.dtype)
    batch = Batch(
        images,
        {h: jax.random.randint(getkey(), v.shape, 0, 10) for h, v in batch.labels.items()},
        jnp.ones(batch.mask.shape, images.dtype),
    )
    keys = jax.random.split(getkey(), MEMBERS)
    hyper = Hyper(*(jnp.full((MEMBERS,), v, images.dtype) for v in (1e-3, 0.0, 0.2, 0.0)))
    step = functools.partial(train_step, program=program)
    computed, expected = (f(step, state, batch, keys, hyper) for f in (together, one_by_one))
    chex.assert_trees_all_close(computed, expected, rtol=1e-7, atol=1e-9)


OPERATION = re.compile(
    r"stablehlo\.dot_general .*?batching_dims = \[([\d, ]*)\] x .*?"
    r"contracting_dims = \[([\d, ]*)\] x .*?: \(tensor<(\S+)x(\w+)>, tensor<\S+>\)"
    r" -> tensor<(\S+)x\w+>"
)


def products(text):
    """[(floating-point operations, sizes of batch dimensions, dtype)] of the program's products."""
    functions = dict(re.findall(r"func\.func \w+ @(\w+)\((.*?)\n  }", text, re.DOTALL))
    found = {}

    def of(name):
        if name not in found:
            found[name] = [product(m) for m in OPERATION.finditer(functions[name])]
            for called in re.findall(r"call @(\w+)\(", functions[name]):
                found[name] = found[name] + of(called)
        return found[name]

    def product(match):
        batch, contracted, left, dtype, out = match.groups()
        left, out = ([int(n) for n in sizes.split("x")] for sizes in (left, out))
        summed = math.prod(left[int(i)] for i in contracted.split(","))
        sizes = tuple(left[int(i)] for i in batch.split(",") if i)
        return 2 * math.prod(out) * summed, sizes, dtype

    assert text.count("dot_general") == sum(len(OPERATION.findall(f)) for f in functions.values())
    return of("main")


# Each layer's (pixels of its output, numbers that an output is summed of, features).
BY_HAND = {
    "compact": (
        [(28 * 28, 9, 12)],
        [(14 * 14, 9 * 12, 24), (7 * 7, 9 * 24, 24), (7 * 7, 24, 12), (1, 108, 72), (1, 72, 10)],
    ),
    "compact:phase5": (
        [(26 * 26, 9, 16)],
        [
            (24 * 24, 9 * 16, 32),
            (24 * 24, 32, 8),
            (10 * 10, 9 * 8, 14),
            (8 * 8, 9 * 14, 16),
            (8 * 8, 16, 10),
            (6 * 6, 9 * 10, 16),
            (1, 16, 10),
        ],
    ),
}
# All arrays larger than the largest activation, by the operation that makes them: patches, once for
# both passes, what their gradient is added up from, and the patches in the parts of the batch whose
# kernel's gradients are added. In bfloat16, 108 numbers are filled up to 112: whole 16 bytes.
LARGE = {
    ("compact", "f32"): {
        "concatenate": ["100x64x14x14x108", "100x64x7x7x216"],
        "dot_general": ["100x64x14x14x108", "100x64x7x7x216"],
        "reshape": ["100x8x1568x108", "100x8x392x216"],
    },
    ("compact", "bf16"): {
        "concatenate": ["100x64x14x14x112", "100x64x7x7x216"],
        "dot_general": ["100x64x14x14x108", "100x64x7x7x216"],
        "reshape": ["100x8x1568x112", "100x8x392x216"],
    },
    ("compact:phase5", "f32"): {
        "concatenate": ["100x128x24x24x144"],
        "dot_general": ["100x128x24x24x144"],
        "reshape": ["100x8x9216x144"],
    },
}
LARGE["compact:phase5", "bf16"] = LARGE["compact:phase5", "f32"]


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_step_of_100_members_lowered_for_cuda_and_tpu(accelerator, name, dtype):
    images = config_of(name).batch_size
    program, inputs = program_and_inputs(name, 100, images, bfloat16=dtype == "bf16")
    with layers.members(100):
        step = jax.jit(jax.vmap(functools.partial(train_step, program=program))).trace(*inputs)
    for platform in ("cuda", "tpu"):
        text = step.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.convolution" not in text
        assert "stablehlo.while" not in text
        dots = products(text)
        assert {sizes[0] for _, sizes, _ in dots} == {100}  # members are a batch dimension
        assert {dtype for *_, dtype in dots} == {dtype}
        first, others = ([2 * math.prod(layer) for layer in part] for part in BY_HAND[name])
        # The first layer has one product, its kernel's gradient; the others have three each.
        expected = 100 * images * (sum(first) + 3 * sum(others))
        assert expected <= sum(operations for operations, *_ in dots) <= 1.05 * expected
        layers_of = [layer for part in BY_HAND[name] for layer in part]
        activation = 100 * images * max(pixels * features for pixels, _, features in layers_of)
        assert larger(text, activation) == {
            operation: [(shape, dtype) for shape in shapes]
            for operation, shapes in LARGE[name, dtype].items()
        }


def larger(text, size):
    """{operation: sorted [(shape, dtype)]} of the results of more than `size` numbers."""
    found = {}
    results = re.findall(r"= stablehlo\.(\w+).*tensor<([\dx]+)x(\w+)>$", text, re.MULTILINE)
    for operation, shape, dtype in results:
        if math.prod(map(int, shape.split("x"))) > size:
            found.setdefault(operation, []).append((shape, dtype))
    return {operation: sorted(arrays) for operation, arrays in found.items()}


def test_populations_say_how_many_their_members_are(cache, accelerator):
    """Nothing that trains, evaluates or predicts with several members has a convolution left."""
    config = shrink(config_of("compact:phase5"), cache)
    config.population.update(size=2, slice=2)
    run = build(resolve(config), shapes=True)
    members, program = run.members[0], run.program
    weights = Weights(run.states[0].params, run.states[0].model_state)
    carry = jax.eval_shape(lambda: run.begin_epoch(0, 1))
    rest = next(run._batches(run.data.test))
    images = jax.ShapeDtypeStruct((4, 28, 28), np.uint8)
    own, predicted = (weights, members), (weights, images, run.data.normalizer)
    texts = [
        lowered(population.train_steps, carry, run.shared, program=program, steps=2),
        lowered(population.evaluate, own, rest, program=program),
        lowered(population.predict, *predicted, program=program),
    ]
    assert all("dot_general" in text and "stablehlo.convolution" not in text for text in texts)


def lowered(function, *arguments, **static):
    jitted = jax.jit(function, static_argnames=tuple(static))
    return jitted.trace(*arguments, **static).lower(lowering_platforms=("cuda",)).as_text()
