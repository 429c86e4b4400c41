"""What the benchmarks write, and that their peers are the same networks."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import config_of
from matplotlib.image import imread

from benchmarks import ours, run, tables
from digits_jax.data.recipes import RECIPES
from digits_jax.errors import UserError

ROOT = Path(__file__).parent.parent
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)


def test_tables_by_hand(tmp_path):
    def row(network, task, batch, *ratios):
        low, median, high = ratios
        ratio = {"median": median, "from": low, "to": high}
        rates = {"ours": 2000.4, "torch_eager": None, "numpy": None}
        if network == "b":
            rates |= {"torch_eager": 1000.0, "numpy": 800.0}
        both = {"ours/torch_eager": ratio, "ours/flax": ratio}
        return {"network": network, "task": task, "batch": batch} | rates | both

    result = {
        "device": "cpu",
        "machine": {"processor": "An Abacus", "cores": 2},
        "versions": {"jax": "0.1"},
        "date": "2026-11-21",
        "rows": [
            row("a", "train", 64, 1.5, 2.0, 2.5),
            row("b", "train", 32, 7.0, 8.0, 9.0),
            row("a", "infer", 1, 0.9, 1.0, 1.1),
        ],
        "start": [{"cache": "cold", "seconds": 4.5}],
    }
    readme, picture = tmp_path / "README.md", tmp_path / "cpu.png"
    texts = []
    for between in ("", "stale\n"):
        readme.write_text(f"before\n<!-- table -->\n{between}<!-- /table -->\nafter\n")
        for _ in range(2):
            tables.write(result, readme, picture)
            texts.append(readme.read_text())
    assert len(set(texts)) == 1
    text = texts[0]
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale" not in text
    assert "cpu: An Abacus, 2 cores; jax 0.1; 2026-11-21." in text
    assert "| a | train | 64 | 2,000 | - | - | 2.00 (1.50 to 2.50) | 2.00 (1.50 to 2.50) |" in text
    assert (
        "| network | numpy | ours | torch_eager |\n| --- | --- | --- | --- |\n| b | 75.0 |" in text
    )
    assert "| b | 75.0 | 29.99 | 60.0 |" in text
    assert "train, ours/torch_eager: 4.00; " in text  # the root of 2 x 8
    assert "infer in batches of 1, ours/torch_eager: 1.00; " in text
    assert "| cold | 4.5 |" in text
    assert imread(picture).shape[1] == 1280


@pytest.fixture
def sections(tmp_path, monkeypatch):
    """Runs sections where PyTorch is not installed; -> what is written, to a file of the test's."""
    path = tmp_path / "results" / f"{jax.default_backend()}.json"
    path.parent.mkdir()
    path.write_text('{"rows": [], "versions": {"torch": "2.0", "jax": "0"}}', encoding="utf-8")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run.backend, "command", lambda _: nullcontext())
    monkeypatch.setattr(run.costs, "start", lambda: [{"cache": "cold", "seconds": 4.5}])
    monkeypatch.setattr(tables, "write", lambda *_: None)

    def ask(*names):
        monkeypatch.setattr(run, "_SECTIONS", SimpleNamespace(value=list(names)))
        run.main([])
        return json.loads(path.read_text(encoding="utf-8"))

    return ask


def test_what_needs_no_pytorch_goes_without(sections):
    """And the file says of which PyTorch the rates are that stay in it."""
    written = sections("start")
    assert written["start"] == [{"cache": "cold", "seconds": 4.5}]
    assert written["versions"]["torch"] == "2.0"
    assert written["versions"]["jax"] == jax.__version__
    with pytest.raises(UserError, match="did you mean 'start'"):
        sections("stat")
    with pytest.raises(
        UserError, match=r"pip install -r benchmarks/requirements\.txt, or .*=start"
    ):
        sections("start", "throughput")


def test_without_pytorch_it_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError", encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.run"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
    assert process.stderr.startswith("error: throughput is measured beside PyTorch: pip install")


@pytest.mark.parametrize("engine", ["jax", "numpy"])
def test_steps_go_on_into_the_next_epoch(cache, engine):
    """Three batches an epoch: the fourth step begins the second epoch's order."""
    config = ours.config_of("mnist:mlp10", 96)
    config.engine = engine
    config.batch_size, config.data.cache_dir = 32, str(cache)
    run = ours.build(config)
    step = ours.train(run)
    for count in range(1, 5):
        totals = step()
        assert int(run.states[0].step[0]) == count
        np.testing.assert_array_equal(np.asarray(totals.examples), [32.0 * count])
    predict = ours.infer(run, np.zeros((2, 28, 28), np.uint8))
    assert predict()["digit"].shape == (1, 2, 10)


def test_no_run_of_a_benchmark_stops_early():
    """An epoch that is skipped takes no time, and looks fast."""
    assert config_of("mnist100").early_stopping.patience > 0
    assert ours.config_of("mnist100").early_stopping.patience == 0


@needs_torch
@pytest.mark.parametrize("name", ["mnist100", "compact", "lenet5", "resnet", "two_head:mlp"])
def test_pytorchs_networks_are_ours(name):
    """As many parameters, which `torch_network` checks, and logits of the same shape."""
    import torch

    from benchmarks import peers

    config = ours.config_of(name)
    recipe = RECIPES[config.data.dataset]
    network = peers.torch_network(config, recipe.heads, recipe.shape)
    logits = network(torch.zeros(2, 1, *recipe.shape))
    assert {head: tuple(x.shape) for head, x in logits.items()} == {
        head: (2, classes) for head, classes in recipe.heads.items()
    }
