"""The tables say what the summaries say, and so do the docstrings of the configs."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import config_of

from digits_jax import files, settings
from digits_jax.errors import UserError
from digits_jax.report import results, tables

ROOT = Path(__file__).parent.parent
SUMMARY = {
    "device": "cpu", "epochs": 2, "date": "",
    "data": {"dataset": "two_digit", "source": "mnist", "test_source": "mnist", "drawn_extra": 0},
    "model": {"name": "cnn", "parameters": 390164}, "seconds": {"total": 90},
    "train": {"accuracy": 0.99}, "validation": {"accuracy": 0.9765},
    "config": {"data": {"folds": 0}, "prune": {"run": ""}, "quoted": []},
    "members": [{"seed": 0, "best_epoch": 2, "validation": 0.97}],
}  # fmt: skip
TWO = SUMMARY | {
    "config": SUMMARY["config"] | {"quoted": [98.08, 97.58]},
    "members": [{"seed": 0, "test": 0.7}, {"seed": 1, "test": 0.8, "diverged": {"step": 9}}],
    "test": {"heads": {"upper": 0.8, "lower": 0.7}},
    "mean": 0.75, "std": 0.070711, "ensemble": 0.7625, "date": "2026-11-21",
    "best_test_epoch": {"mean": 0.7531},
}  # fmt: skip
THREE = TWO | {"members": [*TWO["members"], {"seed": 2, "test": 0.75}], "std": 0.05}
ROW = {
    "epoch": 1, "member": 0, "train_accuracy": 0.6, "validation_accuracy": 0.5,
}  # fmt: skip


def lay(folder, summaries):
    for run, summary in summaries.items():
        (folder / run).mkdir(parents=True)
        files.write_json(folder / run / "summary.json", summary)
        rows = [ROW | {"epoch": epoch} for epoch in (1, 2)]
        files.append_rows(folder / run / "metrics.jsonl", rows)


def rows_of(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def test_tables_by_hand(tmp_path, monkeypatch):
    """The interval of 70, 75 and 80: t(0.975, 2) * 5.00 / sqrt(3) = 12.42; two have none."""
    folder = tmp_path / "results"
    data = {"dataset": "mnist", "source": "drawn", "test_source": "drawn", "drawn_extra": 0}
    drawn = SUMMARY | {"data": data, "validation": None}
    lay(folder, {"b": THREE, "a": drawn, "c": TWO, "search/c": SUMMARY})
    shown = {"c": "of two", "b": "two digits", "none": "not there", "a": "one"}
    monkeypatch.setattr(results, "SHOWN", shown)
    (tmp_path / "README.md").write_text(f"{results.BEGIN}\n{results.END}\nkept\n")
    results.write(folder)
    text = (folder / "README.md").read_text()
    table = rows_of(text)
    assert table[2] == (
        "| [a](a/) | mnist (drawn) | 390,164 |  | – |  | 1 |  |  |  | – | 2 | 1.5 | cpu |  |"
    )
    assert table[3] == (
        "| [b](b/) | two_digit | 390,164 | 98.08 / 97.58 | 75.00 ± 5.00 | ± 12.42 "
        "| 3 (1 diverged) | 75.31 (+0.31) | upper 80.00, lower 70.00 | 76.25 (+1.25) | 1.35 | 2 "
        "| 1.5 | cpu | 2026-11-21 |"
    )
    assert "| 98.08 / 97.58 | 70.00 and 80.00 |  | 2 (1 diverged) |" in table[4]
    assert table[5].startswith("| [search/c](search/c/) |")
    beside = (tmp_path / "README.md").read_text()
    assert rows_of(beside) == [
        "| run | what | parameters | test accuracy | seeds | ensemble |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| [c](results/c/) | of two | 390,164 | 70.00 and 80.00 | 2 (1 diverged) | 76.25 (+1.25) |",
        "| [b](results/b/) | two digits | 390,164 | 75.00 ± 5.00 | 3 (1 diverged) "
        "| 76.25 (+1.25) |",
        "| [a](results/a/) | one | 390,164 | – | 1 |  |",
    ]
    assert beside.endswith("kept\n")
    assert (folder / "accuracy.png").exists()
    assert (folder / "curves.png").exists()
    (folder / "README.md").write_text(text.replace("# Results", "# Ours") + "after\n")
    results.write(folder)
    results.write(folder)
    assert (folder / "README.md").read_text() == text.replace("# Results", "# Ours") + "after\n"


def test_the_table_of_more_pairs_by_hand():
    found = {
        "split": "test", "examples": 100_000, "mean": 0.7, "std": 0.01, "ensemble": 0.72,
        "draw_std": 0.0025, "heads": {"upper": 0.75, "lower": 0.65}, "all_heads": 0.5,
    }  # fmt: skip
    run = THREE | {"test": TWO["test"] | {"all_heads": 0.6}, "pairs": found}
    alone = {"heads": {"number": 0.75}, "all_heads": 0.75}
    one = TWO | {"std": None, "test": alone, "pairs": found | alone | {"std": None}}
    del one["pairs"]["ensemble"]
    two = run | {"members": TWO["members"], "std": TWO["std"]}
    rows = rows_of(results.more_pairs({"a": SUMMARY, "b": run, "c": one, "d": two}))
    assert "| 70.00 and 80.00 |" in rows[4]
    assert "| 69.29 and 70.71 |" in rows.pop(4)
    assert rows[2:] == [
        "| [b](b/) | 75.00 ± 5.00 | upper 80.00, lower 70.00 | 60.00 "
        "| 100,000 | 70.00 ± 1.00 | upper 75.00, lower 65.00 | 50.00 | 72.00 | ± 0.25 |",
        "| [c](c/) | 75.00 |  |  | 100,000 | 70.00 |  |  |  | ± 0.25 |",
    ]
    assert {row.count("|") for row in rows} == {11}
    assert results.more_pairs({"a": SUMMARY | {"pairs": found | {"split": "validation"}}}) == ""


def test_the_table_of_damaged_digits_by_hand():
    found = {
        "shift": {"1": {"mean": 0.9}, "2": {"mean": 0.5}},
        "blur": {"0.5": {"mean": 0.8}, "1": {"mean": 0.6}},
    }
    run = TWO | {"robustness": found, "calibration": {"ece_tempered": 0.0123}}
    text = results.damaged({"a": SUMMARY, "b": run})
    head, _, *lines = rows_of(text)
    assert head == "| run | as they are | shift 2 | blur 1 | all | ECE |"
    assert lines == ["| [b](b/) | 75.00 | 50.00 | 60.00 | 70.00 | 1.23 |"]
    assert results.damaged({"a": SUMMARY}) == ""


def test_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match="no summary"):
        results.write(tmp_path)
    for damaged in (
        "{",
        "{}",
        "[]",
        json.dumps(TWO | {"robustness": {"shift": 3}}),
        json.dumps(TWO | {"pairs": {"split": "test"}}),
    ):
        (tmp_path / "summary.json").write_text(damaged)
        with pytest.raises(UserError, match=r"summary\.json: not the summary of a run"):
            results.write(tmp_path)


def test_the_tables_are_those_of_the_summaries():
    """`python -m digits_jax.report.results` was run after the last change."""
    summaries = results.read(ROOT / "results")
    assert len(results.SHOWN) == 6
    assert results.SHOWN.keys() <= summaries.keys()
    for readme, table in results.tables(ROOT / "results", summaries).items():
        assert table in readme.read_text(encoding="utf-8"), readme


@pytest.mark.parametrize("run", sorted(p.parent.name for p in ROOT.glob("results/*/summary.json")))
def test_docstrings_agree_with_the_summary(run):
    """A line `variant  N parameters  accuracy %`; without variants, the whole text."""
    summary = json.loads((ROOT / "results" / run / "summary.json").read_text())
    name, _, variant = summary["config"]["name"].partition("-")
    module = importlib.import_module(f"configs.{name}")
    if len(module.VARIANTS) > 1:
        variant = variant or module.VARIANTS[0]
        found = re.search(
            rf"^{re.escape(variant)} +[\d,]+ parameters.*$", module.__doc__, re.MULTILINE
        )
        assert found, f"no line of {variant}"
        text = found[0]
    else:
        text = " ".join(module.__doc__.split())
    assert f"{summary['model']['parameters']:,} parameters" in text
    heads = summary["test"]["heads"]
    if len(heads) > 1:
        for head in heads:
            values = [member["heads"][head] for member in summary["members"]]
            std = np.std(values, ddof=1) if len(values) > 1 else None
            assert f"{head} {tables.percent(np.mean(values), std)} %" in text
    else:
        assert f"{tables.percent(summary['mean'], summary['std'])} %" in text


@pytest.mark.parametrize(
    "path",
    sorted(ROOT.glob("results/**/config.json")),
    ids=lambda path: path.parent.relative_to(ROOT / "results").as_posix(),
)
def test_a_recorded_config_is_that_of_its_name_today(path):
    """Every field is there and no other; what was trained differs only as the command says."""
    recorded = settings.read(path.parent)
    summary = json.loads((path.parent / "summary.json").read_text())
    assert summary["config"] == recorded
    config = config_of(recorded["name"].replace("-", ":", 1))
    assert settings.flatten(recorded).keys() == settings.flatten(config).keys()
    if path.parent.parent == ROOT / "results":
        changed = {field for field, *_ in settings.changes(recorded, config)}
        assert changed <= {"data.source", "population.size", "population.slice"}
