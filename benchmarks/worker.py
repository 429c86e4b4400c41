"""What has to be measured in a process of its own: prints JSON.

python -m benchmarks.worker first_step CACHE STARTED | memory CACHE WORKDIR | accuracy CACHE SEED
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks import ours
from configs import fast, mnist100
from digits_jax.core.step import eval_weights
from digits_jax.data import dataset
from digits_jax.devices import backend
from digits_jax.training import train as loop


def first_step(cache: str, started: str) -> dict[str, Any]:
    """Seconds since `started`, a `time.time()`, when the main job's first step is done."""

    config = mnist100.get_config()
    config.data.cache_dir = cache
    jax.block_until_ready(ours.train(ours.build(config))())
    return {"seconds": time.time() - float(started)}


def memory(cache: str, workdir: str) -> dict[str, Any]:
    """Peak resident bytes of an epoch of the main job, its evaluation and its report."""

    config = mnist100.get_config()
    config.data.cache_dir, config.epochs = cache, 1
    loop.train(config, Path(workdir) / "run")
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bytes": kilobytes * (1 if sys.platform == "darwin" else 1024)}


def accuracy(cache: str, seed: str) -> dict[str, Any]:
    """Seconds from before the first jitted call to the last update, and the test accuracy."""

    config = fast.get_config()
    config.data.cache_dir, config.seed = cache, int(seed)
    dataset.load(config.data)  # from the disk's cache within `build`
    begun = time.perf_counter()
    run = ours.build(config)
    step = ours.train(run)
    for _ in range(config.epochs * run.steps_per_epoch):
        step()
    jax.block_until_ready(run.states[0])
    seconds = time.perf_counter() - begun
    sums, _ = run.evaluate(eval_weights(run.states[0]), run.members[0], run.data.test)
    tested = round(100 * sums.means(0)["accuracy"], 2)
    return {"source": run.data.source, "seconds": round(seconds, 2), "test accuracy": tested}


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    with backend.command(Path(arguments[0])):
        print(json.dumps(globals()[name](*arguments)))
