"""Images per second of each network, the engines taking turns.

Each engine runs in a process of its own, as its users have it, with its own memory and threads;
while one works the others wait for a line.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import ours
from digits_jax.data import dataset
from digits_jax.scratch.network import NETWORKS

INFER = (1, 256)
ENGINES = ("ours", "flax", "torch_eager", "torch_compile", "numpy")
_REST = 0.2  # s, in which the threads of the engine before stop looking for work
ROOT = Path(__file__).parent.parent


class Engine:
    """A process that makes steps of one network when it is asked to."""

    def __init__(self, name: str, network: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.throughput", name, network],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *request: Any) -> float:
        """('train' or 'infer', batch) prepares that task; (steps,) makes steps. -> seconds."""
        process: Any = self._process
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def rows(
    networks: list[str], rounds: int, seconds: float, compiled: bool
) -> Iterator[dict[str, Any]]:
    """A row for each network and task: medians, and the ratios by round."""
    for network in networks:
        config = ours.config_of(network)
        by_hand = config.model.name in NETWORKS
        absent = [] if compiled else ["torch_compile"]
        absent += [] if by_hand else ["numpy"]
        running = {name: Engine(name, network) for name in ENGINES if name not in absent}
        batch_size = config.batch_size
        for task, batch in (("train", batch_size), *(("infer", n) for n in INFER)):
            steps = {
                name: max(int(seconds / engine.ask(task, batch)), 1)
                for name, engine in running.items()
            }
            rates: dict[str, Any] = {name: [] for name in running}
            for _ in range(rounds):
                for name, engine in running.items():
                    time.sleep(_REST)
                    rates[name].append(steps[name] * batch / engine.ask(steps[name]))
            row: dict[str, Any] = {"network": network, "task": task, "batch": batch}
            for name in ENGINES:
                known = name in rates
                row[name] = round(float(np.median(rates[name])), 1) if known else None
            for peer in ("torch_eager", "flax"):
                ratios = np.divide(rates["ours"], rates[peer])
                row[f"ours/{peer}"] = {
                    "median": round(float(np.median(ratios)), 3),
                    "from": round(float(ratios.min()), 3),
                    "to": round(float(ratios.max()), 3),
                }
            yield row
        for engine in running.values():
            engine.close()


def make(name: str, network: str, task: str, batch: int) -> ours.Step:
    """One more step, or one more batch, of that engine."""
    config = ours.config_of(network)
    if name in ("ours", "numpy"):
        config.engine = "jax" if name == "ours" else "numpy"
        run = ours.build(config)
        if task == "train":
            return ours.train(run)
        return ours.infer(run, dataset.examples(run.data.train, run.data.recipe)[0][:batch])
    from benchmarks import peers

    data = dataset.load(config.data)
    heads, shape = data.recipe.heads, data.recipe.shape
    images, labels = dataset.examples(data.train, data.recipe)
    if name == "flax":
        if task == "train":
            return peers.flax_train(config, heads, images, labels)
        return peers.flax_infer(config, heads, images[:batch])
    compiled, model = name == "torch_compile", peers.torch_network(config, heads, shape)
    if task == "train":
        return peers.torch_train(model, config, images, labels, compiled)
    return peers.torch_infer(model, images[:batch], compiled)


def serve(name: str, network: str) -> None:
    """Answers the requests of `Engine.ask`, a line each."""
    if name.startswith("torch"):
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
    step: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if len(request) == 2:
            step = make(name, network, *request)
            for _ in range(4):
                start = time.perf_counter()
                jax.block_until_ready(step())  # of PyTorch's there is nothing to wait for on CPU
        else:
            start = time.perf_counter()
            for _ in range(request[0]):
                result = step()
            jax.block_until_ready(result)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
