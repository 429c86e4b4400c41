"""What damages digits, by hand; and a run's figures."""

import json
from itertools import pairwise

import numpy as np
import pytest
from conftest import config_of, shrink

from digits_jax.analysis.robustness import CORRUPTIONS, corrupt, robustness
from digits_jax.data import dataset
from digits_jax.errors import UserError
from digits_jax.training.predictor import Predictor
from digits_jax.training.train import train


def bar(width=4, n=64):
    """A white upright bar of that width on black."""
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, 4:24, 12 : 12 + width] = 255
    return images


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_the_same_every_time_and_stronger_with_the_level(name):
    images = bar()
    away = []
    for level in CORRUPTIONS[name].levels:
        damaged = corrupt(images, name, level)
        assert damaged.shape == images.shape
        assert damaged.dtype == np.uint8
        np.testing.assert_array_equal(damaged, corrupt(images, name, level))
        away.append(np.abs(damaged.astype(float) - images).mean())
    assert away[0] > 0
    assert all(a < b for a, b in pairwise(away))


def test_shifts_are_whole_pixels_in_eight_directions():
    images = np.zeros((200, 28, 28), np.uint8)
    images[:, 14, 14] = 255
    where = np.argwhere(corrupt(images, "shift", 3))
    assert len(where) == 200
    ends = {(y - 14, x - 14) for _, y, x in where}
    assert ends == {(dy, dx) for dy in (-3, 0, 3) for dx in (-3, 0, 3)} - {(0, 0)}


def test_shifted_ink_leaves_the_image():
    images = np.full((50, 28, 28), 255, np.uint8)
    kept = (corrupt(images, "shift", 4) > 0).sum((1, 2))
    assert set(kept) == {24 * 28, 24 * 24}


def test_rotation_goes_either_way_about_the_centre():
    images = np.roll(bar(), 5, axis=2)
    ways = {image.tobytes() for image in corrupt(images, "rotation", 90)}
    expected = {np.rot90(images[0], k).tobytes() for k in (1, 3)}
    assert ways == expected
    assert len(expected) == 2


def test_noise_has_its_standard_deviation():
    grey = np.full((64, 28, 28), 127, np.uint8)
    assert corrupt(grey, "noise", 0.1).std() / 255 == pytest.approx(0.1, rel=0.01)


def test_blur_spreads_a_point_by_its_standard_deviation():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 12:16, 12:16] = 255  # flat: a variance of 15 / 12 along either axis
    rows = corrupt(image, "blur", 1.5)[0].astype(float).sum(1)
    y = np.arange(28) - 13.5
    assert (rows * y**2).sum() / rows.sum() == pytest.approx(1.5**2 + 15 / 12, rel=0.03)


@pytest.mark.parametrize(("name", "sign"), [("thick", 1), ("thin", -1)])
def test_strokes_grow_and_shrink_by_the_level(name, sign):
    for level in CORRUPTIONS[name].levels:
        across = corrupt(bar(), name, level)[:, 14].sum(-1) / 255
        clean = bar()[:, 14].sum(-1) / 255
        np.testing.assert_allclose(across, clean + sign * level, atol=0.01)


@pytest.mark.parametrize("name", ["thick", "thin"])
def test_strokes_that_do_not_grow_stay_as_they_are(name):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    np.testing.assert_array_equal(corrupt(images, name, 0), images)


def test_a_run_says_how_it_takes_damage(cache, tmp_path):
    """Each digit is damaged on its own, then the image is composed."""
    config = shrink(config_of("two_head:mlp"), cache)
    config.epochs = config.population.size = 2
    train(config, tmp_path)
    before = json.loads((tmp_path / "summary.json").read_text())
    robustness(config, tmp_path)
    after = json.loads((tmp_path / "summary.json").read_text())
    found = after.pop("robustness")
    assert after == before
    assert {name: [float(x) for x in levels] for name, levels in found.items()} == {
        name: list(kind.levels) for name, kind in CORRUPTIONS.items()
    }
    assert (tmp_path / "robustness.png").stat().st_size > 1000
    test, run = dataset.load(config.data).test, Predictor(tmp_path)
    for name, level in (("rotation", 20), ("noise", 0.4)):
        digits = corrupt(np.asarray(test.images), name, level)
        images = np.zeros((test.size, 42, 28), np.uint8)
        upper, lower = np.asarray(test.rows).T
        images[:, :28] = digits[upper]
        images[:, 14:] = np.maximum(images[:, 14:], digits[lower])
        right = {
            head: run.predict(images)[head].argmax(-1) == np.asarray(test.labels)[rows]
            for head, rows in (("upper", upper), ("lower", lower))
        }
        expected = np.mean([right["upper"].mean(1), right["lower"].mean(1)], axis=0)
        assert found[name][f"{level:g}"]["mean"] == pytest.approx(expected.mean())
        assert found[name][f"{level:g}"]["std"] == pytest.approx(expected.std(ddof=1))


def test_a_run_without_test_accuracy_is_not_damaged(cache, tmp_path):
    config = shrink(config_of("two_head:mlp"), cache)
    config.update(epochs=1, report_test=False)
    train(config, tmp_path)
    with pytest.raises(UserError, match="no test accuracy is reported there"):
        robustness(config, tmp_path)
