"""What a run costs beside its steps, and how a step's cost grows."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import ours
from digits_jax.data import dataset
from digits_jax.data.recipes import RECIPES
from digits_jax.models import describe
from digits_jax.training import train as loop

ROOT = Path(__file__).parent.parent
Table = list[dict[str, Any]]


def start(rounds: int = 3) -> Table:
    """Seconds from the command to the main job's first step, without and with compiled programs."""
    with _cache() as cache:
        seconds: dict[str, list[float]] = {"cold": [], "warm": []}
        for _ in range(rounds):
            shutil.rmtree(Path(cache) / "xla", ignore_errors=True)
            for name in ("cold", "warm"):
                result = _worker("first_step", cache, str(time.time()))
                seconds[name].append(result["seconds"])
    return [{"cache": k, "seconds": round(float(np.median(v)), 1)} for k, v in seconds.items()]


def memory() -> Table:
    """Peak resident memory of the main job: one epoch, evaluation and report, as always."""
    with _cache() as cache:
        result = _worker("memory", cache, tempfile.mkdtemp(dir=cache))
    return [{"run": "configs/mnist100.py", "peak GiB": round(result["bytes"] / 2**30, 2)}]


def accuracy(seeds: int = 5) -> Table:
    """configs/fast.py from an empty cache of programs: seconds of compiling and training, test."""
    made = []
    for seed in range(seeds):
        with _cache() as cache:
            made.append({"seed": seed} | _worker("accuracy", cache, str(seed)))
    return made


def scaling() -> Table:
    """Milliseconds of a training step (of an epoch, by image count) as one thing grows."""
    made: Table = []

    def add(what: str, value: int, images: int, seconds: float) -> None:
        row = {"what": what, "value": value, "ms": round(1e3 * seconds, 2)}
        made.append(row | {"images/s": round(images / seconds)})

    for batch in (16, 32, 64, 128, 256, 512, 1024):
        config = ours.config_of("lenet5")
        config.batch_size = batch
        add("batch of lenet5", batch, batch, _best(ours.train(ours.build(config))))
    for width in (8, 16, 32, 64):
        config = ours.config_of("mnist100")
        config.model.features = (width, 2 * width)
        seconds = _best(ours.train(ours.build(config)))
        add("first layer's channels of mnist100", width, config.batch_size, seconds)
    for members in (1, 2, 4, 8):
        config = ours.config_of("mnist:mlp128")
        config.population.update(size=members, slice=members)
        images = members * config.batch_size
        add(
            "members of mlp128 in a program", members, images, _best(ours.train(ours.build(config)))
        )
    for images in (1_000, 4_000, 16_000):
        run = ours.build(ours.config_of("lenet5", images))
        step = ours.train(run)

        def epoch(step: ours.Step = step, steps: int = run.steps_per_epoch) -> Any:
            for _ in range(steps):
                totals = step()
            return totals

        add("images of an epoch of lenet5", images, images, _best(epoch))
    return made


def population(networks: list[str], rounds: int = 3, images: int = 512) -> Table:
    """Epochs of P members in one run against P epochs of a solo run, in turn; no evaluation."""
    made: Table = []
    for network in networks:
        alone, clock = ours.build(ours.config_of(network, images)), loop.Clock()
        for size in (1, 4, 16) if jax.default_backend() == "cpu" else (1, 4, 16, 100):
            config = ours.config_of(network, images)
            config.population.size = size
            together, ratios = ours.build(config), []
            for number in range(1, rounds + 2):
                begun = time.perf_counter()
                loop.train_epoch(together, number, clock)
                middle = time.perf_counter()
                for _ in range(size):
                    loop.train_epoch(alone, number, clock)
                if number > 1:  # the first compiles
                    seconds = middle - begun
                    ratios.append(seconds / (time.perf_counter() - middle))
            ratio = {"median": np.median(ratios), "from": min(ratios), "to": max(ratios)}
            made.append(
                {
                    "network": network,
                    "members": size,
                    "slice": len(together.ids[0]),
                    "together / alone": {k: round(float(x), 3) for k, x in ratio.items()},
                    "ms an epoch": round(1e3 * seconds, 1),
                }
            )
    return made


def roofline(networks: list[str]) -> Table:
    """A training step against the machine's measured matrix products and copies.

    FLOPs: three times the forward pass (`describe`); bytes: what XLA counts in the compiled step,
    most of which never leaves the caches.
    """
    a = jnp.ones((2048, 2048))
    product, copy = jax.jit(jnp.dot), jax.jit(lambda x: x + 1)
    big = jnp.ones(2**24)  # beyond every cache
    gemm = 2 * 2048**3 / _best(lambda: product(a, a))
    stream = 2 * big.nbytes / _best(lambda: copy(big))
    made: Table = [
        {"network": "the machine", "GFLOP/s": round(gemm / 1e9), "GB/s": round(stream / 1e9, 1)}
    ]
    for name in networks:
        config = ours.config_of(name)
        run = ours.build(config)
        recipe = RECIPES[config.data.dataset]
        flops = 3 * sum(row.flops for row in describe.layers(run.program.model, recipe.shape))
        flops *= config.batch_size
        moved = _bytes(run)
        seconds = _best(ours.train(run))
        made.append(
            {
                "network": name,
                "GFLOP/s": round(flops / seconds / 1e9, 1),
                "GB/s": round(moved / seconds / 1e9, 1),
                "flop/byte": round(flops / moved, 2),
                "of the products' rate": round(flops / seconds / gemm, 2),
            }
        )
    return made


def _bytes(run: loop.Run) -> float:
    """What one compiled training step reads and writes."""
    program = run.train.compile(run.begin_epoch(0, 1), run.shared, program=run.program, steps=1)
    cost: Any = program.cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["bytes accessed"])


def _best(call: Callable[[], Any], seconds: float = 1.0, most: int = 300) -> float:
    """Seconds of the fastest of as many calls as fit into `seconds`, after three others."""
    for _ in range(3):
        jax.block_until_ready(call())
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or (time.perf_counter() < end and len(taken) < most):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _cache() -> tempfile.TemporaryDirectory:
    """A cache folder with the user's prepared MNIST, where there is one, and no programs."""
    folder = tempfile.TemporaryDirectory()
    own = dataset.cache_dir(ours.config_of("mnist").data)
    if own.is_dir():
        skip = shutil.ignore_patterns("xla", "drawn")
        shutil.copytree(own, folder.name, ignore=skip, dirs_exist_ok=True)
    return folder


def _worker(*arguments: str) -> dict[str, Any]:
    """The last line of `python -m benchmarks.worker ARGUMENTS`, read as JSON."""
    command = [sys.executable, "-m", "benchmarks.worker", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": jax.default_backend()},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])
