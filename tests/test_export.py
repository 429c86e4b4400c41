"""Exported runs say what the run says."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from conftest import CONFIGS, config_of, shrink
from jax import export as stablehlo

from digits_jax import devices, export, layers, models, onnx_graph
from digits_jax.data.pairs import RECIPES
from digits_jax.errors import UserError
from digits_jax.train import train
from digits_jax.trained import Trained

# Fields of networks that no config uses.
OTHERS = {
    "lenet5": {"activation": "tanh", "pooling": "average", "batch_norm": True},
    "mnist100:mlp": {"activation": "sigmoid"},
    "resnet": {"squeeze": 4},
    "compact:phase5": {"squeeze": 2, "residual": True, "activation": "leaky_relu"},
}


def moved(tree):
    """As if trained: no weight or statistic as it began."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)
    moved = [x + 0.02 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, moved)


@pytest.mark.parametrize(
    ("name", "fields"), [*((name, {}) for name in CONFIGS), *OTHERS.items()], ids=str
)
def test_every_network_as_a_graph(tmp_path, name, fields):
    config = config_of(name)
    config.model.update(fields)
    recipe = RECIPES[config.data.dataset]
    model = models.from_config(config, recipe.heads)
    images = np.random.default_rng(1).integers(0, 256, (5, *recipe.shape), np.uint8)

    def init(key):
        return model.init(key, jnp.zeros((1, *recipe.shape)), train=False, dropout_rate=0.0)

    variables = moved(jax.jit(init, **devices.once())(jax.random.key(0)))

    def said(images):
        logits = model.apply(variables, images, train=False, dropout_rate=0.0)
        return tuple(jax.nn.softmax(x) for x in logits.values())

    with layers.portable():
        graph = onnx_graph.convert(said, recipe.shape, list(recipe.heads), {}, export.OPSET)
    assert [value.name for value in graph.graph.output] == list(recipe.heads)
    (tmp_path / "x.onnx").write_bytes(graph.SerializeToString())
    expected = jax.jit(said)(images.astype(np.float32) / 255)
    for ours, theirs in zip(onnx_graph.run(tmp_path / "x.onnx", images), expected, strict=True):
        assert np.ptp(np.asarray(theirs)) > 1e-3
        np.testing.assert_allclose(ours, theirs, atol=export.CLOSE)


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """Two members of a two-head CNN."""
    workdir = tmp_path_factory.mktemp("run")
    config = shrink(config_of("two_head"), cache)
    config.model.update(features=(2, 3), hidden=(8,))
    config.population.size = 2
    train(config, workdir)
    export.export(config, workdir)
    return config, workdir


def test_an_exported_ensemble_says_what_it_says(run):
    config, workdir = run
    trained, folder = Trained(workdir), workdir / export.FOLDER
    images = np.random.default_rng(0).integers(0, 256, (7, *trained.recipe.shape), np.uint8)
    log_p = trained.predict(images)
    hlo = stablehlo.deserialize(bytearray((folder / export.HLO).read_bytes()))
    assert hlo.platforms == export.PLATFORMS
    scale = trained.temperature[-1]
    for n in (1, 7):
        answers = (
            onnx_graph.run(folder / export.WHOLE, images[:n]),
            hlo.call(images[:n].astype(np.float32) / 255),
        )
        for answer in answers:
            for head, p in zip(trained.recipe.heads, answer, strict=True):
                mean = np.exp(log_p[head][:, :n]).mean(axis=0) ** (1 / scale)
                expected = mean / mean.sum(axis=1, keepdims=True)
                np.testing.assert_allclose(p, expected, atol=export.CLOSE)
    coarse = onnx_graph.run(folder / export.SMALL, images)
    whole = onnx_graph.run(folder / export.WHOLE, images)
    for a, b in zip(coarse, whole, strict=True):
        assert 0 < np.abs(a - b).max() < 0.1
    assert config.name == "two_head"


def test_its_files_and_its_card(run):
    folder = run[1] / export.FOLDER
    names = {export.WHOLE, export.SMALL, export.HLO, export.CARD, "model.npz"}
    assert {path.name for path in folder.iterdir()} == names
    model = onnx.load(folder / export.WHOLE)
    assert {p.key: p.value for p in model.metadata_props}["name"] == "two_head"
    card = (folder / export.CARD).read_text()
    assert "of 2 networks" in card
    assert "`upper` [B, 10], `lower` [B, 10]" in card
    assert "digits that a program draws, no handwriting" in card
    summary = json.loads((run[1] / "summary.json").read_text())
    assert f"{100 * summary['ensemble']:.2f} %" in card


def test_what_cannot_be_exported_is_one_clear_line(run, tmp_path, monkeypatch):
    config, workdir = run
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    (tmp_path / "model.npz").write_bytes((workdir / "model.npz").read_bytes())
    with pytest.raises(UserError, match="holds no finished run"):
        export.export(config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(export, "CLOSE", -1.0)
        with pytest.raises(UserError, match=r"is .* from what the run"):
            export.export(config, workdir)
    with pytest.raises(NotImplementedError, match="primitive sort"):
        onnx_graph.convert(lambda x: (jnp.sort(x),), (2, 2), ["x"], {}, export.OPSET)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install -r requirements-export"):
        export.export(config, workdir)
