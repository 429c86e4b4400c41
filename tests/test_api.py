"""What a script imports: each public name, on arrays of every form, and its mistakes."""

import importlib
import json
import pkgutil
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import digits_jax
from digits_jax import UserError
from digits_jax.data import drawn, numbers
from digits_jax.defaults import AUGMENTATIONS, config_names, get_base
from digits_jax.report import stats
from digits_jax.training.predictor import Predictor
from tests.conftest import ROOT, shrink


@pytest.fixture(scope="module")
def digits():
    return drawn.digits(7, 40)


@pytest.fixture(scope="module")
def demo_run():
    return digits_jax.load()


def test_public_names_are_what_they_were_after_every_submodule_was_imported():
    for module in pkgutil.walk_packages(digits_jax.__path__, "digits_jax."):
        if module.name != "digits_jax.__main__":
            importlib.import_module(module.name)
    for name in digits_jax.__all__:
        assert callable(getattr(digits_jax, name)), name
    assert set(digits_jax.__all__) < set(dir(digits_jax))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        digits_jax.lod  # noqa: B018


def test_importing_it_loads_nothing_and_starts_nothing():
    code = (
        "import sys, digits_jax\n"
        "assert not {'jax', 'numpy', 'flax', 'matplotlib', 'absl'} & set(sys.modules)\n"
        "digits_jax.get_config('lenet5')\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_it_reads_digits_in_every_form_of_array(demo_run, digits):
    whole = demo_run.predict(digits.images, members=True)
    assert (whole.labels["digit"] == digits.labels).mean() > 0.9
    forms = {
        "floats": digits.images / 255,
        "float32": (digits.images / np.float32(255)),
        "jax": jnp.asarray(digits.images),
        "channel": digits.images[..., None],
        "int64": digits.images.astype(np.int64),
    }
    for name, images in forms.items():
        found = demo_run.predict(images).probabilities["digit"]
        np.testing.assert_array_equal(found, whole.probabilities["digit"], err_msg=name)
    one = demo_run.predict(digits.images[3])
    np.testing.assert_allclose(one.probabilities["digit"], whole.probabilities["digit"][3:4], 1e-5)
    binary = digits.images > 127
    np.testing.assert_array_equal(
        demo_run.predict(binary).labels["digit"],
        demo_run.predict(np.uint8(255) * binary).labels["digit"],
    )
    with pytest.warns(UserWarning, match="ink=bright"):
        dark = demo_run.predict(255 - digits.images)
    np.testing.assert_array_equal(dark.labels["digit"], whole.labels["digit"])


def test_probabilities_are_the_calibrated_ones(demo_run, digits):
    """Of one member: softmax(log p / T), by hand."""
    run = Predictor(ROOT / "results" / "demo")
    log_p, temperature = (
        run.predict(numbers.widened(digits.images))["digit"][0],
        run.temperature[-1],
    )
    assert temperature != 1
    powers = np.exp(np.float64(log_p)) ** (1 / temperature)
    found = demo_run.predict(digits.images, members=True)
    np.testing.assert_allclose(
        found.probabilities["digit"], powers / powers.sum(1, keepdims=True), rtol=1e-5
    )
    own = stats.tempered(log_p, run.temperature[0])
    np.testing.assert_allclose(found.members["digit"][0], own, rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 28, 28), 255.0), r"lie in \[0, 1\]; these reach .* divide them by 255"),
        (np.full((2, 28, 28), -1.0), r"lie in \[0, 1\]; these reach from -1 to -1"),
        (np.full((2, 28, 28), np.nan), "no numbers"),
        (np.zeros((2, 27, 28), np.uint8), r"must be \[N, 28, 28\], not \[2, 27, 28\]"),
        (np.zeros((2, 28, 28, 3), np.uint8), r"not \[2, 28, 28, 3\]"),
        (np.zeros((0, 28, 28), np.uint8), "no images"),
        (np.eye(28, dtype=np.uint8), "from 0 to 1: pass them as floats or bool"),
        (np.full((28, 28), 256), "0 to 255; these reach from 256"),
        (np.zeros((2, 28, 28), complex), "not complex128"),
        ("seven.png", r"must be \[N, 28, 28\], not \[\]"),
    ],
)
def test_images_that_make_no_sense(demo_run, images, message):
    with pytest.raises(UserError, match=message):
        demo_run.predict(images)


def test_evaluate_counts(demo_run, digits):
    found = demo_run.evaluate(digits.images, digits.labels)
    best = demo_run.predict(digits.images).probabilities["digit"].argmax(axis=1)
    heads = found["test"]["heads"]
    assert heads["digit"] == pytest.approx((best == digits.labels).mean())
    assert heads["fourth"] == 1
    assert (
        demo_run.evaluate(numbers.widened(digits.images), [str(label) for label in digits.labels])
        == found
    )
    for labels, said in (([4], "must be 40"), (["1a"] * 40, "'1a' is neither")):
        with pytest.raises(UserError, match=said):
            demo_run.evaluate(digits.images, labels)


def test_evaluate_counts_single_digits(digits):
    run = digits_jax.load(ROOT / "results" / "mnist-mlp10")
    found = run.evaluate(digits.images, digits.labels)
    right = run.predict(digits.images, members=True).members["digit"].argmax(-1) == digits.labels
    np.testing.assert_allclose([m["test"] for m in found["members"]], right.mean(axis=1))
    assert run.evaluate(digits.images, {"digit": digits.labels}) == found
    with pytest.raises(UserError, match="0 to 9"):
        run.evaluate(digits.images, digits.labels.astype(int) + 1)


def test_the_reader_that_ships_answers_numbers(demo_run, digits):
    images = np.resize(digits.images, (56, 28, 28))  # as many as the columns that it sees
    found = demo_run.predict(images)
    number, digit = found.labels["number"], found.labels["digit"]
    assert np.mean(number == np.resize(digits.labels, 56).astype(str)) > 0.8
    for form in (images.reshape(56, 784), images[..., None], numbers.widened(images)):
        np.testing.assert_array_equal(demo_run.predict(form).labels["number"], number)
    np.testing.assert_array_equal(number[number != "?"].astype(int), digit[number != "?"])
    pairs = np.stack([images[:40], images[16:], *[0 * images[:40]] * 2], axis=1)
    found = demo_run.predict(np.asarray(numbers.compose(pairs))).labels["number"]
    labels = np.resize(digits.labels, 56).astype(str)
    assert np.mean(found == np.char.add(labels[:40], labels[16:])) > 0.6
    assert demo_run.evaluate(numbers.widened(images[:2]), ["42", "?"])["test"]["all_heads"] < 1


def test_dark_ink_is_seen_as_such_before_a_digit_is_widened(demo_run, digits):
    expected = demo_run.predict(digits.images).probabilities["digit"]
    for ink in ("dark", "auto"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = demo_run.predict(255 - digits.images, ink=ink)
        np.testing.assert_allclose(found.probabilities["digit"], expected, rtol=1e-6)


def test_the_network_is_plain_flax(demo_run, digits):
    images = numbers.widened(digits.images)
    logits = jax.vmap(demo_run.apply, (0, None))(demo_run.variables, digits.images)["digit"]
    log_p = Predictor(ROOT / "results" / "demo").predict(images)["digit"]
    np.testing.assert_allclose(jax.nn.log_softmax(logits), log_p, atol=1e-5)
    one = demo_run.member(0)
    assert jax.tree.structure(one["params"]) == jax.tree.structure(demo_run.params)
    np.testing.assert_allclose(
        demo_run.model.apply(one, images / 255)["digit"], logits[0], atol=1e-5
    )  # this run normalises by 1/255 alone
    slope = jax.grad(lambda x: demo_run.apply(one, x)["digit"].sum())(digits.images / 255)
    assert slope.shape == digits.images.shape
    assert float(jnp.abs(slope).max()) > 0
    with pytest.raises(IndexError):
        demo_run.member(1)


def test_a_folder_a_bare_file_and_what_is_neither(tmp_path, demo_run, digits):
    folder = ROOT / "results" / "demo"
    loaded = digits_jax.load(folder)
    assert loaded.summary["model"]["name"] == loaded.config.model.name
    assert (loaded.workdir, demo_run.workdir, demo_run.summary) == (folder, None, {})
    assert "demo, 1 members, 28x56, digit: 11 classes, second: 12 classes" in repr(loaded)
    with pytest.raises(UserError, match="holds no run"):
        digits_jax.load(tmp_path)
    (tmp_path / "model.npz").write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"is not the model\.npz of a run"):
        digits_jax.load(tmp_path / "model.npz")
    with pytest.raises(UserError, match=r"bare model\.npz"):
        demo_run.export(tmp_path)


def test_configs_by_name_and_by_file(tmp_path):
    assert {"mnist100", "compact"} < set(config_names())
    config = digits_jax.get_config("compact:phase5", epochs=3, optimizer={"learning_rate": 0.5})
    assert (config.name, config.epochs, config.optimizer.learning_rate) == (
        "compact-phase5",
        3,
        0.5,
    )
    own = tmp_path / "mine.py"
    own.write_text(
        "from digits_jax import get_base\n"
        "def get_config(variant=''):\n"
        "    config = get_base('mine', variant, ('one', 'two'))\n"
        "    config.model.name = 'mlp'\n"
        "    return config\n"
    )
    assert digits_jax.get_config(f"{own}:two").name == "mine-two"
    assert digits_jax.get_config(own).name == "mine"
    own.write_text(own.read_text().replace("variant=''", "").replace("variant,", "'',"))
    assert digits_jax.get_config(own).name == "mine"
    fields = {
        "model": {"hidden": (8,)},
        "search": {"space": {"label_smoothing": ("uniform", 0, 1)}},
    }
    config = digits_jax.get_config("mnist:mlp10", **fields, **{"model.activation": "tanh"})
    assert (config.model.hidden, config.model.activation) == ((8,), "tanh")
    assert config.search.space.label_smoothing == ("uniform", 0, 1)
    for name, fields, message in (
        ("mnist", {"name": "x", "nme": 1}, "did you mean 'name'"),
        ("compat", {}, "did you mean 'compact'"),
        ("compact:phase9", {}, "did you mean 'phase"),
        ("compact", {"epoch": 3}, "did you mean 'epochs'"),
        ("compact", {"epochs": "three"}, "config.epochs='three'"),
    ):
        with pytest.raises(UserError, match=message):
            digits_jax.get_config(name, **fields)


class Linear(nn.Module):
    """Logits straight from the pixels."""

    heads: dict[str, int]
    scale: list[float] | None = None  # a type that the package's own models don't have

    @nn.compact
    def __call__(self, images, *, train=False, dropout_rate=0.0):
        flat = images.reshape(len(images), -1)
        return {head: nn.Dense(n, name=head)(flat) for head, n in self.heads.items()}


def test_a_model_and_an_augmentation_of_ones_own(tmp_path, cache, registries, unpictured):
    digits_jax.register_model("linear", Linear)
    digits_jax.register_augmentation(
        "dots",
        lambda key, images, p: jnp.where(jax.random.bernoulli(key, p, images.shape), 1, images),
    )
    config = shrink(get_base("own", "", ("own",)), cache)
    config.data.dataset = "mnist"
    config.model.update(name="linear")
    config.augment.dots = 0.05
    before = config.to_json()
    run = digits_jax.train(config, tmp_path / "run")
    assert config.to_json() == before
    assert jax.tree.map(jnp.shape, run.params) == {
        "digit": {"bias": (1, 10), "kernel": (1, 784, 10)}
    }
    assert run.summary["model"]["parameters"] == 7850
    for name, call in (
        ("mlp", lambda: digits_jax.register_model("mlp", Linear)),
        ("pen", lambda: digits_jax.register_augmentation("pen", lambda key, images, p: images)),
        ("a b", lambda: digits_jax.register_model("a b", Linear)),
        ("Dense", lambda: digits_jax.register_model("dense", nn.Dense)),
    ):
        with pytest.raises(UserError, match=name):
            call()


def test_a_model_that_is_not_registered_here(tmp_path, cache, registries, unpictured):
    config = shrink(get_base("own", "", ("own",)), cache)
    config.model.name = "linear"
    with pytest.raises(UserError, match="there is no 'linear'"):
        digits_jax.train(config, tmp_path)
    config.model.name = "mlp"
    config.augment.unlock()
    config.augment.dots = 0.5
    with pytest.raises(UserError, match=r"register_augmentation.*there is no 'dots'"):
        digits_jax.train(config, tmp_path)


def test_the_fields_of_augment_are_all_known():
    assert set(get_base("any", "", ("any",)).augment) == set(AUGMENTATIONS)


def test_results_without_weights_say_how_to_make_them():
    for folder in sorted((ROOT / "results").glob("*/")):
        if (folder / "config.json").exists() and not (folder / "model.npz").exists():
            command = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["command"]
            with pytest.raises(UserError, match="without weights; to make them: ") as error:
                digits_jax.load(folder)
            assert str(error.value).endswith(command)
