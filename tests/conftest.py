"""Strict settings for every test, and the small things that many of them need."""
# ruff: noqa: E402  JAX reads its settings where it is imported

import os

# On a GPU with JAX_PLATFORMS=cuda; of all else that a user or a cluster may have set, nothing.
_PLATFORMS = os.environ.get("JAX_PLATFORMS", "cpu")
_LOOKS = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
for _name in tuple(os.environ):
    if _name.startswith(("JAX_", "SLURM_", "OMPI_")) or _name in _LOOKS:
        del os.environ[_name]
os.environ |= {
    "JAX_PLATFORMS": _PLATFORMS,
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",  # a GPU's own for float32 has 10 bits
    # The tests mostly compile: without LLVM's optimisation in half the time.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_gpu_deterministic_ops=true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # workers and subprocesses share a GPU
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
}

import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent
SAVEFIG = Figure.savefig


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config, items):
    """Leaves out the tests marked slow, unless they are selected: --slow, -k, -m, or file::test.

    Those that wait for processes come first: late, they would leave another worker idle.
    """
    items.sort(key=lambda item: item.path.stem not in ("test_hosts", "test_devices"))
    chosen = config.option.slow or config.option.keyword or config.option.markexpr
    if not chosen and not any("::" in argument for argument in config.args):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def every_config():
    """'NAME' for the default variant of each config, 'NAME:variant' for the others."""
    for path in sorted(ROOT.glob("configs/*.py")):
        if path.stem != "__init__":
            _, *others = importlib.import_module(f"configs.{path.stem}").VARIANTS
            yield from (path.stem, *(f"{path.stem}:{variant}" for variant in others))


CONFIGS = tuple(every_config())
# One variant for each kind of network and dataset.
FAMILIES = ("mnist100", "mnist100:tower", "two_head:mlp", "lenet5:skip", "compact:phase5", "drawn")


def slow_except(quick, values):
    """Values of a test's parameter, of which all but the `quick` ones are marked slow."""
    values = list(values)
    assert all(value in values for value in quick)
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values
    ]


def config_of(name: str):
    """The config that `--config=configs/NAME.py[:variant]` gives."""
    module, _, variant = name.partition(":")
    return importlib.import_module(f"configs.{module}").get_config(variant)


def shrink(config, cache):
    """A few drawn digits and small batches: the same run in seconds."""
    config.data.update(
        source="drawn", test_source="", cache_dir=str(cache), drawn_train=200, drawn_test=50
    )
    config.data.update(train=96, test=40, nondigits=min(config.data.nondigits, 20))
    config.distill.update(teacher="", views=0)
    config.batch_size, config.eval_batch_size, config.epochs = 32, 32, 2
    return config


def built(config):
    """A run in memory, as `train` has it."""
    from digits_jax.training.resolve import resolve
    from digits_jax.training.run import build

    return build(resolve(config))


@pytest.fixture(scope="session", autouse=True)
def compiled(request, tmp_path_factory):
    """The folder of compiled programs, which the next session finds again: it compiles little.

    It lies in .pytest_cache, and pytest's --cache-clear deletes it. Processes may share it: JAX
    compiles anew what another one has not written to its end.
    """
    folder = tmp_path_factory.mktemp("xla")
    with contextlib.suppress(AttributeError, OSError):  # no such plugin, or nothing may be written
        folder = request.config.cache.mkdir("xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return folder


@pytest.fixture(scope="session")
def cache(compiled, tmp_path_factory):
    """A data.cache_dir for the whole session: drawn digits, and the compiled programs."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "xla").symlink_to(compiled)
    return folder


@pytest.fixture(scope="module")
def unpictured():
    """For files that look at no pictures: they are empty, which halves the time of a run.

    `pictured` draws those of one test there.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).write_bytes(b""))
        yield


@pytest.fixture
def pictured(monkeypatch):
    monkeypatch.setattr(Figure, "savefig", SAVEFIG)


FORKS = """
import json, os, signal, sys
import digits_jax.training.train  # with JAX, whose backend each child starts for itself
sys.stdin, requests = open(os.devnull), sys.stdin
for request in requests:
    program, arguments, output, errors = json.loads(request)
    child = os.fork()
    if not child:
        signal.alarm(300)  # seconds, should it wait for ever
        for stream, path in ((1, output), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = [program and "-c" or "launch.py", *arguments]
        if program:
            exec(program, {"__name__": "__main__"})
        else:
            import runpy
            runpy.run_path("launch.py", run_name="__main__")
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def new_process(*arguments, program=""):
    """What the fixture `command` does, without a copy."""
    start = [sys.executable, *(["-c", program] if program else ["launch.py"]), *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUTF8": "1"}
    done = subprocess.run(
        start, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.fixture(scope="session")
def command():
    """`python launch.py ARGUMENTS`, or a program like `python -c`; -> (exit code, stdout, stderr).

    Each runs in a process of its own, a copy of one that has imported JAX; where processes can't be
    copied, as on Windows, in a new one.
    """
    if not hasattr(os, "fork"):
        yield new_process
        return
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}  # a GPU's libraries may say something, too
    start = [sys.executable, "-W", "ignore:os.fork() was called", "-c", FORKS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def run(*arguments, program=""):
        with tempfile.TemporaryDirectory() as folder:
            paths = [f"{folder}/output", f"{folder}/errors"]
            print(json.dumps([program, arguments, *paths]), file=server.stdin, flush=True)
            code = int(server.stdout.readline())
            return code, *(Path(path).read_text().strip() for path in paths)

    with subprocess.Popen(start, cwd=ROOT, env=environment, **pipes) as server:
        yield run
        server.stdin.close()


def in_the_middle(images, shape):
    """[N, 28, 28] -> [N, *shape], without ink around them."""
    wider = (shape[1] - 28) // 2
    return np.pad(images, ((0, 0), (0, 0), (wider, wider)))


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A folder with model.onnx and model.int8.onnx of the network of results/demo."""
    from digits_jax.data import drawn
    from digits_jax.export import export, onnx_graph
    from digits_jax.models import layers
    from digits_jax.training.predictor import Predictor

    folder = tmp_path_factory.mktemp("demo")
    run = Predictor(ROOT / "results" / "demo")
    said = export.probabilities(run)
    shape, heads = run.recipe.shape, list(run.recipe.heads)
    with layers.portable():
        graph = onnx_graph.convert(said, shape, heads, {}, export.OPSET)
    (folder / export.WHOLE).write_bytes(graph.SerializeToString())
    images = in_the_middle(drawn.digits(0, 500).images, shape).astype("float32") / 255
    onnx_graph.quantize(folder / export.WHOLE, folder / export.SMALL, images)
    return folder


@pytest.fixture
def registries():
    """What a test registers is gone afterwards."""
    from digits_jax import defaults, models
    from digits_jax.data import augment

    kept = (models.REGISTERED, augment.REGISTERED, defaults.REGISTERED)
    yield
    for registry in kept:
        registry.clear()


@pytest.fixture
def getkey():
    """A fresh key at every call."""
    count = iter(range(1_000_000))
    return lambda: jax.random.fold_in(jax.random.key(0), next(count))


@pytest.fixture
def x64():
    """float64 for one test."""
    with jax.enable_x64(True):
        yield
