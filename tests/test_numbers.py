"""Numbers of touching digits, what is no digit, and the network that reads along a line."""

import hashlib
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_of, shrink

from digits_jax import settings
from digits_jax.analysis import evaluate, more_pairs
from digits_jax.console import percent
from digits_jax.data import drawn, ink, nondigits, numbers
from digits_jax.data.recipes import RECIPES, class_names
from digits_jax.errors import UserError
from digits_jax.export import export
from digits_jax.export.demo import site
from digits_jax.models.line import Line, emitted
from digits_jax.training.predictor import Predictor
from digits_jax.training.reader import Reader
from digits_jax.training.train import train

ROOT = Path(__file__).parent.parent
RECIPE = RECIPES["number"]
EMPTY = np.zeros((28, 28), np.uint8)


def text_of(columns):
    """What columns say: 0 is nothing, and the same symbol again counts once."""
    return [c for i, c in enumerate(columns) if c and (i == 0 or columns[i - 1] != c)]


@pytest.mark.parametrize("places", [1, 2, 3])
def test_emitted_sums_over_all_ways_to_say_a_text(places):
    columns, symbols = 4, 2
    says = np.random.default_rng(0).dirichlet(np.ones(1 + symbols), (1, columns))
    expected = np.zeros((places, symbols))
    for way in itertools.product(range(1 + symbols), repeat=columns):
        p = np.prod([says[0, t, c] for t, c in enumerate(way)])
        for place, symbol in enumerate(text_of(way)[:places]):
            expected[place, symbol - 1] += p
    np.testing.assert_allclose(emitted(jnp.asarray(says), places)[0], expected, atol=1e-6)


def test_a_line_answers_probabilities_for_every_place():
    heads = {"first": 3, "second": 4}
    model = Line(heads, stem=2, features=(2, 3), mix=4)
    images = jnp.ones((2, 28, 56))
    variables = model.init(jax.random.key(0), images)
    log_p = model.apply(variables, images)
    assert {head: x.shape for head, x in log_p.items()} == {"first": (2, 3), "second": (2, 4)}
    np.testing.assert_allclose(jnp.exp(log_p["second"]).sum(axis=1), 1, atol=1e-4)
    with pytest.raises(UserError, match="C \\+ 1"):
        Line({"first": 3, "second": 3}).init(jax.random.key(0), images)


def test_rows_are_digits_with_nothing_after_them_or_one_stranger():
    rows = numbers.draw(np.random.default_rng(0), 20_000, digits=100, strange=7)
    assert rows.shape == (20_000, numbers.PLACES)
    strange = (rows[:, 0] >= 100) & (rows[:, 0] < 107)
    assert abs(strange.mean() - numbers.STRANGE_SHARE) < 0.01
    assert (rows[strange, 1:] == 107).all()
    count = (rows[~strange] < 100).sum(axis=1)
    assert (np.sort(rows[~strange] == 107, axis=1) == (rows[~strange] == 107)).all()
    for n, share in enumerate(numbers.COUNTS, 1):
        assert abs((count == n).mean() - share) < 0.015


def test_texts_as_labels():
    labels = numbers.spelled(["07", "?", "1234"])
    assert labels.tolist() == [[0, 7, 11, 11], [10, 11, 11, 11], [1, 2, 3, 4]]
    for text in ("", "12345", "1?", "-1"):
        with pytest.raises(UserError, match="is neither"):
            numbers.spelled([text])


def alone(digits):
    return np.asarray(RECIPE.compose(np.stack([digits, *[np.zeros_like(digits)] * 3], axis=1)))


def test_a_digit_alone_stays_as_it_is():
    digits = drawn.digits(0, 60).images
    wide = [
        np.ptp(np.flatnonzero(x.max(0) > 38)) > np.ptp(np.flatnonzero(x.max(1) > 38))
        for x in digits
    ]
    digits = digits[~np.asarray(wide)]
    assert len(digits) > 30
    np.testing.assert_array_equal(alone(digits), np.pad(digits, ((0, 0), (0, 0), (14, 14))))


def test_half_of_the_wide_ones_are_as_high_as_in_a_photograph():
    rng = np.random.default_rng(0)
    digits = np.zeros((40, 28, 28), np.uint8)
    digits[:, 8:20, 4:24] = rng.integers(200, 256, (40, 12, 20))
    heights = [np.ptp(np.flatnonzero(x.max(1) > 60)) + 1 for x in alone(digits)]
    assert all(h == 12 or 19 <= h <= 23 for h in heights)
    assert 10 < sum(h == 12 for h in heights) < 30


def test_digits_touch_in_their_order():
    bar, ring = EMPTY.copy(), EMPTY.copy()
    bar[4:24, 13:16] = 255
    ring[4:24, 8:20] = 255
    ring[8:20, 11:17] = 0
    images = np.stack([bar, ring, EMPTY, EMPTY])[None]
    line = np.asarray(RECIPE.compose(images))[0]
    columns = np.flatnonzero(line.max(0) > 60)
    assert (np.diff(columns) == 1).all()  # one piece of ink
    left, right = line[:, : columns[0] + 3], line[:, columns[-1] - 8 :]
    assert np.ptp(np.flatnonzero(left.max(1) > 60)) >= 12  # the bar stands left
    middle = right[12:16, :6]
    assert (middle < 60).any()  # and the ring, which is hollow, right


def test_what_is_like_a_digit_is_not_taken_for_none():
    digits = drawn.digits(5, 400).images
    assert 0.4 < nondigits.like_digits(digits).mean() < 0.6
    lines = np.zeros((2, 28, 28), np.uint8)
    lines[0, 6:22:5, 4:24] = 255  # four lines, and their mirror in the diagonal
    lines[1] = lines[0].T
    assert not nondigits.like_digits(lines).any()
    assert not nondigits.like_digits(nondigits.nondigits(1, 50)).any()


def test_labels_and_names():
    labels = np.asarray([[3, 1, 11, 11], [10, 11, 11, 11], [0, 0, 0, 9]])
    found = {head: np.asarray(x).tolist() for head, x in RECIPE.label(labels).items()}
    assert found == {
        "digit": [3, 10, 0], "second": [1, 11, 0], "third": [11, 11, 0], "fourth": [11, 11, 9],
    }  # fmt: skip
    names = class_names({"dataset": "number", "classes": ()})
    assert names["digit"] == [*"0123456789", "?"]
    assert names["second"] == [*"0123456789", "?", ""]
    assert {head: len(x) for head, x in names.items()} == RECIPE.heads


def test_nondigits_are_placed_as_digits_are():
    images = nondigits.nondigits(0, 60)
    np.testing.assert_array_equal(images[:20], nondigits.nondigits(0, 20))
    assert images.shape == (60, 28, 28)
    assert images.dtype == np.uint8
    for image in images:
        assert image.max() > 200
        spans = [np.ptp(np.flatnonzero(image.max(axis) > 25)) + 1 for axis in (0, 1)]
        assert 8 <= max(spans) <= 24
    exam = ROOT / "reliability" / "nondigits.json"
    assert not set(nondigits.kinds()) & set(nondigits.kinds(exam))  # the exam's are not trained on
    assert nondigits.nondigits(0, 20, exam).shape == (20, 28, 28)
    assert len(set(nondigits.kinds()) & set("BDGIOQSTZbgiloqsyz")) == 0  # these look like digits


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data.dataset": "mnist"}, "nondigits is for"),
        ({"data.fresh_pairs": True}, "goes without"),
        ({"distill.teacher": "x", "distill.views": 2}, "goes without"),
        ({"data.folds": 2, "population.size": 2}, "goes without"),
    ],
)
def test_fields_that_do_not_go_with_numbers(fields, said):
    config = config_of("demo")
    settings.check(config)
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=said):
        settings.check(config)


@pytest.mark.slow
@pytest.mark.usefixtures("unpictured")
def test_a_run_of_numbers_reads_pieces_and_says_what_it_can_not(cache, tmp_path, monkeypatch):
    config = shrink(config_of("demo"), cache)
    config.model.update(stem=2, features=(2, 3), mix=4)
    config.epochs = 1
    train(config, tmp_path)
    run = Predictor(tmp_path)
    assert 0 <= run.threshold <= 1
    page = np.full((100, 200), 255, np.uint8)
    page[30:70, 40:46] = page[30:70, 120:126] = 0
    found = Reader(run).read(ink.find(page))
    assert len(found.digits) >= 2
    assert set(found.text) <= set("0123456789?")
    (cache / site.RUNTIME).mkdir(exist_ok=True)
    (cache / site.RUNTIME / "x.mjs").write_text("module")
    monkeypatch.setattr(site, "FILES", {"x.mjs": hashlib.sha256(b"module").hexdigest()})
    export.export(config, tmp_path)
    facts = json.loads((tmp_path / export.FOLDER / export.PAGE / "facts.json").read_text())
    assert (facts["kind"], facts["threshold"]) == ("line", run.threshold)
    card = " ".join((tmp_path / export.FOLDER / export.CARD).read_text().split())
    assert "`digit` [B, 11], `second` [B, 12]" in card
    test = json.loads((tmp_path / "summary.json").read_text())["test"]
    assert test["all_heads"] < test["accuracy"]
    assert f"| {percent(test['all_heads'])} |" in card
    assert f"It read {percent(test['all_heads'])} of them right." in facts["card"]
    assert "of digits that a program draws, of what is no digit." in facts["card"]
    assert "connected ink: a digit, or up to four that touch." in card
    with pytest.raises(UserError, match="--mode=read"):
        evaluate.evaluate(config, tmp_path, "photo.png", "auto")
    with pytest.raises(UserError, match="is for pairs"):
        more_pairs.more_pairs(config, tmp_path)
