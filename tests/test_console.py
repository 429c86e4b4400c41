"""The bar's rate, on a clock that the test moves."""

import subprocess
import sys
from pathlib import Path

import pytest

from digits_jax import console


def test_a_steady_rate_and_four_looks_a_second(monkeypatch):
    now = 100.0
    monkeypatch.setattr(console.time, "perf_counter", lambda: now)
    bar = console.EpochBar("epoch 1/1", 10_000)

    def update(images, seconds):
        nonlocal now
        now += seconds
        bar.add(images)
        bar.update()

    def rate():
        return bar._progress.tasks[0].fields["rate"]

    update(0, 5.0)  # compiling: starts the clock, counts for nothing
    assert rate() == 0
    assert bar.add(1)
    update(999, 1.0)
    assert rate() == pytest.approx(1000)
    assert [bar.add(images) for images in (250, 1)] == [False, True]
    update(1749, 1.0)
    assert not bar.add(500)
    assert bar.add(1)
    bar._added = 0
    assert rate() == pytest.approx(0.8 * 1000 + 0.2 * 2000)
    assert bar._progress.tasks[0].completed == 3000


def test_a_warning_is_whole_in_a_narrow_window(monkeypatch, capsys):
    monkeypatch.setattr(console.console, "width", 40)
    console.warn(console.DRAWN_NOTICE)
    shown = capsys.readouterr().out
    assert "--config.resume=False" in shown
    assert "MNIST's." in shown


def test_own_warnings_are_shown_and_those_of_libraries_are_not(tmp_path):
    program = (
        "import logging, sys; from pathlib import Path; from absl import app\n"
        "from digits_jax.devices import backend\n"
        "def main(_):\n"
        f"    with backend.command(Path({str(tmp_path)!r})):\n"
        "        logging.getLogger('digits_jax.training.checkpoint').warning('ours')\n"
        "        logging.getLogger('orbax').warning('theirs')\n"
        "        logging.warning('anybody')\n"
        "app.run(main)\n"
    )
    root = Path(__file__).parent.parent
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    ).stderr
    assert "ours" in said
    assert "theirs" not in said
    assert "anybody" not in said
