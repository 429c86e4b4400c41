"""The ablation: verdicts by hand, and two small runs side by side."""

import json

import pytest
from conftest import config_of, shrink

from digits_jax.compare import ablation, compare, compare_runs, reading
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

    def read(train, validation, best=0.9):
        return reading(summary(train, validation), summary(0.95, best))

    assert read(0.9, 0.9) == "fits: gap +0.00 ± 0.85"
    assert read(0.9, 0.9, best=0.9083) == "fits: gap +0.00 ± 0.85"  # of the best run: 0.0083
    assert read(0.9, 0.9, best=0.909).startswith("underfits: 90.00 on training, 90.90 is")
    assert read(0.92, 0.9) == "overfits: gap +2.00 ± 0.81"
    assert read(0.908, 0.9).startswith("fits")


def test_more_members_do_not_make_more_examples():
    several = summary(0.92, 0.9) | {"members": [{}] * 9}
    assert reading(several, several) == reading(summary(0.92, 0.9), several)


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


def test_two_runs_side_by_side(cache, tmp_path):
    configs = [shrink(config_of(f"mnist:{variant}"), cache) for variant in ("mlp10", "mlp128")]
    compare(configs, tmp_path, "mnist")
    lines = (tmp_path / "mnist-ablation.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[:2] for row in cells[2:]] == [["mnist-mlp10", "7,960"], ["mnist-mlp128", "101,770"]]
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
    whole = dict.fromkeys(("dataset", "source", "seed", "validation", "folds", "train", "test"), 0)
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


def test_runs_that_cannot_be_compared(tmp_path):
    one = finished(tmp_path / "a", {0: (0.9, None)})
    with pytest.raises(UserError, match=r"differ in data\.seed \(0, 1\)"):
        compare_runs(one, finished(tmp_path / "b", {0: (0.9, None)}, seed=1))
    with pytest.raises(UserError, match="holds no finished run"):
        compare_runs(one, tmp_path)
    with pytest.raises(UserError, match="share no seed"):
        compare_runs(one, finished(tmp_path / "c", {5: (0.9, None)}))
