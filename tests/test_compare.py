"""The ablation: verdicts by hand, and two small runs side by side."""

import itertools
import json

import numpy as np
import pytest
from conftest import config_of, shrink

from digits_jax.analysis import compare as module
from digits_jax.analysis.compare import ablation, compare, compare_runs, fit, made_of
from digits_jax.data import dataset
from digits_jax.data.recipes import RECIPES
from digits_jax.errors import UserError
from digits_jax.training.train import train
from digits_jax.types import Digits

pytestmark = pytest.mark.usefixtures("unpictured")


def summary(train, validation, test=None, n=10_000, **config):
    return {
        "config": config,
        "model": {"parameters": 100},
        "data": {"train": n, "validation": n},
        "members": [{}],
        "train": {"accuracy": train},
        "validation": {"accuracy": validation},
        "mean": test,
    }


def test_over_and_underfitting_by_hand():
    """Of 10,000 at 0.9 the standard error is 0.003; twice that of a difference is 0.0085."""

    def read(train, validation, best=0.9):
        return fit(summary(train, validation), summary(0.95, best))

    assert read(0.9, 0.9) == "fits: gap +0.00 ± 0.85"
    assert read(0.9, 0.9, best=0.9083) == "fits: gap +0.00 ± 0.85"  # of the best run: 0.0083
    assert read(0.9, 0.9, best=0.909).startswith("underfits: 90.00 on training, 90.90 is")
    assert read(0.92, 0.9) == "overfits: gap +2.00 ± 0.81"
    assert read(0.908, 0.9).startswith("fits")


def test_more_members_do_not_make_more_examples():
    several = summary(0.92, 0.9) | {"members": [{}] * 9}
    assert fit(several, several) == fit(summary(0.92, 0.9), several)


def test_a_difference_within_the_noise_is_none():
    rows = ablation(
        {
            "one": summary(0.9, 0.9, model={"layers": ["a", "b", "d"]}, name="one", rate=0),
            "two": summary(
                0.9, 0.9084, 0.9, model={"layers": ["a", "c", "c", "d"]}, name="two", rate=0
            ),
            "three": summary(
                0.9, 0.89, model={"layers": ["a", "c", "c", "d"]}, name="three", rate=1
            ),
        }
    )
    assert [row["changed"] for row in rows] == [
        "the first",
        "model.layers: b → c, c",
        "rate: 0 → 1",
    ]
    assert rows[0]["reading"].startswith("underfits: 90.00 on training, 90.84 is possible")
    assert rows[1]["reading"].endswith("validation +0.84 ± 0.83, better than one")
    assert rows[2]["reading"].endswith("validation -1.84 ± 0.85, worse than two")
    assert [row["test"] for row in rows] == [None, 0.9, None]
    rows = ablation({"one": summary(0.9, 0.9), "two": summary(0.9, 0.904)})
    assert rows[1]["changed"] == "nothing"
    assert rows[1]["reading"].endswith("validation +0.40 ± 0.84, within the noise")


@pytest.mark.usefixtures("pictured")
def test_two_runs_side_by_side(cache, tmp_path):
    configs = [shrink(config_of(f"mnist:{variant}"), cache) for variant in ("mlp10", "mlp128")]
    compare(configs, tmp_path, "mnist")
    lines = (tmp_path / "mnist-ablation.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[:2] for row in cells[2:]] == [
        ["mnist-mlp10 (drawn digits)", "7,960"],
        ["mnist-mlp128 (drawn digits)", "101,770"],
    ]
    assert cells[3][5] == "model.hidden: [10] → [128]"
    written = json.loads((tmp_path / "mnist-mlp128" / "summary.json").read_text())
    expected = [written[split]["accuracy"] for split in ("train", "validation", "test")]
    assert cells[3][2:5] == [f"{100 * x:.2f}" for x in expected]
    assert (tmp_path / "mnist-ablation.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_compared_is_said_before_anything_is_trained(cache, tmp_path):
    first, second = (shrink(config_of(f"mnist:{v}"), cache) for v in ("mlp10", "mlp128"))
    for spoil, said in (
        ({"data": {"validation": 0.0}}, "without data.validation"),
        ({"model": {"activation": "rleu"}}, "did you mean 'relu'"),
        ({"model": {"paddin": 1}}, "no such field"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ):
        config = second.copy_and_resolve_references()
        config.update(spoil)
        with pytest.raises(UserError, match=said):
            compare([first, config], tmp_path, "mnist")
    assert not list(tmp_path.iterdir())


def finished(folder, members, **data):
    """The summary of a run whose {seed: (validation, test)} are `members`."""
    whole = config_of("mnist").data.to_dict() | {"source": "mnist"}
    summary = {
        "config": {"data": whole | data},
        "members": [{"seed": s, "validation": v, "test": t} for s, (v, t) in members.items()],
    }
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_paired_seeds_by_hand(tmp_path):
    """Seeds 1 to 3 are shared: differences 0.01, 0.02, 0.03; 4.3027 * 0.01 / sqrt(3) = 0.0248."""
    one = finished(tmp_path / "a", dict.fromkeys((0, 1, 2, 3), (0.9, 0.91)))
    two = finished(tmp_path / "b", {s: (0.90 + s / 100, 0.93) for s in (1, 2, 3, 4)})
    text = compare_runs(one, two, tmp_path)
    assert "validation: 90.00 → 92.00 %, +2.00 ± 2.48 points (95 % interval, 3 paired" in text
    assert "within the noise" in text.splitlines()[2]
    assert "test: 91.00 → 93.00 %, +2.00 ± 0.00 points (95 % interval, 3 paired seeds): bet" in text
    assert (tmp_path / "comparison.md").read_text() == text
    alone = finished(tmp_path / "c", {1: (0.8, None)})
    assert "one seed that both have" in compare_runs(one, alone)
    pair = finished(tmp_path / "d", {2: (0.91, None), 3: (0.93, None)})
    assert "90.00 → 92.00 %, +1.00 and +3.00 points of the two seeds" in compare_runs(one, pair)


def test_more_data_or_less_is_a_fair_question(tmp_path):
    """Single digits: data.train changes neither split. Pairs: how many validation has."""
    members = dict.fromkeys((0, 1), (0.9, 0.91))
    few, many = (finished(tmp_path / str(n), members, train=n) for n in (1000, 0))
    text = compare_runs(few, many)
    assert "- validation: 90.00 → 90.00 %" in text
    assert "- test: 91.00 → 91.00 %" in text
    few, many = (
        finished(tmp_path / f"pairs-{n}", members, train=n, dataset="mnist100") for n in (1000, 0)
    )
    text = compare_runs(few, many)
    assert "- test: 91.00 → 91.00 %" in text
    assert "- validation: not compared, the runs differ in data.train (1000 and 60000)\n" in text
    drawn = finished(tmp_path / "drawn", members, source="drawn", test_source="mnist")
    text = compare_runs(drawn, tmp_path / "0")
    assert "- test: 91.00" in text
    assert "- validation: not compared, the runs differ in data.source (drawn and mnist)" in text


def test_what_is_not_compared_is_said(tmp_path):
    """Models that are not there, a split that only one has read, folds."""
    one = finished(tmp_path / "a", dict.fromkeys((0, 1), (0.9, 0.91)))
    two = finished(tmp_path / "b", dict.fromkeys((1, 2), (0.9, None)))
    lines = compare_runs(one, two).splitlines()
    assert lines[2].startswith("- validation: 90.00 → 90.00 %")
    assert lines[3:] == [
        f"- test: not compared, {two} has not read it",
        f"- examples: not compared, {one} holds no model.npz; `command` in its summary.json makes "
        "it anew",
    ]
    folds = finished(tmp_path / "f", dict.fromkeys((0, 1), (0.9, 0.91)), folds=2)
    with pytest.raises(
        UserError, match=r"data\.folds \(0 and 2\); seeds: folds share .*; examples"
    ):
        compare_runs(one, folds)


_DATA = {
    "dataset": "mnist",
    "source": "mnist",
    "test_source": "",
    "raw_dir": "",
    "seed": 0,
    "validation": 0.1,
    "folds": 0,
    "normalize": "unit",
    "fresh_pairs": False,
    "train": 0,
    "test": 0,
    "drawn_train": 120,
    "drawn_test": 60,
    "drawn_extra": 0,
    "drawn_distortion": 0.5,
    "classes": (),
    "sha256": "",
}


@pytest.mark.parametrize("name", ["mnist", "two_digit"])
def test_which_examples_are_the_same_as_they_are_loaded(tmp_path, monkeypatch, name):
    """`made_of` agrees for two configs if and only if `dataset.load` gives both the same."""

    def digits(seed, n, kind="", distortion=0.5):
        seed += 1000 * (distortion == 1.0)
        images = np.random.default_rng(seed).integers(256, size=(n, 28, 28))
        return Digits(images.astype(np.uint8), np.arange(n) % 10)

    mnist = digits(98, RECIPES["mnist"].train // 500), digits(99, 50)
    small = {
        key: recipe._replace(train=recipe.train // 500, test=50) for key, recipe in RECIPES.items()
    }
    monkeypatch.setattr("digits_jax.data.recipes.RECIPES", small)
    monkeypatch.setattr("digits_jax.data.sources.load", lambda *_: mnist)
    monkeypatch.setattr(dataset, "_drawn", lambda _, *what, **how: digits(*what, **how))
    changes = [
        {},
        {"seed": 1},
        {"validation": 0.2},
        {"train": 30},
        {"train": small[name].train},
        {"test": 20},
        {"test": 50},
        {"drawn_train": 140},
        {"drawn_test": 40},
        {"test_source": "drawn"},
        {"test_source": "mnist"},
        {"drawn_extra": 10},
        {"drawn_distortion": 1.0},
        {"normalize": "feature"},
        {"fresh_pairs": True},
    ]
    made = []
    for source, change in itertools.product(("mnist", "drawn"), changes):
        data = _DATA | {"dataset": name, "source": source, "cache_dir": str(tmp_path)} | change
        loaded = dataset.load(module.ConfigDict(data))
        for split in ("validation", "test"):
            images, labels = dataset.examples(getattr(loaded, split), loaded.recipe)
            made.append((split, made_of(split, data), images, labels, data))
    counted = [0, 0]
    for one, other in itertools.combinations(made, 2):
        if one[0] == other[0]:
            same = np.array_equal(one[2], other[2]) and all(
                np.array_equal(one[3][head], other[3][head]) for head in one[3]
            )
            assert (one[1] == other[1]) == same, (one[0], one[4], other[4])
            counted[same] += 1
    assert min(counted) > 20


@pytest.fixture(scope="module")
def models(cache, tmp_path_factory):
    """Runs on drawn digits that differ in how many they train on, and in folds."""
    folder = tmp_path_factory.mktemp("models")
    for name, data in (
        ("few", {"train": 40}),
        ("many", {"normalize": "global", "test_source": "drawn"}),
        ("folds", {"folds": 2}),
    ):
        config = shrink(config_of("mnist:mlp10"), cache)
        config.epochs = 1
        config.data.update(data)
        train(config, folder / name)
    return folder


def test_over_the_examples_that_both_read(models, cache, capsys):
    """By hand from the networks' own predictions, whatever was trained on."""
    text = compare_runs(str(models / "few"), str(models / "many"))
    assert "- validation, digit, over 20 examples: " in text
    data = dataset.load(shrink(config_of("mnist:mlp10"), cache).data)
    images, labels = dataset.examples(data.test, data.recipe)
    right = [
        module.Predictor(models / name).predict(images)["digit"][0].argmax(-1) == labels["digit"]
        for name in ("few", "many")
    ]
    only = [sum(right[0] & ~right[1]), sum(right[1] & ~right[0])]
    assert (
        f"- test, digit, over 40 examples: only the first is right on {only[0]}, only the second "
        f"on {only[1]}; " in text
    )
    assert "not compared" not in text
    text = compare_runs(models / "many", models / "folds")
    assert text in capsys.readouterr().out
    assert "validation: not compared, the runs differ in data.folds (0 and 2)" in text
    assert [line.split(":")[0] for line in text.splitlines()[2:]] == [
        "- test, digit, over 40 examples",
        "- validation",
        "- seeds",
    ]


def test_without_mnist_the_seeds_are_compared(models, tmp_path, monkeypatch):
    """And a line says how the test over examples can be had; nothing of a run's places is lost."""
    runs, asked = [], []
    for name in ("few", "many"):
        runs.append(tmp_path / name)
        runs[-1].mkdir()
        for file in ("config.json", "summary.json", "model.npz"):
            content = (models / name / file).read_bytes()
            if file != "model.npz":
                content = content.replace(b'"source": "drawn"', b'"source": "mnist"')
            (runs[-1] / file).write_bytes(content)

    def absent(raw_dir, cache_dir):
        asked.append((raw_dir, str(cache_dir)))
        raise UserError(f"there is no MNIST in {raw_dir}; --config.data.source=drawn")

    monkeypatch.setattr("digits_jax.data.sources.load", absent)
    lines = compare_runs(*runs).splitlines()
    assert [line.split(":")[0] for line in lines[2:]] == ["- validation", "- test", "- examples"]
    assert lines[-1] == (
        "- examples: not compared, MNIST is not at hand; connect to the internet once, or add "
        "--config=configs/mnist.py --config.data.raw_dir=DIR, a folder with its four files"
    )
    config = json.loads((runs[0] / "config.json").read_text(encoding="utf-8"))
    text = compare_runs(*runs, places={"raw_dir": "here", "cache_dir": str(tmp_path / "c")})
    assert text.splitlines()[-1].startswith("- examples: not compared, there is no MNIST in here")
    assert asked == [("", config["data"]["cache_dir"]), ("here", str(tmp_path / "c"))]


def test_no_input_run_is_deleted(cache, tmp_path, monkeypatch):
    """--config.resume=False of variants that learn from, or prune, what another would delete."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "runs", target_is_directory=True)
    (tmp_path / "runs" / "mnist-mlp128").mkdir(parents=True)
    for field, run in itertools.product(
        ("distill.teacher", "prune.run"),
        ("runs/mnist-mlp128", "link/mnist-mlp10", str(tmp_path / "runs" / "mnist-mlp10")),
    ):
        configs = [shrink(config_of(f"mnist:{v}"), cache) for v in ("mlp10", "mlp128")]
        configs[0].update_from_flattened_dict({field: run})
        for config in configs:
            config.resume = False
        with pytest.raises(UserError, match=rf"mnist-mlp10: config\.{field}=.* is the folder of m"):
            compare(configs, "runs", "mnist")
    monkeypatch.setattr(module, "train", lambda *_: None)
    for config in configs:
        config.resume = True  # nothing is deleted, so nothing is refused
    with pytest.raises(FileNotFoundError, match=r"summary\.json"):
        compare(configs, "runs", "mnist")


def test_compare_leaves_its_configs_as_they_were(cache, tmp_path):
    """Though folds make a population, and a run knows the source of its data and its slices."""
    config = shrink(config_of("mnist:mlp10"), cache)
    config.epochs, config.data.folds = 1, 2
    before = config.to_dict()
    compare([config], str(tmp_path), "mnist")
    assert config.to_dict() == before


def test_paths_with_brackets_are_printed_as_they_are(cache, tmp_path, capsys, monkeypatch):
    def train(config, folder, _):
        folder.mkdir(parents=True)
        text = json.dumps(summary(0.9, 0.9, 0.9, name=config.name))
        (folder / "summary.json").write_text(text, encoding="utf-8")

    parent = tmp_path / "lr["
    monkeypatch.setattr(module, "train", train)
    compare([shrink(config_of("mnist:mlp10"), cache)], parent / "0]", "mnist")
    assert f"are in {parent / '0]'}\n" in capsys.readouterr().out
    runs = [finished(parent / name, {0: (0.9, 0.91)}) for name in ("0.1]", "0.2]")]
    text = compare_runs(*runs, str(parent / "new" / "x]"))
    assert f"# {runs[1]} against {runs[0]}\n" in text
    assert text in capsys.readouterr().out
    assert (parent / "new" / "x]" / "comparison.md").read_text(encoding="utf-8") == text


def test_runs_that_cannot_be_compared(tmp_path):
    one = finished(tmp_path / "a", {0: (0.9, None)})
    with pytest.raises(
        UserError, match=r"compared; validation: .* differ in data\.seed \(0 and 1\)"
    ):
        compare_runs(one, finished(tmp_path / "b", {0: (0.9, None)}, seed=1))
    other = finished(tmp_path / "d", {0: (0.9, 0.9)}, dataset="mnist100")
    with pytest.raises(
        UserError, match=r"test: the runs differ in data\.dataset \(mnist and mnist1"
    ):
        compare_runs(one, other)
    with pytest.raises(UserError, match="holds no finished run"):
        compare_runs(one, tmp_path)
    with pytest.raises(UserError, match=r"seeds: the runs share none; examples: .* no model\.npz"):
        compare_runs(one, finished(tmp_path / "c", {5: (0.9, None)}))
    with pytest.raises(UserError, match="they read none"):
        compare_runs(*(finished(tmp_path / name, {0: (None, None)}) for name in "ef"))
