"""Files and command lines as nobody should write them: a right answer, or one clear line."""

import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digits_jax import settings as configs
from digits_jax.data.pictures import read
from digits_jax.data.recipes import RECIPES
from digits_jax.errors import UserError
from digits_jax.report import artifacts, results
from reliability import inputs

ONE_FOLDER = [HealthCheck.function_scoped_fixture]  # each example writes its file anew
KEYS = st.sampled_from(
    (
        *("epoch", "data", "source", "population", "slice", "config", "members", "mean", "test"),
        *("model", "parameters", "seconds", "total", "train", "accuracy", "heads", "quoted", "x"),
    )
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def fuzz(count):
    return settings(
        max_examples=count, deadline=None, derandomize=True, suppress_health_check=ONE_FOLDER
    )


def refused(error, name):
    assert name in str(error)


@fuzz(200)
@given(document=JSON)
def test_any_json_as_a_config_or_a_summary(tmp_path, document):
    for name, reader in (("config.json", configs.read), ("summary.json", results.read)):
        (tmp_path / name).write_text(json.dumps(document))
        try:
            value = reader(tmp_path)
        except UserError as error:
            refused(error, name)
        else:
            assert value


@fuzz(200)
@given(rows=st.lists(JSON, max_size=4))
def test_any_json_lines_as_metrics(tmp_path, rows):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        kept = artifacts.rewind(path, 3)
    except UserError as error:
        refused(error, "metrics.jsonl")
    else:
        assert all(row["epoch"] <= 3 for row in kept)


@fuzz(100)
@given(
    shape=st.lists(st.integers(0, 30), max_size=4),
    kind=st.sampled_from(["u1", "i8", "f4", "f8", "?", "U2", "c8", "M8[s]"]),
    labels=st.none() | st.lists(st.integers(-2, 11), max_size=3),
)
def test_any_arrays_as_images(tmp_path, shape, kind, labels):
    arrays = {"images": np.zeros(shape, kind)} | ({} if labels is None else {"labels": labels})
    np.savez(tmp_path / "x.npz", **arrays)
    try:
        found = read(tmp_path / "x.npz", "auto", RECIPES["mnist"])
    except UserError as error:
        refused(error, "x.npz")
    else:
        assert found.images.shape == (len(found.names), 28, 28)


def test_damaged_files_are_refused_or_read_as_they_were(cache, tmp_path):
    """A few of the thousands of `python -m reliability.run --sections=inputs`."""
    rng = random.Random(0)
    for name, reader in inputs.readers(tmp_path, cache).items():
        said = inputs.fuzz(reader, 40, rng, tmp_path)
        assert set(said) <= {"read", "refused"}, (name, said)


def test_damaged_pictures_are_refused_or_read_somehow(tmp_path):
    """A few of the thousands of `python -m reliability.run --sections=inputs`."""
    rng = random.Random(0)
    for name, reader in inputs.pictures_of_sevens(tmp_path).items():
        assert reader.read(reader.seed) == "7", name
        said = inputs.fuzz(reader, 4, rng, tmp_path, inputs.HEADER)
        assert set(said) <= {"read", "refused"}, (name, said)


def test_a_wrong_answer_would_be_noticed(tmp_path):
    """A reader that takes whatever it finds: the harness must not let that pass."""
    (tmp_path / "seed").write_bytes(b"0123456789")
    taken = inputs.Reader(
        lambda path: np.frombuffer(path.read_bytes(), np.uint8), tmp_path / "seed"
    )
    assert inputs.fuzz(taken, 50, random.Random(0), tmp_path)["wrong"] > 30


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_checkpoint_is_not_taken_for_a_good_one(tmp_path):
    said = inputs.checkpoints(tmp_path, 25, random.Random(0))
    assert set(said) <= {"read", "the one before"}
    assert said["the one before"] > 3
