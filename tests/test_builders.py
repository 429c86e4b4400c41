"""The published datasets, prepared small and read back."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from digits_jax.data import recipes, sources
from digits_jax.errors import UserError

needs_array_record = pytest.mark.skipif(
    importlib.util.find_spec("array_record") is None, reason="array_record is Linux-only"
)
TRAIN, TEST = 40, 10  # digits


@pytest.fixture
def no_tensorflow():
    """Nothing in the test may load it, even where it is installed."""
    before = "tensorflow" in sys.modules
    yield
    assert ("tensorflow" in sys.modules) == before


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [
        rng.integers(256, size=(TRAIN, 28, 28), dtype=np.uint8),
        rng.integers(10, size=TRAIN, dtype=np.uint8),
        rng.integers(256, size=(TEST, 28, 28), dtype=np.uint8),
        rng.integers(10, size=TEST, dtype=np.uint8),
    ]


@needs_array_record
@pytest.mark.parametrize("name", ["mnist100", "two_digit"])
@pytest.mark.parametrize("raw_dir", ["", "somewhere"])
def test_reads_back_the_recipe(name, raw_dir, arrays, tmp_path, monkeypatch, no_tensorflow):
    import tensorflow_datasets as tfds

    import digits_jax.data.builders  # noqa: F401

    recipe = recipes.RECIPES[name]._replace(train=30, test=7)
    monkeypatch.setitem(recipes.RECIPES, name, recipe)
    if raw_dir:
        monkeypatch.setattr(sources, "read", {raw_dir: arrays}.__getitem__)
    else:
        monkeypatch.setattr(sources, "download", lambda manager: arrays)
    data = tfds.data_source(
        name,
        data_dir=tmp_path,
        builder_kwargs={"file_format": "array_record", "raw_dir": raw_dir},
    )
    assert {split: len(source) for split, source in data.items()} == {"train": 30, "test": 7}

    for split, images, labels in [("train", *arrays[:2]), ("test", *arrays[2:])]:
        examples = data[split].__getitems__(range(len(data[split])))
        draws = recipes.draw_pairs(recipes.generator(0, split), len(examples), len(labels), 2)
        for (first, second), example in zip(draws, examples, strict=True):
            assert example["image"].dtype == np.uint8
            if name == "mnist100":
                image = np.hstack([images[first], images[second]])
                assert example["number"] == 10 * int(labels[first]) + labels[second]
            else:
                image = np.zeros((42, 28), np.uint8)
                image[:28] = images[first]
                image[14:] = np.maximum(image[14:], images[second])
                assert (example["upper"], example["lower"]) == (labels[first], labels[second])
            np.testing.assert_array_equal(example["image"], image)


@needs_array_record
def test_without_a_network_it_is_one_error_that_fits(tmp_path, monkeypatch, no_tensorflow):
    """The ways out are the builder's own, not the launcher's."""
    import requests
    import tensorflow_datasets as tfds

    import digits_jax.data.builders  # noqa: F401

    def send(*args, **kwargs):
        raise requests.exceptions.ConnectionError("no route to there")

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    with pytest.raises(UserError) as error:
        tfds.data_source("mnist100", data_dir=tmp_path)
    assert "ConnectionError: no route to there" in str(error.value)
    assert 'builder_kwargs={"raw_dir": "DIR"}' in str(error.value)
    assert "--config" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_says_so_where_array_record_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "digits_jax.data.builders", raising=False)
    with pytest.raises(UserError, match="Linux"):
        importlib.import_module("digits_jax.data.builders")


def test_training_does_not_import_tfds():
    """tensorflow-datasets is slow to import, and array_record is missing on macOS and Windows."""
    code = (
        "import sys; from digits_jax.data import recipes, sources; "
        "print([m for m in ('tensorflow_datasets', 'tensorflow', 'array_record') "
        "if m in sys.modules])"
    )
    root = pathlib.Path(__file__).parents[1]
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env=os.environ,
    )
    assert out.stdout.strip() == "[]"
