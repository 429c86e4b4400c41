"""The package, as the benchmarks drive it."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from digits_jax.core.step import current
from digits_jax.training import train as loop

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


def train(run: loop.Run) -> Step:
    """The steps of the run's first slice, one after the other, as `train` takes them."""
    data, members, n = run.data, run.members[0], run.data.train.size
    order = run.order(members, 1, n=n)
    state, totals, count = run.states[0], run.programs.zeros(len(run.ids[0])), 0
    arguments = data.train, data.normalizer, members, None
    program = run.program(state, totals, order, 0, *arguments, steps=1)

    def step() -> Any:
        nonlocal state, totals, count, order
        at = count % run.steps_per_epoch
        if count and at == 0:
            order = run.order(members, 1 + count // run.steps_per_epoch, n=n)
        state, totals = program(state, totals, order, at, *arguments)
        run.states[0] = state
        count += 1
        return totals

    return step


def infer(run: loop.Run, images: np.ndarray) -> Step:
    """images: [B, H, W] uint8, always the same."""
    weights = current(run.states[0])
    normalizer = run.data.normalizer
    predict: Any = run.programs.predict
    if run.programs.compiled:
        predict = jax.jit(predict).lower(weights, images, normalizer).compile()
    return lambda: predict(weights, images, normalizer)
