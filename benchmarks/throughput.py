"""Images per second of each network, the engines taking turns."""

import gc
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import ours, peers
from digits_jax import train as loop
from digits_jax.data import batches

INFER = (1, 256)


def engines(config: Any, task: str, batch: int, compiled: bool) -> dict[str, ours.Step]:
    """{engine: one more step, or one more batch}."""
    run = loop.build(config)
    recipe = run.data.recipe
    images, labels = batches.examples(run.data.train, recipe)
    made: dict[str, ours.Step] = {}
    if task == "infer":
        images = images[:batch]
        made["ours"] = ours.infer(run, images)
        made["flax"] = peers.flax_infer(config, recipe.heads, images)
    else:
        made["ours"] = ours.train(run)
        made["flax"] = peers.flax_train(config, recipe.heads, images, labels)
    for name in ("torch_eager", "torch_compile")[: 1 + compiled]:
        network = peers.torch_network(config, recipe.heads, recipe.shape)
        graph = name == "torch_compile"
        if task == "infer":
            made[name] = peers.torch_infer(network, images, graph)
        else:
            made[name] = peers.torch_train(network, config, images, labels, graph)
    return made


def measure(
    made: dict[str, ours.Step], batch: int, rounds: int, seconds: float
) -> dict[str, np.ndarray]:
    """{engine: images per second by round}; a turn takes about `seconds`."""
    repeats = {}
    for name, step in made.items():
        for _ in range(3):
            jax.block_until_ready(step())
        start = time.perf_counter()
        jax.block_until_ready(step())
        repeats[name] = max(int(seconds / (time.perf_counter() - start)), 1)
    rates: dict[str, list[float]] = {name: [] for name in made}
    gc.collect()
    for _ in range(rounds):
        for name, step in made.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                result = step()
            jax.block_until_ready(result)  # of PyTorch's there is nothing to wait for on CPU
            rates[name].append(repeats[name] * batch / (time.perf_counter() - start))
    return {name: np.asarray(values) for name, values in rates.items()}


def rows(
    networks: list[str], rounds: int, seconds: float, compiled: bool
) -> Iterator[dict[str, Any]]:
    """A row for each network and task: medians, and the ratio to PyTorch eager by round."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in networks:
        batch_size = ours.config_of(name).batch_size
        for task, batch in (("train", batch_size), *(("infer", n) for n in INFER)):
            made = engines(ours.config_of(name), task, batch, compiled)
            rates = measure(made, batch, rounds, seconds)
            row: dict[str, Any] = {"network": name, "task": task, "batch": batch}
            for engine in ("ours", "torch_eager", "torch_compile", "flax", "numpy"):
                known = engine in rates
                row[engine] = round(float(np.median(rates[engine])), 1) if known else None
            for peer in ("torch_eager", "flax"):
                ratios = rates["ours"] / rates[peer]
                row[f"ours/{peer}"] = {
                    "median": round(float(np.median(ratios)), 3),
                    "from": round(float(ratios.min()), 3),
                    "to": round(float(ratios.max()), 3),
                }
            yield row
