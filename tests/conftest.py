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

import importlib
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def every_config():
    """'NAME' for the default variant of each config, 'NAME:variant' for the others."""
    for path in sorted(Path(__file__).parent.parent.glob("configs/*.py")):
        if path.stem not in ("__init__", "base"):
            _, *others = importlib.import_module(f"configs.{path.stem}").VARIANTS
            yield from (path.stem, *(f"{path.stem}:{variant}" for variant in others))


CONFIGS = tuple(every_config())


def config_of(name: str):
    """The config that `--config=configs/NAME.py[:variant]` gives."""
    module, _, variant = name.partition(":")
    return importlib.import_module(f"configs.{module}").get_config(variant)


def shrink(config, cache):
    """A few drawn digits and small batches: the same run in seconds."""
    config.data.update(
        source="drawn", test_source="", cache_dir=str(cache), drawn_train=200, drawn_test=50
    )
    config.data.update(train=96, test=40)
    config.distill.update(teacher="", views=0)
    config.batch_size, config.eval_batch_size, config.epochs = 32, 32, 2
    return config


def built(config):
    """A run in memory, as `train` has it."""
    from digits_jax.training.resolve import resolve
    from digits_jax.training.run import build

    return build(resolve(config))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache of drawn digits and compiled programs for the whole session."""
    folder = tmp_path_factory.mktemp("cache")
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A folder with model.onnx and model.int8.onnx of the network of results/demo."""
    from digits_jax.data import drawn
    from digits_jax.export import export, onnx_graph
    from digits_jax.models import layers
    from digits_jax.training.predictor import Trained

    folder = tmp_path_factory.mktemp("demo")
    run = Trained(Path(__file__).parent.parent / "results" / "demo")
    said = export.probabilities(run)
    with layers.portable():
        graph = onnx_graph.convert(said, run.recipe.shape, ["digit"], {}, export.OPSET)
    (folder / export.WHOLE).write_bytes(graph.SerializeToString())
    images = drawn.digits(0, 500).images.astype("float32") / 255
    onnx_graph.quantize(folder / export.WHOLE, folder / export.SMALL, images)
    return folder


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
