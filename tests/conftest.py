"""Strict settings for every test, and the small things that many of them need."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests mostly compile: without LLVM's optimisation in half the time.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

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


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache of drawn digits and compiled programs for the whole session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A folder with model.onnx and model.int8.onnx of the network of results/demo."""
    from digits_jax import export, layers, onnx_graph
    from digits_jax.data import drawn
    from digits_jax.trained import Trained

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
