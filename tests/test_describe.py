"""The table of layers against published ones, brute force, and XLA's own count of operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, FAMILIES, config_of, slow_except
from flax import linen as nn

from digits_jax import models
from digits_jax.analysis.describe import describe
from digits_jax.data.recipes import RECIPES
from digits_jax.devices import backend
from digits_jax.models.describe import layers


def described(name):
    config = config_of(name)
    recipe = RECIPES[config.data.dataset]
    model = models.from_config(config, recipe.heads)
    return model, recipe, layers(model, recipe.shape)


def test_p16966_is_the_published_table():
    """Shapes and parameters as published; the receptive fields by Araujo et al.'s formula."""
    _, _, rows = described("compact")
    table = [
        (r.kind, r.after, (r.receptive_field or ("all",))[0], r.parameters)
        for r in rows
        if r.kind != "batch norm"
    ]
    assert table == [
        ("conv 3x3", (28, 28, 12), 3, 120),
        ("max 2x2", (14, 14, 12), 4, 0),
        ("conv 3x3", (14, 14, 24), 8, 2_616),
        ("max 2x2", (7, 7, 24), 10, 0),
        ("conv 3x3", (7, 7, 24), 18, 5_208),
        ("conv 1x1", (7, 7, 12), 18, 300),
        ("average 3x3", (3, 3, 12), 26, 0),
        ("dense", (72,), "all", 7_848),
        ("dense", (10,), "all", 730),
    ]
    assert [r.jump for r in rows if r.name == "AdaptiveAveragePool_0"] == [(8, 8)]


@pytest.mark.parametrize("name", slow_except(FAMILIES, CONFIGS))
def test_the_rows_add_up_to_the_network(name):
    model, recipe, rows = described(name)
    shapes = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, *recipe.shape)), train=False, dropout_rate=0.0),
        jax.random.key(0),
    )
    assert sum(row.parameters for row in rows) == models.count_parameters(shapes["params"])
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.flops > 0 for row in rows)


@pytest.mark.parametrize(
    "name", slow_except(["lenet5:skip"], ["compact", "compact:phase4", "resnet", "lenet5:skip"])
)
def test_receptive_fields_by_lighting_one_pixel_after_the_other(name):
    """With positive weights a unit answers exactly to the pixels that it sees."""
    model, recipe, rows = described(name)
    height, width = recipe.shape
    pixels = jnp.eye(height * width).reshape(-1, height, width)
    seen = {}

    def watch(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if getattr(y, "ndim", 0) == 4:
            middle = [n // 2 for n in y.shape[1:3]]
            answers = y[:, middle[0], middle[1]].sum(-1).reshape(height, width)
            seen["/".join(context.module.path)] = answers > 0
        return y

    def run(key):
        variables = model.init(key, pixels[:1], train=False, dropout_rate=0.0)
        positive = jax.tree.map(lambda w: abs(w) if w.ndim > 1 else w, variables["params"])
        with nn.intercept_methods(watch):
            model.apply({**variables, "params": positive}, pixels, train=False, dropout_rate=0.0)
        return dict(seen)

    fields = jax.jit(run, **backend.once())(jax.random.key(0))
    compared = 0
    for row in rows:
        if row.name not in fields:
            continue
        rows_seen, columns_seen = np.nonzero(fields[row.name])
        extent = (int(np.ptp(rows_seen)) + 1, int(np.ptp(columns_seen)) + 1)
        inside = (
            min(rows_seen.min(), columns_seen.min()) > 0
            and max(rows_seen.max(), columns_seen.max()) < height - 1
        )
        if inside:
            assert extent == row.receptive_field, row.name
            compared += 1
    assert compared >= 4


def test_operations_are_those_that_xla_counts():
    """Without padding, where XLA counts no less; activations and rsqrt are the rest."""
    model, recipe, rows = described("compact:phase4")
    variables = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 28, 28)), train=False, dropout_rate=0.0),
        jax.random.key(0),
    )

    def apply(variables, images):
        return model.apply(variables, images, train=False, dropout_rate=0.0)

    images = jax.ShapeDtypeStruct((1, *recipe.shape), jnp.float32)
    cost = jax.jit(apply).lower(variables, images).cost_analysis()["flops"]
    assert 0.98 < sum(row.flops for row in rows) / cost < 1.0


def test_attention_is_one_layer_that_sees_all():
    model = models.build("resnet", {"digit": 10}, squeeze=4)
    rows = layers(model, (28, 28))
    names = [row.name for row in rows]
    attention = names.index("Residual_0/SqueezeExcite_0")
    assert rows[attention].parameters == (32 * 8 + 8) + (8 * 32 + 32)
    assert rows[attention - 1].receptive_field == (12, 12)
    assert all(row.receptive_field is None for row in rows[attention:])
    assert rows[names.index("MaxPool_1")].jump == (4, 4)


def test_what_is_called_again_counts_once_and_sees_more():
    how = {"norm": "none", "padding": "SAME"}
    model = models.build("compact", {"digit": 10}, layers=("conv3 1", "again", "fc classes"), **how)
    rows = layers(model, (28, 28))
    told = [(row.name, row.receptive_field, row.parameters) for row in rows]
    assert told[:2] == [("Conv_0", (3, 3), 9), ("Conv_0, call 2", (5, 5), 0)]
    assert rows[0].flops == rows[1].flops == 2 * 9 * 784


def test_edges_have_no_parameters():
    how = {"norm": "none", "padding": "SAME"}
    model = models.build("compact", {"digit": 10}, layers=("edges 4", "fc classes"), **how)
    edges, head = layers(model, (28, 28))
    assert (edges.kind, edges.after, edges.parameters) == ("edges 7x7", (28, 28, 4), 0)
    assert edges.receptive_field == (7, 7)
    assert edges.flops == 2 * 784 * (3 * 7 + 6 * 7 + 6 * 4)
    assert head.parameters == 784 * 4 * 10 + 10


def test_every_head_begins_where_the_body_ends():
    names = ("conv3 2", "pool", "linear3 classes", "average 1")
    model = models.build("compact", {"upper": 10, "lower": 10}, layers=names, norm="none")
    rows = layers(model, (28, 28))
    fields = [row.receptive_field[0] for row in rows]
    assert fields == [3, 4, 8, 28, 8, 28]


def test_two_numbers_where_rows_and_columns_differ():
    _, _, rows = described("two_head")
    assert rows[-3].before == (2880,)
    assert [row.name for row in rows[-2:]] == ["upper", "lower"]
    model = models.build("cnn", {"digit": 10}, features=(2,))
    assert layers(model, (8, 28))[1].receptive_field == (4, 4)


def test_the_table_that_is_shown(capsys, cache):
    config = config_of("lenet5")
    config.data.cache_dir = str(cache)
    describe(config)
    shown = capsys.readouterr().out
    assert "61,706 parameters" in shown
    assert "28x28x6" in shown
    assert "480,000" in shown  # nothing is cut off, however narrow the window
