"""Importing and using the package leaves the process as it was: only commands change theirs."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

PROGRAM = """
import importlib, logging, os, pkgutil, signal, sys, threading, warnings
sys.path.insert(0, {tests!r})
# What others do when they are imported is theirs.
import absl.logging, jax, matplotlib, numpy, optuna, orbax.checkpoint, rich, sqlalchemy.engine
import flax.linen, onnx.checker, onnxruntime.quantization.shape_inference, optax.contrib, PIL.Image
import scipy.ndimage, scipy.optimize, scipy.sparse, scipy.special, scipy.stats, tensorboardX
import tensorflow_datasets
import digits_jax

LOGGERS = ("", "absl", "digits_jax", "jax", "jax._src.xla_bridge", "matplotlib", "optuna", "orbax")

def state():
    return {{
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "wakeup": signal.set_wakeup_fd(-1),
        "logging": [(logging.getLogger(n).level, logging.getLogger(n).handlers) for n in LOGGERS],
        "absl": absl.logging.get_verbosity(),
        "optuna": optuna.logging.get_verbosity(),
        "jax": dict(jax.config.values),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "numpy": (numpy.geterr(), numpy.get_printoptions()),
        "matplotlib": dict(matplotlib.rcParams),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "folder": os.getcwd(),
        "path": list(sys.path),
    }}

def same(before, when):
    now = state()
    for name in before:
        assert now[name] == before[name], (when, name, before[name], now[name])

absl.logging.get_absl_handler()
before = state()
for module in pkgutil.walk_packages(digits_jax.__path__, "digits_jax."):
    importlib.import_module(module.name)
same(before, "importing")

from pathlib import Path
from conftest import config_of, shrink
before = state()  # conftest has strict settings
from digits_jax.devices import backend
from digits_jax.analysis.compare import compare_runs
from digits_jax.analysis.evaluate import evaluate
from digits_jax.training.train import train
from digits_jax.training.predictor import Predictor
before = state()
verbosity = absl.logging.get_verbosity()
with backend.command(Path({folder!r}) / "cache"):
    assert absl.logging.get_verbosity() == absl.logging.FATAL
    assert jax.config.jax_compilation_cache_dir == str(Path({folder!r}) / "cache" / "xla")
same(before, "a command")
def malloc():
    raise AssertionError("malloc's settings are the process's")
backend._keep_freed_memory = malloc
config = shrink(config_of("mnist:mlp10"), Path({folder!r}) / "cache")
config.population.size = 2
folder = Path({folder!r})
train(config, folder / "one")
same(before, "training")
evaluate(config, folder / "one", None, "auto")
Predictor(folder / "one").predict(numpy.zeros((1, 28, 28), numpy.uint8))
train(config, folder / "two")
compare_runs(folder / "one", folder / "two")
same(before, "reading")
config.optimizer.update(name="sgd", learning_rate=1e30)
try:
    train(config, folder / "three")
except digits_jax.errors.UserError:
    same(before, "a run that failed")
else:
    raise AssertionError("it should have diverged")
print("as it was")
"""


def test_nothing_in_the_process_is_changed(tmp_path):
    program = PROGRAM.format(tests=str(ROOT / "tests"), folder=str(tmp_path))
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.endswith("as it was\n")


def test_exceptions_of_other_threads_are_heard_during_training(tmp_path):
    """Those of orbax's own threads come back as errors of the next call; others do not."""
    program = (
        "import asyncio, threading; from pathlib import Path\n"
        "from digits_jax.training.checkpoint import Checkpoints, quiet\n"
        "async def fails(): raise ValueError('in a loop of mine')\n"
        "hook = threading.excepthook\n"
        f"with Checkpoints(Path({str(tmp_path)!r})):\n"
        "    for run in (lambda: 1 / 0, lambda: asyncio.run(fails())):\n"
        "        thread = threading.Thread(target=run, name='mine')\n"
        "        thread.start(); thread.join()\n"
        "one, other = quiet(), quiet()  # of two threads, left in the order that they came in\n"
        "one.__enter__(); other.__enter__()\n"
        "one.__exit__(None, None, None); other.__exit__(None, None, None)\n"
        "assert threading.excepthook is hook\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Exception in thread mine" in process.stderr
    assert "ZeroDivisionError" in process.stderr
    assert "in a loop of mine" in process.stderr


def test_a_system_without_what_only_posix_has(tmp_path, cache, command):
    """As on Windows: neither these signals nor user numbers; it trains and stops all the same."""
    code = (
        "import os, signal, sys\n"
        "lacking = ((signal, ('SIGHUP', 'SIGUSR1', 'SIGKILL')), (os, ('getuid', 'fork')))\n"
        "for module, names in lacking:\n"
        "    for name in names:\n"
        "        delattr(module, name)\n"
        "sys.argv = ['launch.py', *sys.argv[1:]]\n"
        "from digits_jax import cli\n"
        "cli.main()\n"
    )
    arguments = [
        "--config=configs/mnist.py:mlp10",
        f"--workdir={tmp_path}",
        f"--config.data.cache_dir={cache}",
        *("--config.data.source=drawn", "--config.data.drawn_train=200", "--config.epochs=1"),
        "--config.data.drawn_test=50",
    ]
    code, output, errors = command(*arguments, program=code)
    assert (code, errors) == (0, ""), output
    assert (tmp_path / "summary.json").exists()
