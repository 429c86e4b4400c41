"""The package, as the benchmarks drive it."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from digits_jax.core.step import eval_weights
from digits_jax.training import train as loop
from digits_jax.training.resolve import resolve

Step = Callable[[], Any]  # one more step, or one more batch; returns what can be waited for
EXAMPLES = 6_000


def config_of(name: str, examples: int = EXAMPLES) -> Any:
    """The config NAME[:variant] on drawn digits, without augmentation, averages, smoothing and
    early stopping.
    """
    module, _, variant = name.partition(":")
    config = importlib.import_module(f"configs.{module}").get_config(variant)
    for field in config.augment:
        config.augment[field] = False if field == "per_digit" else 0.0
    config.data.update(source="drawn", drawn_train=examples, drawn_test=300, train=examples)
    config.data.update(validation=0.0, test=300)
    config.optimizer.update(ema=0.0, weight_decay=0.0)
    if config.optimizer.name == "muon":  # PyTorch's takes no convolutions
        config.optimizer.name = "adam"
    config.label_smoothing = 0.0
    config.early_stopping.patience = 0
    return config


def build(config: Any) -> loop.Run:
    """The run of a config, in memory."""
    return loop.build(resolve(config))


def train(run: loop.Run) -> Step:
    """The steps of the run's first slice, one after the other, as `train` takes them."""
    own, count = run.begin_epoch(0, 1), 0
    program = run.stepper(own, 1)

    def step() -> Any:
        nonlocal own, count
        if count and count % run.steps_per_epoch == 0:
            own = run.begin_epoch(0, 1 + count // run.steps_per_epoch, own.totals)
        own = program(own)
        run.states[0] = own.state
        count += 1
        return own.totals

    return step


def infer(run: loop.Run, images: np.ndarray) -> Step:
    """images: [B, H, W] uint8, always the same."""
    weights = eval_weights(run.states[0])
    normalizer = run.data.normalizer
    predict: Any = functools.partial(run.engine.predict, program=run.program)
    if run.engine.JITTABLE:
        predict = jax.jit(predict).lower(weights, images, normalizer).compile()
    return lambda: predict(weights, images, normalizer)
