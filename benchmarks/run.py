"""Images per second of each network: ours, PyTorch's, and plain Flax's, side by side in one run.

python -m benchmarks.run [--networks=mnist100,compact] [--rounds=9] [--seconds=0.4] [--compile]

Engines take turns, so that a slow minute of the machine hits all of them. Writes
benchmarks/results/<device>.json; how to read it: benchmarks/README.md.
"""

import datetime
import gc
import importlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from absl import app, flags

from benchmarks import peers
from digits_jax import train as loop
from digits_jax.console import console
from digits_jax.data import batches
from digits_jax.population import hyper_of, seeds_of

NETWORKS = (
    *("mnist100:mlp", "mnist100", "compact", "compact:phase2", "compact:phase3", "compact:phase5"),
    *("mnist:mlp10", "mnist:mlp128-tuned", "mnist", "two_head:mlp", "two_head", "lenet5", "resnet"),
)
INFER = (1, 256)
EXAMPLES = 6_000

_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "Which configs, NAME[:variant].")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of every engine.")
_SECONDS = flags.DEFINE_float("seconds", 0.4, "How long a turn takes, about.")
_COMPILE = flags.DEFINE_bool("compile", False, "torch.compile, too.")


def config_of(name: str) -> Any:
    """The config NAME[:variant], without augmentation, averaged weights and smoothing."""
    module, _, variant = name.partition(":")
    config = importlib.import_module(f"configs.{module}").get_config(variant)
    for field in config.augment:
        config.augment[field] = False if field == "per_digit" else 0.0
    config.data.update(source="drawn", drawn_train=EXAMPLES, drawn_test=300, train=EXAMPLES)
    config.data.update(validation=0.0, test=300)
    config.optimizer.update(ema=0.0, weight_decay=0.0)
    config.label_smoothing = 0.0
    return config


def engines(config: Any, task: str, batch: int) -> dict[str, peers.Step]:
    """{engine: one more step, or one more batch}."""
    run = loop.build(config)
    data, recipe = run.data, run.data.recipe
    images, labels = batches.examples(data.train, recipe)
    if task == "infer":
        images = images[:batch]
        weights = run.programs.chosen(run.states[0])
        predict = jax.jit(run.programs.predict).lower(weights, images, data.normalizer).compile()
        made = {
            "ours": lambda: predict(weights, images, data.normalizer),
            "flax": peers.flax_infer(config, recipe.heads, images),
        }
    else:
        made = {
            "ours": _train(run),
            "flax": peers.flax_train(config, recipe.heads, images, labels),
        }
    for name in ("torch_eager", "torch_compile")[: 1 + _COMPILE.value]:
        network = peers.torch_network(config, recipe.heads, recipe.shape)
        compiled = name == "torch_compile"
        if task == "infer":
            made[name] = peers.torch_infer(network, images, compiled)
        else:
            made[name] = peers.torch_train(network, config, images, labels, compiled)
    return made


def _train(run: loop.Run) -> peers.Step:
    """The steps of a real run, one after the other."""
    config, data = run.config, run.data
    seeds, hyper = seeds_of(config, run.members[0]), hyper_of(config, 1)
    order = run.order(seeds, 1, n=len(data.train.rows))
    state, totals, count = run.states[0], run.programs.zeros(1), 0

    def step() -> Any:
        nonlocal state, totals, count
        at = count % run.steps_per_epoch
        state, totals = run.train(
            state, totals, order, at, data.train, data.normalizer, seeds, hyper, steps=1
        )
        count += 1
        return totals

    return step


def measure(made: dict[str, peers.Step], batch: int) -> dict[str, list[float]]:
    """{engine: images per second of each round}; the engines take turns."""
    repeats = {}
    for name, step in made.items():
        for _ in range(3):
            _wait(step())
        start = time.perf_counter()
        _wait(step())
        repeats[name] = max(int(_SECONDS.value / (time.perf_counter() - start)), 1)
    rates: dict[str, list[float]] = {name: [] for name in made}
    gc.collect()
    for _ in range(_ROUNDS.value):
        for name, step in made.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                result = step()
            _wait(result)
            rates[name].append(repeats[name] * batch / (time.perf_counter() - start))
    return rates


def _wait(result: Any) -> None:
    jax.block_until_ready(result)  # of PyTorch's tensors on CPU there is nothing to wait for


def main(_: list[str]) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    for name in _NETWORKS.value:
        config = config_of(name)
        for task, batch in (("train", config.batch_size), *(("infer", n) for n in INFER)):
            rates = measure(engines(config_of(name), task, batch), batch)
            medians = {engine: float(np.median(x)) for engine, x in rates.items()}
            ratios = np.divide(rates["ours"], rates["torch_eager"])
            row = {"network": name, "task": task, "batch": batch}
            row |= {engine: round(x, 1) for engine, x in medians.items()}
            row["ratio"] = {
                "median": round(float(np.median(ratios)), 3),
                "from": round(float(ratios.min()), 3),
                "to": round(float(ratios.max()), 3),
            }
            rows.append(row)
            shown = "  ".join(f"{engine} {x:>9,.0f}" for engine, x in medians.items())
            console.print(
                f"{name:<20} {task:<5} {batch:>4}  {shown}  ours/eager "
                f"[bold]{row['ratio']['median']:.2f}[/bold] "
                f"({row['ratio']['from']:.2f} to {row['ratio']['to']:.2f})"
            )
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    result = {
        "device": jax.default_backend(),
        "machine": {"processor": platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "versions": {"python": platform.python_version(), "jax": jax.__version__}
        | {"torch": torch.__version__},
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    path = folder / f"{jax.default_backend()}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    app.run(main)
