"""The artefact of a finished run, cross-validation and distillation, end to end."""

import functools
import json
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import built, config_of, shrink, slow_except
from jax.test_util import check_grads

from digits_jax.analysis.best_test_epoch import best_test_epoch
from digits_jax.analysis.more_pairs import DRAWS, more_pairs
from digits_jax.core import population
from digits_jax.core.step import distillation
from digits_jax.data import dataset, drawn
from digits_jax.data.recipes import STREAMS
from digits_jax.errors import UserError
from digits_jax.training import distill
from digits_jax.training.predictor import FILE, Predictor, epoch_file
from digits_jax.training.train import train
from digits_jax.types import Teacher

RESULTS = Path(__file__).parent.parent / "results"

pytestmark = pytest.mark.usefixtures("unpictured")


def tiny(cache, **fields):
    config = shrink(config_of("two_head:mlp"), cache)
    config.model.hidden = (8,)
    config.update(epochs=1, **fields)
    return config


@pytest.fixture(scope="module")
def pair(cache, tmp_path_factory):
    """A population of two."""
    workdir = tmp_path_factory.mktemp("pair")
    config = tiny(cache)
    config.population.size = 2
    train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def three(cache, tmp_path_factory):
    """A population of three, trained by two at a time."""
    workdir = tmp_path_factory.mktemp("three")
    config = tiny(cache)
    config.population.update(size=3, slice=2)
    train(config, workdir)
    return workdir


def test_the_artefact_is_the_checkpoint(pair, tmp_path):
    one = Predictor(pair)
    (tmp_path / "checkpoints").symlink_to(pair / "checkpoints")
    (tmp_path / "config.json").write_bytes((pair / "config.json").read_bytes())
    other = Predictor(tmp_path)
    chex.assert_trees_all_equal(one.weights, other.weights)
    chex.assert_trees_all_equal(one.normalizer, other.normalizer)
    assert one.epochs == other.epochs
    images = np.random.default_rng(0).integers(0, 256, (3, 42, 28), np.uint8)
    for head, log_p in one.predict(images).items():
        assert log_p.shape == (2, 3, 10)
        np.testing.assert_array_equal(log_p, other.predict(images)[head])


@pytest.mark.parametrize("name", [path.parent.name for path in sorted(RESULTS.glob("*/model.npz"))])
def test_committed_weights_read_drawn_digits(name):
    """The linear networks and the MLPs, which know MNIST alone, some two thirds of them."""
    run = Predictor(RESULTS / name)
    k = run.recipe.digits
    digits = drawn.digits(0, 200 * k)
    images = np.asarray(run.recipe.compose(digits.images.reshape(200, k, 28, 28)))
    labels = run.recipe.label(digits.labels.reshape(200, k))
    for head, log_p in run.predict(images).items():
        assert log_p.shape == (run.config.population.size, 200, run.recipe.heads[head])
        np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1, rtol=1e-5)
        right = np.mean(log_p.argmax(axis=-1) == np.asarray(labels[head]))
        assert right > (0.6 if "mlp" in name else 0.8), head


def test_a_digest_does_not_depend_on_the_slices(pair, monkeypatch):
    """A student may begin on one backend and go on on another."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    first, wide = Predictor(pair), Predictor(pair)
    for run, width in ((first, 1), (wide, 2)):
        run.config.population.slice = width
        run._slice()
    assert len(wide.teacher().weights) < len(first.teacher().weights)
    assert wide.digest() == first.digest()
    wide.weights = jax.tree.map(lambda x: x + 1, wide.weights)
    assert wide.digest() != first.digest()


@pytest.mark.parametrize(
    ("kept", "backend", "recorded", "at_once"),
    [
        (FILE, "gpu", 2, [2, 1]),
        (FILE, "gpu", 1, [1, 1, 1]),
        (FILE, "gpu", 0, [3]),  # it does not say
        (FILE, "cpu", 2, [1, 1, 1]),
        ("checkpoints", "gpu", 2, [2, 1]),
    ],
)
def test_no_more_members_at_once_than_in_training(
    three, tmp_path, monkeypatch, kept, backend, recorded, at_once
):
    """Nor than the backend takes."""
    config = json.loads((three / "config.json").read_text(encoding="utf-8"))
    assert config["population"]["slice"] == 2
    config["population"]["slice"] = recorded
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / kept).symlink_to(three / kept)
    images = np.random.default_rng(0).integers(0, 256, (3, 42, 28), np.uint8)
    expected = Predictor(three).predict(images)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    run, computed = Predictor(tmp_path), []
    program = run._predict

    def predict(weights, *rest):
        computed.append(len(jax.tree.leaves(weights)[0]))
        return program(weights, *rest)

    run._predict = predict
    chex.assert_trees_all_close(run.predict(images), expected, rtol=1e-5, atol=1e-6)
    assert computed == at_once


def test_predictions_are_in_memory_once(pair):
    """Batch by batch, and a part of one at the end; none of no images."""
    run = Predictor(pair)
    images = np.random.default_rng(0).integers(0, 256, (8010, 42, 28), np.uint8)
    run.config.eval_batch_size = 100
    run.predict(images[:100])
    tracemalloc.start()
    log_p = run.predict(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(values.nbytes for values in log_p.values())
    assert size == 2 * 8010 * 2 * 10 * 4
    assert peak < 1.5 * size
    run.config.eval_batch_size = 8010
    chex.assert_trees_all_close(log_p, run.predict(images), rtol=1e-5, atol=1e-6)
    for values in run.predict(images[:0]).values():
        assert values.shape == (2, 0, 10)


def test_temperatures_belong_to_the_artefact(pair):
    """One of each member and one of the ensemble, and what they do stands in the summary."""
    summary = json.loads((pair / "summary.json").read_text())["calibration"]
    temperature = Predictor(pair).temperature
    assert temperature.shape == (3,)
    assert summary["temperature"] == pytest.approx(temperature[:2].mean())
    assert summary["ensemble"]["temperature"] == pytest.approx(temperature[2])
    assert (pair / "calibration.png").exists()


@pytest.mark.parametrize("damage", ["cut", "shape", "pickle", "missing", "header"])
def test_a_damaged_artefact(pair, tmp_path, damage):
    (tmp_path / "config.json").write_bytes((pair / "config.json").read_bytes())
    with np.load(pair / FILE) as file:
        arrays = dict(file)
    name = "weights/params/Dense_0/kernel"
    match damage:
        case "shape":
            arrays[name] = arrays[name][:, 1:]
        case "pickle":
            arrays[name] = np.asarray([{"an": "object"}], object)
        case "missing":
            del arrays[name]
    np.savez(tmp_path / FILE, **arrays)
    if damage == "header":  # no Python, not even a character
        with zipfile.ZipFile(tmp_path / FILE, "a") as archive:
            archive.writestr("odd.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': \x1d    }\n")
    if damage == "cut":
        (tmp_path / FILE).write_bytes((pair / FILE).read_bytes()[:500])
    with pytest.raises(UserError, match="is not the model of this run"):
        Predictor(tmp_path)


def test_cross_validation(cache, tmp_path):
    """Two folds are two members, each validated on what it left out."""
    config = tiny(cache)
    config.data.folds = 2
    train(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["population"]["size"] == 2
    assert [member["seed"] for member in summary["members"]] == [0, 1]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["fold"] for row in rows] == [0, 1]
    trained, data = Predictor(tmp_path), dataset.load(config.data)
    for fold, member in enumerate(summary["members"]):
        images, labels = dataset.examples(data.validation.of(fold), data.recipe)
        log_p = trained.predict(images)
        right = [(log_p[h][fold].argmax(-1) == labels[h]).mean() for h in labels]
        assert member["validation"] == pytest.approx(np.mean(right))


def test_folds_and_members_that_do_not_fit(cache, tmp_path):
    config = tiny(cache)
    config.data.folds, config.population.size = 2, 3
    with pytest.raises(UserError, match=r"size=3 is no multiple of config\.data\.folds=2"):
        train(config, tmp_path)
    config.data.folds = 1
    with pytest.raises(UserError, match="at least 2"):
        train(config, tmp_path)


def test_distillation_by_hand(getkey, x64):
    """T = 2, logits 2 log(1/4, 3/4), targets (1/2, 1/2): 4 KL((1/2, 1/2) || (1/4, 3/4))."""
    logits = {"digit": 2 * jnp.log(jnp.array([[0.25, 0.75]]))}
    targets = {"digit": jnp.array([[0.5, 0.5]])}
    expected = 4 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    np.testing.assert_allclose(distillation(logits, targets, 2.0), [expected])
    sure = {"digit": jnp.array([[0.0, 1.0]])}
    np.testing.assert_allclose(distillation(logits, sure, 2.0), [4 * np.log(4 / 3)])
    same = {"digit": jax.nn.softmax(logits["digit"] / 3)}
    np.testing.assert_allclose(distillation(logits, same, 3.0), [0], atol=1e-15)
    random = {"digit": jax.random.normal(getkey(), (3, 5))}
    soft = {"digit": jax.nn.softmax(jax.random.normal(getkey(), (3, 5)))}
    check_grads(lambda x: distillation(x, soft, 2.0), (random,), order=1, modes=["rev"])


def test_a_teachers_targets(cache, pair):
    """The mean over its members of their softened probabilities, with its own normaliser."""
    teacher = Predictor(pair)
    soften = functools.partial(population.teacher_targets, temperature=3.0, program=teacher.program)
    images = np.random.default_rng(0).integers(0, 256, (4, 42, 28), np.uint8)
    targets = soften(teacher.teacher(), jnp.asarray(images / 255, jnp.float32))
    for head, log_p in teacher.predict(images).items():
        soft = np.exp(log_p / 3) / np.exp(log_p / 3).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(targets[head], soft.mean(axis=0), rtol=1e-5)
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 1], teacher.weights) for i in range(2)]
    doubled = Teacher(parts, teacher.normalizer)
    slices = soften(doubled, jnp.asarray(images / 255, jnp.float32))
    chex.assert_trees_all_close(slices, targets, rtol=1e-5)


def test_a_student_learns_from_its_teacher_alone(cache, pair, tmp_path):
    """With weight 1 the labels do not count; the first step's loss is that of the targets."""
    config = tiny(cache)
    config.distill.update(teacher=str(pair), weight=1.0, temperature=2.0)
    run = built(config)
    lies = run.data.train._replace(labels=9 - run.data.train.labels)
    losses = []
    for split in (run.data.train, lies):
        shared = run.shared._replace(split=split)
        own = population.train_steps(run.begin_epoch(0, 1), shared, program=run.program, steps=1)
        losses.append(float(own.totals.loss[0]))
    assert losses[0] == losses[1]
    train(config, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["config"]["distill"]["weight"] == 1


@pytest.fixture(scope="module")
def teachers(cache, tmp_path_factory):
    """A population of two that reads single digits."""
    workdir = tmp_path_factory.mktemp("teachers")
    config = shrink(config_of("mnist:mlp10"), cache)
    config.update(epochs=1)
    config.population.size = 2
    train(config, workdir)
    return workdir


@pytest.fixture
def taught(cache, teachers, tmp_path):
    """A config of pairs whose teacher is asked beforehand, with a cache of its own."""
    config = tiny(cache)
    config.data.cache_dir = str(tmp_path / "cache")
    config.distill.update(teacher=str(teachers), weight=1.0, temperature=3.0, views=3)
    config.augment.update(shift_x=2.0, shift_y=2.0, per_digit=True)
    return config


def softened(log_p):
    soft = np.exp(log_p / 3) / np.exp(log_p / 3).sum(axis=-1, keepdims=True)
    return soft.mean(axis=0)


def test_precomputed_targets_are_what_the_teacher_predicts_for_distorted_digits(taught, teachers):
    run = built(taught)
    images = np.asarray(run.shared.teacher.images)
    plain = np.asarray(run.data.train.images)[np.asarray(run.data.train.pool)]
    copies = images.reshape(3, len(plain), 28, 28)
    for one, other in ((copies[0], plain), (copies[0], copies[1]), (copies[1], copies[2])):
        assert (one != other).any(axis=(1, 2)).mean() > 0.9  # in 24 of 25 cases a digit moves
    ink = copies.sum(axis=(2, 3)) / plain.sum(axis=(1, 2))
    assert ink.min() > 0.6
    assert 0.9 < np.median(ink) < 1.1
    expected = softened(Predictor(teachers).predict(images)["digit"])
    np.testing.assert_allclose(run.shared.teacher.probabilities, expected, atol=5e-4)  # 16 bits


@pytest.mark.parametrize("fresh", [False, True])
def test_a_batch_is_composed_of_copies_of_its_digits(taught, fresh):
    """Every image is a maximum of two copies, with the label and the answer of each."""
    taught.data.fresh_pairs = fresh
    run = built(taught)
    train_split, own = run.data.train, jax.tree.map(lambda x: x[0], run.begin_epoch(0, 1))
    batch, _ = population.member_batch(own, run.shared, program=run.program)
    assert batch.images.shape == (32, 42, 28)
    copies = np.asarray(run.shared.teacher.images)
    answers = np.asarray(run.shared.teacher.probabilities, np.float32)
    labels = np.tile(np.asarray(train_split.labels)[np.asarray(train_split.pool)], 3)
    seen = np.rint(255 * np.asarray(batch.images)).astype(np.uint8)
    digits = set()
    for i, image in enumerate(seen):
        # The first 14 rows are of the upper digit alone, the last of the lower one.
        upper = (copies[:, :14] == image[:14]).all(axis=(1, 2))
        lower = (copies[:, 14:] == image[28:]).all(axis=(1, 2))
        pair = [
            (u, v)
            for u in np.flatnonzero(upper)
            for v in np.flatnonzero(lower)
            if (np.maximum(copies[u, 14:], copies[v, :14]) == image[14:28]).all()
        ]
        assert pair
        assert any(
            labels[u] == batch.labels["upper"][i]
            and labels[v] == batch.labels["lower"][i]
            and (answers[u] == batch.targets["upper"][i]).all()
            and (answers[v] == batch.targets["lower"][i]).all()
            for u, v in pair
        )
        digits |= {int(u) // (len(copies) // 3) for u, _ in pair}
    assert digits == {0, 1, 2}


def test_precomputed_targets_are_cached_and_mended(taught, tmp_path, teachers):
    taught.data.train = 0  # else they are of the digits that its pairs are made of
    first = built(taught).shared.teacher
    (folder,) = (tmp_path / "cache" / "distill").iterdir()
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == ["000.npy", "001.npy", "002.npy"]
    whole = paths[1].read_bytes()
    paths[0].unlink()
    paths[1].write_bytes(whole[:1000])
    blank = np.load(paths[2])
    blank[5] = 0  # a hole in a file of the right length
    np.save(paths[2], blank)
    chex.assert_trees_all_equal(built(taught).shared.teacher, first)
    assert paths[1].read_bytes() == whole
    before = [path.stat().st_mtime_ns for path in paths]
    chex.assert_trees_all_equal(built(taught).shared.teacher, first)
    assert [path.stat().st_mtime_ns for path in paths] == before
    single = shrink(config_of("mnist:mlp10"), tmp_path / "cache")
    single.data.train = 0
    single.distill.update(taught.distill)
    single.augment.update(taught.augment, per_digit=False)
    chex.assert_trees_all_equal(built(single).shared.teacher, first)  # the same digits
    assert len(list(folder.parent.iterdir())) == 1
    for count, change in enumerate((("augment", "shift_x", 1.0), ("distill", "temperature", 2.0))):
        section, field, value = change
        single[section][field] = value
        built(single)
        assert len(list(folder.parent.iterdir())) == 2 + count
    with jax.enable_x64(True):
        built(single)
    assert len(list(folder.parent.iterdir())) == 4


def test_precomputed_targets_are_in_memory_once():
    if jax.default_backend() != "cpu":
        pytest.skip("a GPU has memory of its own")
    array = distill._aligned((3, 5, 7), np.float16)
    assert array.shape == (3, 5, 7)
    assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data


def test_precomputed_targets_that_cannot_be_cached(taught, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "distill").write_text("a file where the folder should be")
    assert built(taught).shared.teacher.images.shape[1:] == (28, 28)
    assert capsys.readouterr().out.count("could not be cached") == 1


def test_a_network_that_cannot_be_is_found_before_the_teacher_is_asked(taught, tmp_path):
    taught.model.update(name="tower")
    del taught.model.hidden, taught.model.activation
    with pytest.raises(UserError, match="two square digits"):
        built(taught)
    assert not (tmp_path / "cache" / "distill").exists()


def test_training_on_precomputed_targets_end_to_end(taught, tmp_path, pair):
    train(taught, tmp_path / "run")
    assert "test" in json.loads((tmp_path / "run" / "summary.json").read_text())
    taught.augment.per_digit = False
    with pytest.raises(UserError, match=r"per_digit=True"):
        train(taught, tmp_path / "other")
    taught.distill.teacher = str(pair)
    with pytest.raises(UserError, match="knows two_digit, not mnist; views are of single digits"):
        train(taught, tmp_path / "other")
    taught.distill.teacher = ""
    with pytest.raises(UserError, match=r"views=3 needs --config\.distill\.teacher"):
        train(taught, tmp_path / "other")


def test_a_teacher_that_knows_what_the_student_is_validated_on(cache, pair, tmp_path):
    config = tiny(cache)
    config.distill.teacher = str(pair)
    config.data.seed = 1
    with pytest.raises(UserError, match=r"validates on \(data\.seed\)"):
        train(config, tmp_path)
    config.data.validation = 0.0
    train(config, tmp_path)
    other = shrink(config_of("mnist:mlp10"), cache)
    other.distill.teacher = str(pair)
    with pytest.raises(UserError, match="knows two_digit, not mnist"):
        train(other, tmp_path / "other")
    other.distill.teacher = str(tmp_path / "nobody")
    with pytest.raises(UserError, match="holds no run"):
        train(other, tmp_path / "other")


def test_the_best_test_epoch(cache, tmp_path):
    """Of each member, and the early one of equals; the honest figure stays what it is."""
    config = tiny(cache)
    config.update(epochs=3, keep_epochs=True)
    config.population.size = 2
    train(config, tmp_path)
    before = json.loads((tmp_path / "summary.json").read_text())
    best_test_epoch(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = summary.pop("best_test_epoch")
    assert summary == before
    run, test = Predictor(tmp_path), dataset.load(config.data).test
    chosen = jax.tree.map(np.array, run.weights)
    images, labels = dataset.examples(test, run.recipe)
    accuracy = []
    for epoch in (1, 2, 3):
        run.read(epoch_file(tmp_path, epoch))
        assert run.epochs == [epoch] * 2
        for m, member in enumerate(before["members"]):
            if member["best_epoch"] == epoch:
                kept = jax.tree.map(lambda x, m=m: x[m], (chosen, run.weights))
                chex.assert_trees_all_equal(*kept)
        log_p = run.predict(images)
        accuracy.append(np.mean([(log_p[h].argmax(-1) == labels[h]).mean(1) for h in labels], 0))
    best = np.argmax(accuracy, axis=0)
    assert [m["epoch"] for m in found["members"]] == (best + 1).tolist()
    assert [m["test"] for m in found["members"]] == pytest.approx(np.max(accuracy, axis=0))
    assert found["mean"] == pytest.approx(np.max(accuracy, axis=0).mean())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in lines if json.loads(line)["member"] == 0]  # member 1 diverged at once
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    best_test_epoch(config, tmp_path)
    alone = json.loads((tmp_path / "summary.json").read_text())["best_test_epoch"]
    assert alone["members"] == found["members"][:1]
    assert alone["mean"] == found["members"][0]["test"]
    epoch_file(tmp_path, 2).unlink()
    with pytest.raises(UserError, match=r"0002\.npz is missing"):
        best_test_epoch(config, tmp_path)


def test_test_epochs_are_compared_afterwards(cache, tmp_path):
    config = tiny(cache)
    config.update(keep_epochs=True, report_test=False)
    train(config, tmp_path)
    with pytest.raises(UserError, match="no test accuracy is reported there"):
        best_test_epoch(config, tmp_path)


def test_more_pairs_by_hand(cache, pair, tmp_path):
    """One draw after the other from the test's digits, none of them the test's own draw."""
    config = tiny(cache)
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    before = json.loads((tmp_path / "summary.json").read_text())
    more_pairs(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = summary.pop("pairs")
    assert summary == before
    test, run = dataset.load(config.data).test, Predictor(tmp_path)
    digits, labels = np.asarray(test.images), np.asarray(test.labels)
    stream = np.random.SeedSequence([config.data.seed, STREAMS["more"]])
    rng = np.random.Generator(np.random.PCG64(stream))
    right, ensemble = [], []
    for _ in range(DRAWS):
        upper, lower = rng.integers(len(digits), size=(test.size, 2)).T
        assert not np.array_equal(upper, np.asarray(test.rows)[:, 0])
        images = np.zeros((test.size, 42, 28), np.uint8)
        images[:, :28] = digits[upper]
        images[:, 14:] = np.maximum(images[:, 14:], digits[lower])
        log_p, truth = run.predict(images), {"upper": labels[upper], "lower": labels[lower]}
        right.append([log_p[h].argmax(-1) == truth[h] for h in truth])
        ensemble.append([np.exp(log_p[h]).mean(0).argmax(-1) == truth[h] for h in truth])
    hits = np.asarray(right)  # [draw, head, member, example]
    members = hits.mean((0, 1, 3))
    assert found == {
        "split": "test",
        "draws": 25,
        "examples": 25 * test.size,
        "mean": pytest.approx(members.mean()),
        "std": pytest.approx(members.std(ddof=1)),
        "interval": pytest.approx(12.7062 * members.std(ddof=1) / np.sqrt(2), rel=1e-4),
        "heads": pytest.approx({"upper": hits[:, 0].mean(), "lower": hits[:, 1].mean()}),
        "all_heads": pytest.approx(hits.all(axis=1).mean()),
        "draw_std": pytest.approx(hits.mean((1, 2, 3)).std(ddof=1)),
        "ensemble": pytest.approx(np.mean(ensemble)),
    }


def test_only_pairs_are_drawn_again(cache, tmp_path):
    config = shrink(config_of("mnist:mlp10"), cache)
    config.epochs = 1
    train(config, tmp_path)
    with pytest.raises(UserError, match="pairs is for pairs of digits; mnist tests every digit"):
        more_pairs(config, tmp_path)


def test_more_pairs_of_validation_digits(cache, tmp_path):
    """Where the test is not to be looked at; here each pair by hand, of a single network."""
    config = tiny(cache, report_test=False)
    train(config, tmp_path)
    before = json.loads((tmp_path / "summary.json").read_text())
    more_pairs(config, tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text())["pairs"]
    assert found["split"] == "validation"
    assert "ensemble" not in found
    data, run = dataset.load(config.data), Predictor(tmp_path)
    held_out = np.asarray(data.validation.pool)
    assert not set(held_out) & set(np.asarray(data.train.pool))
    stream = np.random.SeedSequence([config.data.seed, STREAMS["more"]])
    rng = np.random.Generator(np.random.PCG64(stream))
    size, right = data.validation.size, []
    for _ in range(DRAWS):
        rows = held_out[rng.integers(len(held_out), size=(size, 2))]
        images = np.asarray(data.recipe.compose(data.train.images[rows]))
        log_p, labels = run.predict(images), np.asarray(data.train.labels)[rows]
        right.append([log_p[h][0].argmax(-1) == labels[:, i] for i, h in enumerate(log_p)])
    assert found["examples"] == DRAWS * size
    assert found["mean"] == pytest.approx(np.mean(right))
    assert before == {
        k: v for k, v in json.loads((tmp_path / "summary.json").read_text()).items() if k != "pairs"
    }


@pytest.mark.parametrize("summary", ["{}", "[]", "{"])
def test_more_pairs_come_after_the_run(cache, pair, tmp_path, summary):
    config = tiny(cache)
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").write_text(summary)
    with pytest.raises(UserError, match="no test accuracy is reported there yet; more pairs"):
        more_pairs(config, tmp_path)


@pytest.mark.parametrize("name", slow_except(["mnist100:mlp"], ["mnist100:mlp", "mnist100"]))
def test_more_pairs_of_numbers(cache, tmp_path, name):
    """One head alone, of numbers 0 to 99; by the README's first config, too."""
    config = shrink(config_of(name), cache)
    if name == "mnist100:mlp":
        config.model.hidden = (8,)
    config.epochs = 1
    train(config, tmp_path)
    more_pairs(config, tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text())["pairs"]
    assert list(found["heads"].values()) == [found["mean"]] == [found["all_heads"]]


def test_folds_have_no_more_pairs(cache, tmp_path):
    config = tiny(cache)
    config.data.folds = config.population.size = 2
    train(config, tmp_path)
    with pytest.raises(UserError, match=r"goes without data\.folds"):
        more_pairs(config, tmp_path)


def test_no_more_pairs_of_digits_that_all_train(cache, tmp_path):
    config = tiny(cache, report_test=False)
    config.data.validation = 0.0
    train(config, tmp_path)
    with pytest.raises(UserError, match=r"needs validation digits: train with --config\.data"):
        more_pairs(config, tmp_path)
