"""Shapes and published parameter counts of every network; what they do with wrong input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from conftest import CONFIGS, config_of

from digits_jax import models
from digits_jax.data.pairs import RECIPES
from digits_jax.errors import UserError

PARAMETERS = {
    "mnist100": 833_572,  # published
    "two_head": 390_164,  # published
    "mnist100:mlp": (28 * 56 * 512 + 512) + (512 * 256 + 256) + (256 * 100 + 100),
}


def network(name):
    """-> (model, recipe, variables) of a config."""
    config = config_of(name)
    recipe = RECIPES[config.data.dataset]
    fields = {k: v for k, v in config.model.items() if k not in ("name", "dropout")}
    model = models.build(config.model.name, recipe.heads, **fields)

    def init(key):
        return model.init(key, jnp.zeros((1, *recipe.shape)), train=False, dropout_rate=0.0)

    return model, recipe, jax.jit(init)(jax.random.key(0))


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name, count):
    _, _, variables = network(name)
    assert models.count_parameters(variables["params"]) == count


def test_tower_parameter_count_by_hand():
    _, _, variables = network("mnist100:tower")
    convolutions = 9 * (1 * 24 + 24 * 48 + 48 * 96 + 96 * 96)
    norms = 2 * (24 + 48 + 96 + 96 + 128)
    dense = (3 * 3 * 96 * 128 + 128) + (128 * 10 + 10)
    assert models.count_parameters(variables["params"]) == convolutions + norms + dense


class Shapes(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*CONFIGS)
    def test_logits(self, name):
        model, recipe, variables = network(name)

        def apply(variables, images):
            return model.apply(variables, images, train=False, dropout_rate=0.0)

        logits = self.variant(apply)(variables, jnp.ones((3, *recipe.shape)))
        assert set(logits) == set(recipe.heads)
        for head, classes in recipe.heads.items():
            chex.assert_shape(logits[head], (3, classes))
        chex.assert_tree_all_finite(logits)


def test_tower_is_the_outer_sum_of_its_halves(getkey):
    """Exchanging the halves of an image exchanges tens and ones, and the 100 sum to one."""
    model, recipe, variables = network("mnist100:tower")
    images = jax.random.uniform(getkey(), (4, *recipe.shape))
    swapped = jnp.concatenate([images[:, :, 28:], images[:, :, :28]], axis=2)

    def log_p(x):
        return model.apply(variables, x, train=False, dropout_rate=0.0)["number"]

    table = log_p(images).reshape(4, 10, 10)
    chex.assert_trees_all_close(
        log_p(swapped).reshape(4, 10, 10), table.swapaxes(1, 2), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(jnp.exp(table).sum(axis=(1, 2)), np.ones(4), rtol=1e-5)


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


def test_tower_refuses_other_images():
    model = models.build("tower", {"upper": 10, "lower": 10})
    with pytest.raises(UserError, match="one square digit"):
        model.init(jax.random.key(0), jnp.zeros((1, 42, 28)), train=False, dropout_rate=0.0)
