"""What people see passes through any console: nothing ends at a character, a bracket or a pipe."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import config_of, shrink, slow_except
from PIL import Image

from digits_jax import console
from digits_jax.analysis import evaluate, more_pairs, robustness
from digits_jax.analysis.best_test_epoch import best_test_epoch
from digits_jax.analysis.compare import compare, compare_runs
from digits_jax.analysis.describe import describe
from digits_jax.analysis.explain import explain
from digits_jax.analysis.read import read
from digits_jax.export import export
from digits_jax.export.demo import site
from digits_jax.search.search import search
from digits_jax.training.train import train

pytestmark = pytest.mark.usefixtures("unpictured")

ROOT = Path(__file__).parent.parent
ENCODINGS = ("ascii", "cp1252")


@pytest.fixture(scope="module")
def config(cache):
    config = shrink(config_of("two_head:mlp"), cache)
    config.model.hidden = (8,)
    config.keep_epochs, config.epochs, config.population.size = True, 1, 3
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "lr[/0.1][adam]"
    train(config, workdir)
    return workdir


def strict(monkeypatch, encoding):
    """Standard output as a stream that raises for what it lacks; -> what was written so far."""
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(UnicodeEncodeError):
        print("→")
    return lambda: buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_characters_that_an_encoding_lacks_are_replaced(monkeypatch, encoding):
    written = strict(monkeypatch, encoding)
    console.console.print("0.1 → 0.2, 98.63 ± 0.15 %, 7 × 7 – \udcff 手")
    console.warn("the rate → 0")
    said = written()
    assert "0.1 -> 0.2" in said
    assert "0.15 %" in said
    assert "? ?" in said
    assert "the rate -> 0" in said


@pytest.mark.parametrize("encoding", slow_except(["ascii"], ENCODINGS))
def test_every_modes_output(monkeypatch, encoding, config, finished, tmp_path):
    written = strict(monkeypatch, encoding)
    workdir = Path(shutil.copytree(finished, tmp_path / "lr[/0.1][adam]"))
    kinds = {n: k._replace(levels=k.levels[:1]) for n, k in robustness.CORRUPTIONS.items()}
    monkeypatch.setattr(robustness, "CORRUPTIONS", kinds)
    monkeypatch.setattr(more_pairs, "DRAWS", 2)
    monkeypatch.setattr(site, "serve", lambda *_: console.console.print("serves"))
    monkeypatch.setattr(export.site, "whole", lambda _: True)
    other = config.copy_and_resolve_references()
    other.name, other.model.hidden = "two_head-wide", (12,)
    searched = config.copy_and_resolve_references()
    searched.search.space.optimizer = {"learning_rate": ("log", 1e-4, 1e-2)}
    searched.search.update(trials=2, round=2, retrain=2)

    drawn_seven = tmp_path / "seven.png"
    pixels = np.full((90, 90), 255, np.uint8)
    pixels[20:26, 25:60] = pixels[20:70, 54:60] = 0
    Image.fromarray(pixels).save(drawn_seven)

    modes = {
        "train": lambda: (train(config, tmp_path / "new[/0.1]"), train(config, workdir)),
        "eval": lambda: evaluate.evaluate(config, workdir, None, "auto"),
        "best-test-epoch": lambda: best_test_epoch(config, workdir),
        "more-pairs": lambda: more_pairs.more_pairs(config, workdir),
        "robustness": lambda: robustness.robustness(config, workdir),
        "describe": lambda: describe(config),
        "explain": lambda: explain(config, workdir, 0),
        "export": lambda: export.export(config, workdir),
        "demo": lambda: export.demo(config, workdir, 0),
        "compare": lambda: compare([config, other], tmp_path / "[bold]", "two_head"),
        "runs": lambda: compare_runs(workdir, tmp_path / "new[/0.1]"),
        "read": lambda: read(None, None, str(drawn_seven), "auto", tmp_path / "out"),
        "search": lambda: search(searched, tmp_path / "search[/0.1]"),
    }
    import launch

    assert modes.keys() == {*launch.cli.MODES, "runs"}
    for mode, run in modes.items():
        before = len(written())
        run()
        assert len(written()) > before, mode
    said = written()
    for path in ("lr[/0.1][adam]", "new[/0.1]", "[bold]", "search[/0.1]"):
        assert path in said
    assert "+-" in said or "±" in said


@pytest.mark.parametrize("encoding", slow_except(["ascii"], ENCODINGS))
def test_two_modes_as_commands(encoding, cache, finished):
    """A population's evaluation and a comparison: with plus-minus signs and arrows."""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    places = f"--config.data.cache_dir={cache}"
    for flags in (
        ["--config=configs/two_head.py:mlp", "--mode=eval", f"--workdir={finished}", places],
        [f"--runs={finished},{finished}", "--mode=compare"],
    ):
        process = subprocess.run(
            [sys.executable, "launch.py", *flags],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            check=False,
        )
        said = process.stdout.decode(encoding)
        assert process.returncode == 0, process.stderr
        assert "Traceback" not in process.stderr.decode(encoding)
        assert "lr[/0.1][adam]" in said
        assert ("+-" if encoding == "ascii" else "±") in said


def test_help_in_plain_ascii():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "launch.py", "--help"]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert b"--workdir" in process.stdout
    assert b"Traceback" not in process.stderr
