"""What explains a network, against convolutions and gradients worked out another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_of, shrink, slow_except
from flax import linen as nn
from matplotlib.image import imread

from digits_jax import models
from digits_jax.analysis import explain
from digits_jax.data import dataset
from digits_jax.errors import UserError
from digits_jax.models.describe import layers as layers_of
from digits_jax.models.layers import conv, dense
from digits_jax.training.predictor import Predictor
from digits_jax.training.train import train


class Small(nn.Module):
    """Two convolutions, the first one ours, a global average, and a layer for each of five classes.

    heads `digit` and `sure`: logits, and log-probabilities of the same.
    """

    @nn.compact
    def __call__(self, images, *, train, dropout_rate):
        x = nn.relu(conv(3, padding="VALID")(images[..., None]))
        x = nn.Conv(4, (3, 3), name="last", param_dtype=x.dtype)(x)
        logits = dense(5, name="digit")(x.mean((1, 2)))
        return {"digit": logits, "sure": jax.nn.log_softmax(logits)}


def watched(model, key, shape=(8, 10), **variables):
    """-> (its variables, an image, the network on that image)."""
    image = jax.random.uniform(key, (1, *shape), jnp.result_type(float))
    variables |= model.init(key, image, train=False, dropout_rate=0.0)
    return variables, image, lambda x, added: explain.watch(model, variables, x, added)


def convolve(x, layer, padding):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, layer["kernel"], (1, 1), padding, dimension_numbers=dimensions
    )
    return y + layer["bias"][None, None, None]


def test_the_maps_are_those_of_the_convolutions(getkey):
    variables, image, network = watched(Small(), getkey())
    logits, maps = network(image, {})
    first = convolve(image[..., None], variables["params"]["Conv_0"], "VALID")
    last = convolve(nn.relu(first), variables["params"]["last"], "SAME")
    assert list(maps) == ["Conv_0", "last"]
    np.testing.assert_allclose(maps["Conv_0"], first, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(maps["last"], last, rtol=1e-5, atol=1e-6)
    plain = Small().apply(variables, image, train=False, dropout_rate=0.0)
    np.testing.assert_array_equal(logits["digit"], plain["digit"])


def test_a_convolution_that_is_called_again_has_two_maps(getkey):
    how = {"norm": "none", "padding": "SAME", "activation": "tanh"}
    model = models.build("compact", {"digit": 10}, layers=("conv3 1", "again", "fc classes"), **how)
    variables, image, network = watched(model, getkey())
    maps = network(image, {})[1]
    assert list(maps) == ["Conv_0", "Conv_0, call 2"]
    kernel = variables["params"]["Conv_0"]["kernel"]
    second = jax.lax.conv(
        jnp.tanh(maps["Conv_0"]).transpose(0, 3, 1, 2),
        kernel.transpose(3, 2, 0, 1),
        window_strides=(1, 1),
        padding="SAME",
    )
    np.testing.assert_allclose(maps["Conv_0, call 2"][..., 0], second[:, 0], rtol=1e-4, atol=1e-6)
    shifted = network(image, {"Conv_0, call 2": jnp.ones_like(maps["Conv_0"])})[1]
    np.testing.assert_allclose(shifted["Conv_0"], maps["Conv_0"])
    np.testing.assert_allclose(shifted["Conv_0, call 2"], maps["Conv_0, call 2"] + 1, rtol=1e-6)


def test_what_is_added_goes_on_through_the_network_once(getkey):
    variables, image, network = watched(Small(), getkey())
    shift = jax.random.normal(getkey(), (1, 6, 8, 3))
    before, after = network(image, {})[1], network(image, {"Conv_0": shift})[1]
    np.testing.assert_allclose(after["Conv_0"], before["Conv_0"] + shift, rtol=1e-6)
    last = convolve(nn.relu(before["Conv_0"] + shift), variables["params"]["last"], "SAME")
    np.testing.assert_allclose(after["last"], last, rtol=1e-5, atol=1e-6)


def test_gradients_are_the_numeric_differences(getkey, x64):
    _, image, network = watched(Small(), getkey())
    slope, slopes = explain.gradients(network, image, "digit", 2)
    step = 1e-6

    logits = jax.jit(lambda x, added: network(x, {"Conv_0": added})[0]["digit"][0])
    nothing = jnp.zeros(slopes["Conv_0"].shape)

    def difference(change):
        high, low = (logits(*change(sign * step)) for sign in (1, -1))
        return ((high - high.mean()) - (low - low.mean()))[2] / (2 * step)

    for pixel in [(0, 0), (3, 4), (5, 2), (7, 9)]:
        found = difference(lambda d, at=(0, *pixel): (image.at[at].add(d), nothing))
        np.testing.assert_allclose(slope[0][pixel], found, rtol=1e-5, atol=1e-9)
    for at in [(0, 1, 1, 0), (0, 4, 6, 2), (0, 3, 0, 1)]:
        found = difference(lambda d, at=at: (image, nothing.at[at].add(d)))
        np.testing.assert_allclose(slopes["Conv_0"][at], found, rtol=1e-5, atol=1e-9)


def test_grad_cam_of_a_linear_head_is_its_class_activation_map(getkey):
    """After a global average the weight of a channel is the head's own, over the pixels."""
    variables, image, network = watched(Small(), getkey())
    maps = network(image, {})[1]
    kernel = np.asarray(variables["params"]["digit"]["kernel"])
    weights = (kernel[:, 2] - kernel.mean(1)) / (6 * 8)
    expected = np.maximum(np.asarray(maps["last"][0]) @ weights, 0)
    assert expected.any()
    assert not expected.all()
    gradient = explain.gradients(network, image, "digit", 2)[1]["last"]
    cam = explain.grad_cam(maps["last"], gradient)
    np.testing.assert_allclose(cam[0], expected, rtol=1e-4, atol=1e-7)
    looks = explain._attributions(network, image, "digit", 2, maps, {"last": (1, 1)})
    assert list(looks) == ["saliency", "Grad-CAM of last"]
    within = np.pad(expected, 1)  # the first convolution cuts a pixel off
    np.testing.assert_allclose(looks["Grad-CAM of last"], within, rtol=1e-4, atol=1e-7)
    assert looks["saliency"].min() >= 0


def test_a_map_lies_where_its_convolution_looked(getkey):
    """Pixel i of an unpadded mnist:cnn's second convolution sees the rows 2 i to 2 i + 7."""
    cams = jnp.zeros((1, 11, 11)).at[0, 0, 10].set(1.0)
    laid = np.asarray(explain.over_image(cams, (2, 2), (28, 28)))
    rows, columns = np.indices((28, 28))
    # Centres at 3.5 and 23.5; the crop is centred, so they fall half a pixel later.
    np.testing.assert_allclose((laid * rows).sum() / laid.sum(), 3.5, atol=0.8)
    np.testing.assert_allclose((laid * columns).sum() / laid.sum(), 23.5, atol=0.8)
    assert not laid[:3].any()
    assert not laid[:, 25:].any()
    two = explain.over_image(jnp.ones((2, 7, 7)), (4, 4), (28, 56))
    np.testing.assert_array_equal(two, np.ones((28, 56)))


def test_grad_cam_averages_the_gradient_over_each_image_of_its_own():
    rng = np.random.default_rng(0)
    maps, gradient = rng.normal(size=(2, 2, 3, 4, 5))
    cam = explain.grad_cam(maps, gradient)
    for b, row, column in np.ndindex(2, 3, 4):
        total = sum(maps[b, row, column, k] * gradient[b, :, :, k].mean() for k in range(5))
        np.testing.assert_allclose(cam[b, row, column], max(total, 0), rtol=1e-5, atol=1e-6)


def test_log_probabilities_have_the_gradients_of_their_logits(getkey):
    """Where the network is sure the log-probability itself is flat."""
    variables, image, network = watched(Small(), getkey())
    variables["params"]["digit"]["bias"] = jnp.array([0.0, 0.0, 40.0, 0.0, 0.0])
    flat = jax.jit(jax.grad(lambda x: network(x, {})[0]["sure"][0, 2]))(image)
    assert np.abs(flat).max() < 1e-9
    plain = explain.gradients(network, image, "digit", 2)
    sure = explain.gradients(network, image, "sure", 2)
    assert np.abs(plain[0]).max() > 1e-3
    np.testing.assert_allclose(sure[0], plain[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(sure[1]["last"], plain[1]["last"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("layers", "of"),
    [
        (("linear3 4", "linear3 classes", "average 1"), ["Conv_1", "Conv_2"]),
        (("linear3 4", "average 1", "linear1 classes"), ["Conv_0", "Conv_0"]),
    ],
    ids=["a convolution per head", "one pixel"],
)
def test_grad_cam_is_of_a_convolution_that_the_head_depends_on(layers, of, getkey):
    model = models.build("compact", {"upper": 3, "lower": 3}, layers=list(layers))
    _, image, network = watched(model, getkey())
    maps = network(image, {})[1]
    for head, name in zip(("upper", "lower"), of, strict=True):
        jumps = {row.name: row.jump for row in layers_of(model, (8, 10)) if row.jump}
        assert f"Grad-CAM of {name}" in explain._attributions(network, image, head, 0, maps, jumps)


def test_the_halves_of_a_number_lie_side_by_side(getkey):
    """The tower of the right digit alone sees what changes on the right."""
    model = models.build("tower", {"number": 100}, stem=3, features=[4])
    _, image, network = watched(model, getkey(), shape=(28, 56))
    name, maps = next(iter(network(image, {})[1].items()))
    title, pictures = explain._block(name, maps, 2)
    assert title == "tower/Conv_0, 2 × 28x28x3, the first 2"
    assert pictures.shape == (2, 28, 56)
    other = network(image.at[:, :, 28:].set(0), {})[1][name]
    changed = explain._block(name, other, 2)[1] != pictures
    assert changed[:, :, 28:].all()
    assert not changed[:, :, :28].any()
    cam = explain._attributions(network, image, "number", 42, {name: maps}, {name: (1, 1)})
    cam = cam[f"Grad-CAM of {name}"]
    each = explain.grad_cam(maps, explain.gradients(network, image, "number", 42)[1][name])
    np.testing.assert_allclose(cam, np.hstack(each), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", slow_except(["mnist"], ["mnist", "lenet5"]))
def test_a_cnn_explained(cache, tmp_path, capsys, name):
    config = shrink(config_of(name), cache)
    if name == "mnist":
        config.model.update(features=(3, 4), hidden=(8,))
    config.update(epochs=1, report_test=False)
    train(config, tmp_path)
    explain.explain(config, tmp_path, 7)
    for name in ("filters", "feature_maps", "attribution"):
        picture = imread(tmp_path / f"{name}.png")
        assert picture.shape[1] == 1280
        assert picture.std() > 0.01
    data = dataset.load(config.data)
    images, labels = dataset.examples(data.test, data.recipe)
    predicted = Predictor(tmp_path).predict(images[7:8])["digit"].argmax()
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"example 7: digit {labels['digit'][7]}, predicted {predicted}; ")
    assert said.endswith(str(tmp_path))


def test_an_mlp_explained(cache, tmp_path, capsys):
    """Two heads, no convolution."""
    config = shrink(config_of("two_head:mlp"), cache)
    config.update(epochs=1, report_test=False)
    train(config, tmp_path)
    (tmp_path / "feature_maps.png").write_text("of a run before")
    explain.explain(config, tmp_path, 39)
    assert not (tmp_path / "feature_maps.png").exists()
    assert imread(tmp_path / "attribution.png").shape[1] == 2 * 320  # no column of Grad-CAM
    assert imread(tmp_path / "filters.png").shape[1] == 1280
    data = dataset.load(config.data)
    images, labels = dataset.examples(data.test, data.recipe)
    log_p = Predictor(tmp_path).predict(images[39:])
    said = (f"{h} {labels[h][39]}, predicted {log_p[h].argmax()}" for h in ("upper", "lower"))
    assert f"example 39: {'; '.join(said)}; " in capsys.readouterr().out
    for example in (-1, 40):
        with pytest.raises(UserError, match=f"--example={example}: .* has examples 0 to 39$"):
            explain.explain(config, tmp_path, example)
    with pytest.raises(UserError, match="a run of two_head-mlp, not of mnist"):
        explain.explain(config_of("mnist"), tmp_path, 0)


def test_an_mlps_filters_are_images_of_what_a_unit_reads(getkey):
    model = models.build("mlp", {"upper": 10, "lower": 10}, hidden=[5, 6])
    variables, image, network = watched(model, getkey())
    assert network(image, {})[1] == {}
    params = variables["params"]
    name, kernel = explain._first_kernel(params, {}, (8, 10))
    assert (name, kernel.shape) == ("Dense_0", (8, 10, 5))
    layer = params["Dense_0"]
    units = jnp.einsum("hw,hwc->c", image[0], kernel) + layer["bias"]
    expected = image.reshape(-1) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(units, expected, rtol=1e-5, atol=1e-6)
