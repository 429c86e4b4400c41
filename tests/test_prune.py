"""Pruned networks: which weights go, that they stay away, and what is reported."""

import json

import jax
import numpy as np
import pytest
from conftest import config_of, shrink

from digits_jax import settings
from digits_jax.analysis.compare import compare_runs
from digits_jax.analysis.evaluate import evaluate
from digits_jax.errors import UserError
from digits_jax.search.search import search
from digits_jax.training import prune
from digits_jax.training.predictor import Predictor
from digits_jax.training.train import train
from digits_jax.types import Weights

PARAMS = {
    "a": {"kernel": np.array([[0.5, -3.0], [1.0, -0.25]]), "bias": np.array([0.1, 0.2])},
    "b": {"kernel": np.array([[2.0], [-0.75]])},
}


def test_the_smallest_weights_of_all_layers_go():
    """Of 0.25, 0.5, 0.75, 1, 2 and 3 a half."""
    half = prune.prune(PARAMS, 0.5)
    np.testing.assert_array_equal(half["a"]["kernel"], [[0, -3], [1, 0]])
    np.testing.assert_array_equal(half["b"]["kernel"], [[2], [0]])
    np.testing.assert_array_equal(half["a"]["bias"], [0.1, 0.2])
    jax.tree.map(np.testing.assert_array_equal, prune.prune(PARAMS, 0.0), PARAMS)
    left = [np.count_nonzero(prune.prune(PARAMS, f)["a"]["kernel"]) for f in (0.2, 0.4, 0.9)]
    assert left == [3, 2, 1]


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    """A network, and the same pruned to three fractions and trained on."""
    folder = tmp_path_factory.mktemp("pruning")

    def config():
        config = shrink(config_of("compact:phase5"), cache)
        config.model.layers = ("conv3 4", "pool", "conv3 6", "average 1", "linear1 classes")
        config.optimizer.update(ema=0.9, weight_decay=1e-2, decoupled=True)
        return config

    train(config(), folder / "whole")
    pruned = config()
    pruned.prune.update(run=str(folder / "whole"), fractions=(0.0, 0.5, 0.9))
    train(pruned, folder / "pruned")
    return folder, config, pruned


def test_what_is_gone_stays_away(runs):
    folder, _, config = runs
    assert config.population.size == 1  # of the caller's; the run's own copy has three
    whole = Predictor(folder / "whole").member(0)
    first, state = prune.begin(config, range(3))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), Weights(first, state), whole)
    after = Predictor(folder / "pruned").weights[0]
    sizes = 0
    for name, layer in after.items():
        for field, w in layer.items():
            zero = first[name][field] == 0
            if w.ndim > 2:
                np.testing.assert_array_equal(w == 0, zero)
                sizes += w[0].size
            assert not np.array_equal(w, first[name][field])  # it was trained on
    rows = (folder / "pruned" / "pruning.md").read_text().splitlines()[-3:]
    assert [int(row.split("|")[2]) for row in rows] == [
        sizes,
        sizes - round(0.5 * sizes),
        sizes - round(0.9 * sizes),
    ]


def test_before_and_after(runs):
    folder, *_ = runs
    lines = (folder / "pruned" / "pruning.md").read_text().splitlines()
    head, rows = [c.strip() for c in lines[-5].split("|")], [c.split("|") for c in lines[-3:]]
    before, after = (head.index(name) for name in ("test before", "test"))
    summaries = [
        json.loads((folder / name / "summary.json").read_text()) for name in ("whole", "pruned")
    ]
    assert float(rows[0][before]) == pytest.approx(100 * summaries[0]["test"]["accuracy"], abs=0.01)
    for row, member in zip(rows, summaries[1]["members"], strict=True):
        assert float(row[after]) == pytest.approx(100 * member["test"], abs=0.01)
    sizes = [int(row[3].replace(",", "")) for row in rows]
    assert sizes[0] > sizes[1] > sizes[2]
    assert (folder / "pruned" / "pruning.png").stat().st_size > 5000


def test_what_cannot_be_pruned_is_one_clear_line(runs, tmp_path):
    folder, config, _ = runs
    other = config()
    other.prune.run = str(folder / "whole")
    other.model.layers = ("conv3 4", "pool", "average 1", "linear1 classes")
    with pytest.raises(UserError, match=r"has model\.layers=.* a network is pruned as it was"):
        train(other, tmp_path)
    for fields, words in (
        ({"fractions": (0.5, 1.0)}, r"must lie in \[0, 1\)"),
        ({"fractions": ("a",)}, r"must lie in \[0, 1\)"),
        ({"run": str(tmp_path / "none")}, "holds no run"),
    ):
        wrong = config()
        wrong.prune.run = str(folder / "whole")
        wrong.prune.update(fields)
        with pytest.raises(UserError, match=words):
            train(wrong, tmp_path)
    own = config()
    own.prune.run = str(folder / "whole")
    (tmp_path / "link").symlink_to(folder / "whole")
    for workdir in (folder / "whole", tmp_path / "link"):
        with pytest.raises(UserError, match="is the --workdir, and a run cannot learn from itself"):
            train(own, workdir)
    with pytest.raises(UserError, match="cannot prune"):
        search(own, tmp_path)
    with pytest.raises(UserError, match="holds a network pruned to several fractions"):
        evaluate(config(), folder / "pruned", None, "auto")
    with pytest.raises(UserError, match="pruned differently, they are no seeds"):
        compare_runs(folder / "whole", folder / "pruned")
    two = config()
    two.prune.run, two.population.size = str(folder / "whole"), 2
    with pytest.raises(UserError, match="a member for each of its 7 fractions"):
        train(two, tmp_path)


def test_a_damaged_section_is_one_clear_line(runs, tmp_path):
    folder, *_ = runs
    for name in ("config.json", "summary.json"):
        content = json.loads((folder / "whole" / name).read_text())
        content.get("config", content)["prune"] = "none"
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not the config of a run"):
        settings.read(tmp_path)
    with pytest.raises(UserError, match="holds no finished run"):
        compare_runs(tmp_path, tmp_path)


def test_fractions_count_where_a_run_is_pruned_alone():
    config = config_of("lenet5")
    config.prune.fractions = (0.5, 0.9)
    assert settings.size_of(config) == 1
    config.prune.run = "a run"
    assert settings.size_of(config) == 2
