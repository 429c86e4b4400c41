"""Exported runs say what the run says."""

import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import CONFIGS, FAMILIES, config_of, shrink, slow_except
from integers import INT16, exact, kernels, saturating
from integers import run as computed
from jax import export as stablehlo
from onnx import helper, numpy_helper

from digits_jax import models
from digits_jax.console import percent
from digits_jax.data import dataset, drawn, numbers
from digits_jax.data.recipes import RECIPES
from digits_jax.devices import backend
from digits_jax.errors import UserError
from digits_jax.export import export, onnx_graph
from digits_jax.export.demo import site
from digits_jax.models import layers
from digits_jax.training.predictor import Predictor
from digits_jax.training.train import train

# Fields of networks that no config uses.
OTHERS = {
    "lenet5 of another kind": {"activation": "tanh", "pooling": "average", "batch_norm": True},
    "mnist100:mlp of another kind": {"activation": "sigmoid"},
    "resnet of another kind": {"squeeze": 4},
    "compact:phase1 of another kind": {
        "layers": ("edges 4", "pool", "sep3 4", "again", "again", "linear1 classes")
    },
    "compact:phase5 of another kind": {"squeeze": 2, "residual": True, "activation": "leaky_relu"},
}


def moved(tree):
    """As if trained: no weight or statistic as it began."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)
    moved = [x + 0.02 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, moved)


@pytest.mark.parametrize("name", [*slow_except(FAMILIES, CONFIGS), *OTHERS])
def test_every_network_as_a_graph(tmp_path, name):
    config = config_of(name.removesuffix(" of another kind"))
    config.model.update(OTHERS.get(name, {}))
    recipe = RECIPES[config.data.dataset]
    model = models.from_config(config, recipe.heads)
    images = np.random.default_rng(1).integers(0, 256, (5, *recipe.shape), np.uint8)

    def init(key):
        return model.init(key, jnp.zeros((1, *recipe.shape)), train=False, dropout_rate=0.0)

    variables = moved(jax.jit(init, **backend.once())(jax.random.key(0)))

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
    """Two members of a two-head CNN; a page with another runtime, which nobody has to fetch."""
    workdir = tmp_path_factory.mktemp("run")
    config = shrink(config_of("two_head"), cache)
    config.model.update(features=(2, 3), hidden=(8,))
    config.population.size = 2
    train(config, workdir)
    (cache / site.RUNTIME).mkdir(exist_ok=True)
    (cache / site.RUNTIME / "x.mjs").write_text("module")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "FILES", {"x.mjs": hashlib.sha256(b"module").hexdigest()})
        export.export(config, workdir)
        yield config, workdir


def test_an_exported_ensemble_says_what_it_says(run):
    config, workdir = run
    trained, folder = Predictor(workdir), workdir / export.FOLDER
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


# ---- The file in 8 bits


def test_products_of_bytes_by_hand():
    """Of the first two pairs one leaves 16 bits, 64,770 and -65,280; what is odd stands alone."""
    rows = np.array([[255, 255, 255, 255, 7]], np.uint8)
    kernel = np.array([[127, 1], [127, -1], [-64, -128], [-64, -128], [3, -2]], np.int8)
    assert exact(rows, kernel).tolist() == [[64_770 - 32_640 + 21, -65_280 - 14]]
    assert saturating(rows, kernel).tolist() == [[32_767 - 32_640 + 21, -32_768 - 14]]


@pytest.fixture(scope="module", params=["results/demo", "two_head"])
def small(request, run):
    """(the graph in 8 bits, digits as it reads them): one trained on MNIST, and an ensemble."""
    digits = drawn.digits(1, 60).images
    if request.param == "two_head":
        file, digits = run[1] / export.FOLDER / export.SMALL, digits.reshape(-1, 2, 28, 28)
        digits = RECIPES["two_digit"].compose(digits)
    else:
        file = request.getfixturevalue("demo") / export.SMALL
        digits = numbers.widened(digits)
    return onnx.load(file), np.asarray(digits, np.float32) / 255


def test_no_two_products_leave_16_bits(small):
    """Whichever weights of an output channel are neighbours, and whatever they are to read."""
    for kernel in kernels(small[0]):
        ordered = np.sort(kernel.astype(int), axis=0)
        assert 255 * ordered[-2:].sum(axis=0).max() <= INT16.max
        assert 255 * ordered[:2].sum(axis=0).min() >= INT16.min
        assert np.abs(ordered).max(axis=0).min() >= 63  # all of 7 bits in every channel


def test_its_integers_are_those_of_numpy(small):
    """Each level at most one from ONNX Runtime's, and hardly ever: where it rounds a tie."""
    model, images = onnx.ModelProto(), small[1]
    model.CopyFrom(small[0])
    levels = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    answers = [value.name for value in model.graph.output]
    values = [helper.make_tensor_value_info(x, onnx.TensorProto.UINT8, None) for x in levels]
    model.graph.output.extend(values)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    theirs = dict(zip(answers + levels, session.run(None, {"images": images}), strict=True))
    ours = computed(model, images, exact)
    assert len(levels) > 5
    for name in levels:
        apart = np.abs(ours[name].astype(int) - theirs[name])
        assert apart.max() <= 1
        assert np.mean(apart > 0) < 1e-3
    for name in answers:
        close = np.abs(ours[name] - theirs[name]).max(axis=1) < export.CLOSE
        assert np.mean(close) > 0.9
        assert np.mean(ours[name].argmax(1) == theirs[name].argmax(1)) > 0.99


def test_its_integers_are_the_same_without_vnni(small):
    """And would not be, were the same weights twice as long: that is what 7 bits are for."""
    model, images = onnx.ModelProto(), small[1]
    model.CopyFrom(small[0])
    answers = [value.name for value in model.graph.output]

    def apart():
        one, other = (computed(model, images, dot) for dot in (exact, saturating))
        return max(float(np.abs(one[name] - other[name]).max()) for name in answers)

    assert apart() == 0
    for value in model.graph.initializer:
        array = numpy_helper.to_array(value)
        if array.dtype == np.int8 and array.any():
            longer = np.clip(2 * array.astype(int), -127, 127).astype(np.int8)
            value.CopyFrom(numpy_helper.from_array(longer, value.name))
    assert apart() > 0.01


def test_its_files_and_its_card(run):
    folder = run[1] / export.FOLDER
    names = {export.WHOLE, export.SMALL, export.HLO, export.CARD, "model.npz", export.PAGE}
    assert {path.name for path in folder.iterdir()} == names
    model = onnx.load(folder / export.WHOLE)
    assert {p.key: p.value for p in model.metadata_props}["name"] == "two_head"
    card = (folder / export.CARD).read_text()
    assert "of 2 networks" in card
    assert "`upper` [B, 10], `lower` [B, 10]" in card
    assert "digits that a program draws, no handwriting" in card
    summary = json.loads((run[1] / "summary.json").read_text())
    assert f"{100 * summary['ensemble']:.2f} %" in card
    assert "**The page** in `demo/`" in card
    facts = json.loads((folder / export.PAGE / "facts.json").read_text())
    assert facts["card"].startswith("This network learned to read from ")
    assert "two_head-drawn, the averaged probabilities of 2 networks (" in facts["card"]
    trained = Predictor(run[1])
    images, labels = dataset.examples(dataset.load(trained.config.data).test, trained.recipe)
    means = {head: np.exp(p).mean(axis=0) for head, p in trained.predict(images).items()}
    both = np.all([means[head].argmax(axis=1) == labels[head] for head in means], axis=0)
    assert f"It read {percent(both.mean())} of them right." in facts["card"]


def test_the_share_that_is_right_by_hand():
    """Three images: both heads right, one, none."""
    answers = [np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([[0, 1], [1, 0], [1, 0]])]
    labels = {"first": np.array([0, 1, 1]), "second": np.array([1, 1, 1])}
    assert export.share_right(answers, labels, whole=True) == pytest.approx(1 / 3)
    assert export.share_right(answers, labels, whole=False) == pytest.approx(1 / 2)


def test_the_page_is_served_and_exported_anew_only_for_other_weights(run, monkeypatch):
    config, workdir = run
    served, exported = [], []
    monkeypatch.setattr(site, "serve", lambda *how: served.append(how))
    monkeypatch.setattr(export, "export", lambda *_: exported.append(1))
    export.demo(config, workdir, 8123)
    assert served == [(workdir / export.FOLDER / export.PAGE, 8123, site.LOCAL)]
    assert not exported
    card = workdir / export.FOLDER / export.CARD
    script = workdir / export.FOLDER / export.PAGE / "page.js"  # of another version, perhaps
    for path in (card, workdir / export.FOLDER / "model.npz"):
        before = path.read_bytes()
        path.unlink() if path == card else path.write_bytes(before + b" ")
        export.demo(config, workdir, 0)
        path.write_bytes(before)
    assert len(exported) == 2
    before = script.read_bytes()
    script.write_bytes(before + b" ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export", lambda *_: script.write_bytes(before))
        export.demo(config, workdir, 0)
    assert script.read_bytes() == before


def test_without_the_runtime_all_but_the_page_is_written(run, tmp_path, monkeypatch, capsys):
    config, workdir = run
    for name in ("config.json", "model.npz", "summary.json"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())

    def missing(_):
        raise UserError("no npm here")

    monkeypatch.setattr(site, "runtime", missing)
    export.export(config, tmp_path)
    assert "without a page to draw on: no npm here" in capsys.readouterr().out
    card = (tmp_path / export.FOLDER / export.CARD).read_text()
    assert "**The page**" not in card
    with pytest.raises(UserError, match="no npm here"):
        export.demo(config, tmp_path, 0)


def test_what_cannot_be_exported_is_one_clear_line(run, tmp_path, monkeypatch):
    config, workdir = run
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    (tmp_path / "model.npz").write_bytes((workdir / "model.npz").read_bytes())
    with pytest.raises(UserError, match="holds no finished run"):
        export.export(config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(export, "CLOSE", -1.0)
        with pytest.raises(UserError, match=r"differs by .* from the run's"):
            export.export(config, workdir)
    with pytest.raises(NotImplementedError, match="primitive sort"):
        onnx_graph.convert(lambda x: (jnp.sort(x),), (2, 2), ["x"], {}, export.OPSET)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r'pip install "digits_jax\[export\]"'):
        export.export(config, workdir)
