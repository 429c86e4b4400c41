"""The ablation: verdicts by hand, and two small runs side by side."""

import json

import pytest
from conftest import config_of, shrink

from digits_jax.compare import ablation, compare, reading
from digits_jax.errors import UserError


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
    assert reading(summary(0.9, 0.9), 0.9) == "fits: gap +0.00 ± 0.85"
    assert reading(summary(0.9, 0.9), 0.9084) == "fits: gap +0.00 ± 0.85"
    assert reading(summary(0.9, 0.9), 0.909).startswith("underfits: 90.00 on training, 90.90")
    assert reading(summary(0.92, 0.9), 0.9) == "overfits: gap +2.00 ± 0.81"
    assert reading(summary(0.908, 0.9), 0.9).startswith("fits")


def test_a_difference_within_the_noise_is_none():
    rows = ablation(
        {
            "one": summary(0.9, 0.9, layers=["a", "b", "d"], name="one", rate=0),
            "two": summary(0.9, 0.9084, 0.9, layers=["a", "c", "c", "d"], name="two", rate=0),
            "three": summary(0.9, 0.89, layers=["a", "c", "c", "d"], name="three", rate=1),
        }
    )
    assert [row["changed"] for row in rows] == ["the first", "layers: b → c, c", "rate: 0 → 1"]
    assert rows[0]["reading"] == "fits: gap +0.00 ± 0.85"
    assert rows[1]["reading"].endswith("validation +0.84 ± 0.83, better than one")
    assert rows[2]["reading"].endswith("validation -1.84 ± 0.85, worse than two")
    assert [row["test"] for row in rows] == [None, 0.9, None]
    rows = ablation({"one": summary(0.9, 0.9), "two": summary(0.9, 0.904)})
    assert rows[1]["changed"] == "nothing"
    assert rows[1]["reading"].endswith("validation +0.40 ± 0.84, no difference to speak of")


def test_two_runs_side_by_side(cache, tmp_path):
    configs = [shrink(config_of(f"mnist:{variant}"), cache) for variant in ("mlp10", "mlp128")]
    compare(configs, tmp_path / "compared")
    lines = (tmp_path / "compared" / "ablation.md").read_text().splitlines()
    assert lines[2].startswith("| mnist-mlp10 | 7,960 |")
    assert "| model.hidden: 10 → 128 |" in lines[3]
    assert (tmp_path / "compared" / "ablation.png").read_bytes()[:4] == b"\x89PNG"
    validation = json.loads((tmp_path / "mnist-mlp128" / "summary.json").read_text())["validation"]
    assert f"| {100 * validation['accuracy']:.2f} |" in lines[3]


def test_without_validation_there_is_nothing_to_compare(cache, tmp_path):
    config = shrink(config_of("mnist:mlp10"), cache)
    config.data.validation = 0.0
    with pytest.raises(UserError, match="without validation"):
        compare([config], tmp_path / "compared")
