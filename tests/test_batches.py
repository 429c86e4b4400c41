"""From a config to batches: splits, normalisers, and what may never be mixed."""

import os
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import config_of, shrink

from digits_jax.data import batches, dataset, drawn, sources
from digits_jax.errors import UserError
from digits_jax.types import Digits


@pytest.fixture
def numbered(monkeypatch):
    """Training digits whose first two pixels are their number, and test digits marked apart."""

    def digits(n, mark):
        images = np.zeros((n, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1], images[:, 1, 0] = *divmod(np.arange(n), 256), mark
        return Digits(images, (np.arange(n) % 10).astype(np.uint8))

    monkeypatch.setattr(sources, "load", lambda *_: (digits(1000, 1), digits(300, 2)))


def data_config(**fields):
    config = config_of("mnist100").data
    config.update(**({"source": "mnist", "train": 400, "test": 60} | fields))
    return config


def ids(split):
    """The digits it is made of."""
    assert set(np.unique(split.rows)) <= set(np.asarray(split.pool).tolist())
    images = np.asarray(split.images, int)[split.pool]
    return set((images[:, 0, 0] * 256 + images[:, 0, 1]).tolist())


def test_no_digit_on_both_sides_of_a_split(numbered):
    data = dataset.load(data_config(train=0))
    train, validation = ids(data.train), ids(data.validation)
    assert not train & validation
    assert train | validation == set(range(1000))
    assert len(validation) == 100
    assert set(np.unique(data.test.images[:, 1, 0])) == {2}
    assert set(np.unique(data.train.images[:, 1, 0])) == {1}


def test_labels_are_those_of_the_digits(numbered):
    data = dataset.load(data_config())
    for split in (data.train, data.validation, data.test):
        images, labels = dataset.examples(split, data.recipe)
        left = images[:, 0, 0].astype(int) * 256 + images[:, 0, 1]
        right = images[:, 0, 28].astype(int) * 256 + images[:, 0, 29]
        np.testing.assert_array_equal(labels["number"], 10 * (left % 10) + right % 10)


def test_the_sizes_and_the_seed(numbered):
    one, two = dataset.load(data_config()), dataset.load(data_config())
    other = dataset.load(data_config(seed=1))
    assert [len(s.rows) for s in (one.train, one.validation, one.test)] == [400, 40, 60]
    np.testing.assert_array_equal(one.train.rows, two.train.rows)
    assert not np.array_equal(one.train.rows, other.train.rows)


def test_without_validation_every_digit_trains(numbered):
    data = dataset.load(data_config(validation=0.0, train=0))
    assert data.validation is None
    assert len(ids(data.train)) == 1000


@pytest.mark.parametrize("name", ["mnist", "mnist100"])
def test_every_digit_is_held_out_in_one_fold(numbered, name):
    """1000 digits in 3 folds: one is left over and trains in each."""
    data = dataset.load(data_config(dataset=name, folds=3, train=0))
    assert data.train.rows.shape[:2] == (3, 667 if name == "mnist" else 60_000)
    held_out = []
    for fold in range(3):
        train, validation = ids(data.train.of(fold)), ids(data.validation.of(fold))
        assert len(validation) == 333
        assert train | validation == set(range(1000))
        assert not train & validation
        held_out += validation
        for split in (data.train, data.validation):
            images, labels = dataset.examples(split.of(fold), data.recipe)
            tens = images[:, 0, 0].astype(int) * 256 + images[:, 0, 1]
            head = next(iter(labels))
            np.testing.assert_array_equal(labels[head] // (1 if name == "mnist" else 10), tens % 10)
            np.testing.assert_array_equal(
                labels[head], dataset.labels(split, data.recipe)[head][fold]
            )
    assert len(set(held_out)) == len(held_out) == 999
    assert data.test.rows.ndim == 2


def test_folds_refuse_what_would_leak_or_leave_nothing(numbered):
    with pytest.raises(UserError, match="normalize=unit"):
        dataset.load(data_config(folds=2, normalize="global"))
    with pytest.raises(UserError, match=r"data\.folds=2000 of 1000 digits"):
        dataset.load(data_config(folds=2000))


def test_normalisers_by_a_second_computation(cache):
    config = shrink(config_of("mnist100"), cache).data
    for kind, axis in (("global", None), ("feature", 0)):
        config.normalize = kind
        data = dataset.load(config)
        pixels = dataset.examples(data.train, data.recipe)[0] / 255
        ours = batches.normalize(pixels.astype(np.float32), data.normalizer)
        deviation = pixels.std(axis=axis)
        safe = np.where(deviation < 1 / 255, 1, deviation)
        np.testing.assert_allclose(ours, (pixels - pixels.mean(axis=axis)) / safe, atol=1e-3)
        assert np.isfinite(ours).all()


def test_padded_rows():
    (one, full), (two, rest) = batches.padded_rows(np.arange(5)[:, None], 3)
    np.testing.assert_array_equal(one[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(two[:, 0], [3, 4, 0])
    np.testing.assert_array_equal(full, [True] * 3)
    np.testing.assert_array_equal(rest, [True, True, False])


def test_a_batch_is_its_images_and_labels(cache):
    config = shrink(config_of("two_head"), cache)
    data = dataset.load(config.data)
    images, labels = dataset.examples(data.train, data.recipe)
    config.augment.update(rotate=0.0, scale=0.0, shift_x=0.0, shift_y=0.0, elastic=0.0)
    rows = data.train.rows[:7]
    pipeline = batches.pipeline_of(config, data.recipe, data.train.size)
    pixels = batches.distorted(data.train, rows, jax.random.key(0), pipeline)
    batch = batches.batch_of(data.train, rows, pixels, data.normalizer, data.recipe)
    np.testing.assert_allclose(batch.images, images[:7] / 255, atol=1e-6)
    for head in labels:
        np.testing.assert_array_equal(batch.labels[head], labels[head][:7])


def test_drawn_digits_are_cached_and_a_damaged_cache_is_drawn_anew(cache, tmp_path, monkeypatch):
    one = dataset._drawn(tmp_path, 3, 20)
    (file,) = (tmp_path / "drawn").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(drawn, "digits", lambda *_: pytest.fail("it is cached"))
        np.testing.assert_array_equal(dataset._drawn(tmp_path, 3, 20).images, one.images)
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(dataset._drawn(tmp_path, 3, 20).images, one.images)


def test_auto_falls_back_to_drawn_digits_but_not_over_a_named_folder(cache, monkeypatch, tmp_path):
    def unreachable(*_):
        raise UserError("no network")

    monkeypatch.setattr(sources, "load", unreachable)
    config = shrink(config_of("mnist100"), cache).data
    config.source = "auto"
    data = dataset.load(config)
    assert (data.source, data.test_source) == ("drawn", "drawn")
    found, reason = dataset.find(config)
    assert (found.source, reason) == ("drawn", "no network")
    assert config.source == "auto"
    config.raw_dir = str(tmp_path)
    for call in (dataset.load, dataset.find):
        with pytest.raises(UserError, match="no network"):
            call(config)
    config.update(source="mnist", raw_dir="")
    with pytest.raises(UserError, match=r"^no network$"):
        dataset.load(config)


@pytest.mark.parametrize("there", [True, False])
def test_what_was_found_is_loaded_without_a_second_look(cache, monkeypatch, there):
    looks = []

    def look(*_):
        looks.append("network")
        if not there:
            raise UserError("no network")
        return [Digits(np.zeros((n, 28, 28), np.uint8), np.zeros(n, np.uint8)) for n in (60, 40)]

    monkeypatch.setattr(sources, "load", look)
    config = shrink(config_of("mnist"), cache).data
    config.source = "drawn"
    assert dataset.find(config) == (config, "")
    assert not looks
    config.source = "auto"
    config, reason = dataset.find(config)
    assert (config.source, bool(reason)) == (("mnist", False) if there else ("drawn", True))
    assert dataset.load(config).source == config.source
    assert len(looks) == (2 if there else 1)  # what is there comes from the cache


@pytest.mark.parametrize("there", [True, False])
def test_the_source_of_the_test_digits_is_the_one_that_was_had(cache, monkeypatch, caplog, there):
    def look(*_):
        if not there:
            raise UserError("no network")
        return [Digits(np.zeros((n, 28, 28), np.uint8), np.zeros(n, np.uint8)) for n in (60, 40)]

    monkeypatch.setattr(sources, "load", look)
    config = shrink(config_of("mnist"), cache).data
    config.test_source = "auto"
    data = dataset.load(config)
    assert (data.source, data.test_source) == ("drawn", "mnist" if there else "drawn")
    told = "no network; --config.data.test_source=mnist makes that an error"
    assert (told in caplog.text) == (not there)
    assert np.any(data.test.images) == (not there)


def test_without_a_home_the_cache_is_a_folder_of_ones_own(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = config_of("mnist").data
    folder = dataset.cache_dir(config)
    assert folder.parent == tmp_path
    assert dataset.cache_dir(config) == folder
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o700
        other = tmp_path / "other"
        folder.rename(other)
        folder.symlink_to(other)  # where it leads may be anybody's
        with pytest.raises(UserError, match=r"somebody else's; pass --config\.data\.cache_dir"):
            dataset.cache_dir(config)
        folder.unlink()
        other.rename(folder)
        found = os.stat_result([0o40700, *[0] * 3, os.getuid() + 1, *[0] * 5])
        monkeypatch.setattr(Path, "lstat", lambda _: found)
        with pytest.raises(UserError, match="somebody else's"):
            dataset.cache_dir(config)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"No such file.*; pass --config\.data\.cache_dir"):
        dataset.cache_dir(config)
    config.cache_dir = "~nobody-of-that-name/x"
    with pytest.raises(UserError, match=r"data\.cache_dir=~nobody.* give the full path"):
        dataset.cache_dir(config)


def test_unknown_names(cache):
    config = shrink(config_of("mnist100"), cache).data
    config.dataset = "mnist10"
    with pytest.raises(UserError, match=r"data\.dataset.*did you mean 'mnist100'"):
        dataset.load(config)


def test_examples_by_class(numbered):
    """The labels of `numbered` digits are their numbers modulo ten."""
    data = dataset.load(data_config(dataset="mnist", validation=0.0))
    shown = dataset.by_class(data.train, data.recipe, 3)
    images = dataset.examples(shown, data.recipe)[0].astype(int)
    numbers = images[:, 0, 0] * 256 + images[:, 0, 1]
    np.testing.assert_array_equal(numbers, [c + 10 * i for c in range(10) for i in range(3)])


def test_drawn_digits_train_beside_mnist_and_nowhere_else(numbered, tmp_path):
    fields = {"drawn_extra": 50, "cache_dir": str(tmp_path), "train": 0}
    one = dataset.load(data_config(dataset="mnist"))
    more = dataset.load(data_config(dataset="mnist", **fields))
    assert [s.size for s in (more.train, more.validation, more.test)] == [950, 100, 60]
    np.testing.assert_array_equal(more.validation.rows, one.validation.rows)
    np.testing.assert_array_equal(more.test.images, one.test.images)
    extra = drawn.digits(0, 50, even=True, distortion=1.0)
    images, labels = dataset.examples(more.train, more.recipe)
    np.testing.assert_array_equal(images[900:], extra.images)
    np.testing.assert_array_equal(labels["digit"][900:], extra.labels)
    pairs = dataset.load(data_config(**fields | {"train": 400}))
    assert 0 < np.mean(np.asarray(pairs.train.rows) >= 1000) < 0.2


@pytest.mark.parametrize("folds", [0, 3])
def test_fewer_single_digits_train_beside_all_drawn_ones(numbered, tmp_path, folds):
    """`data.train` counts MNIST's digits: the first of those that train anyway."""
    fields = {"dataset": "mnist", "drawn_extra": 50, "cache_dir": str(tmp_path), "folds": folds}
    few, every = (dataset.load(data_config(**fields, train=n)) for n in (30, 0))
    for fold in range(folds or 1):
        kept = every.train.of(fold).pool
        expected = np.concatenate([kept[:30], np.arange(1000, 1050)])
        np.testing.assert_array_equal(few.train.of(fold).rows[:, 0], expected)
        np.testing.assert_array_equal(few.train.of(fold).pool, expected)
    assert (few.digits, few.drawn_extra) == (80, 50)
    assert (every.digits, every.drawn_extra) == ((667 if folds else 900) + 50, 50)
    np.testing.assert_array_equal(few.validation.rows, every.validation.rows)


@pytest.mark.parametrize("name", ["mnist100", "two_digit"])
@pytest.mark.parametrize("folds", [0, 3])
def test_fresh_pairs_are_of_the_digits_that_train(numbered, tmp_path, name, folds):
    """With `data.train` of those that its pairs are made of, without of all that are kept."""
    fields = {"dataset": name, "drawn_extra": 500, "cache_dir": str(tmp_path), "folds": folds}
    few, every = (dataset.load(data_config(**fields, train=n, fresh_pairs=True)) for n in (40, 0))
    for fold in range(folds or 1):
        own = few.train.of(fold)
        np.testing.assert_array_equal(own.pool, sorted(set(np.ravel(own.rows).tolist())))
        assert set(np.asarray(own.pool)) < set(np.asarray(every.train.of(fold).pool))
        assert not set(np.asarray(own.pool)) & set(np.asarray(few.validation.of(fold).pool))
        assert (few.digits, few.drawn_extra) == (len(own.pool), (own.pool >= 1000).sum())
    assert few.validation.pool.shape == every.validation.pool.shape
    assert few.test.pool.shape == every.test.pool.shape == (300,)
    assert 40 < few.digits <= 80
    assert 0 < few.drawn_extra < few.digits
    assert (every.digits, every.drawn_extra) == ((667 if folds else 900) + 500, 500)


def test_pairs_that_stay_count_the_digits_that_they_are_made_of(numbered, tmp_path):
    """1400 digits in 400 pairs, but the pool of a whole recipe stays what it was."""
    fields = {"dataset": "mnist100", "drawn_extra": 500, "cache_dir": str(tmp_path)}
    data = dataset.load(data_config(**fields, train=60_000))
    assert (data.digits, data.drawn_extra, len(data.train.pool)) == (1400, 500, 1400)
    data = dataset.load(data_config(**fields))
    used = set(np.ravel(data.train.rows).tolist())
    assert data.digits == len(used) < 800
    assert data.drawn_extra == sum(i >= 1000 for i in used) < 400


def test_even_digits_show_what_the_weights_leave_out():
    even, usual = (drawn.table(even).cumulative for even in (True, False))
    assert (np.diff(usual[1], prepend=0) > 0).sum() == 7
    shares = np.diff(even[1], prepend=0)
    np.testing.assert_allclose(shares[:9], 1 / 9, rtol=1e-5)
    assert not shares[9:].any()
