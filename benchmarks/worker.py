"""What has to be measured in a process of its own: prints JSON.

python -m benchmarks.worker first_step CACHE STARTED | memory CACHE WORKDIR | accuracy CACHE SEED
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def first_step(cache: str, started: str) -> dict[str, Any]:
    """Seconds since `started`, a `time.time()`, when the main job's first step is done."""
    from configs.mnist100 import get_config
    from digits_jax import train as loop

    config = get_config()
    config.data.cache_dir = cache
    _steps(loop.build(config), epoch=1, steps=1)
    return {"seconds": time.time() - float(started)}


def memory(cache: str, workdir: str) -> dict[str, Any]:
    """Peak resident bytes of an epoch of the main job, its evaluation and its report."""
    from configs.mnist100 import get_config
    from digits_jax import train as loop

    config = get_config()
    config.data.cache_dir, config.epochs = cache, 1
    loop.train(config, Path(workdir) / "run")
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bytes": kilobytes * (1 if sys.platform == "darwin" else 1024)}


def accuracy(cache: str, seed: str) -> dict[str, Any]:
    """Seconds from before the first jitted call to the last update, and the test accuracy."""
    from configs.fast import get_config

    from digits_jax import train as loop
    from digits_jax.data import batches
    from digits_jax.metrics import means

    config = get_config()
    config.data.cache_dir, config.seed = cache, int(seed)
    batches.load(config.data)  # from the disk's cache within `build`
    begun = time.perf_counter()
    run = loop.build(config)
    for epoch in range(1, config.epochs + 1):
        _steps(run, epoch, run.steps_per_epoch)
    seconds = time.perf_counter() - begun
    (sums, _), *_ = run.evaluate_chosen(run.data.test)
    tested = round(100 * means(sums, 0)["accuracy"], 2)
    return {"source": run.data.source, "seconds": round(seconds, 2), "test accuracy": tested}


def _steps(run: Any, epoch: int, steps: int) -> None:
    import jax

    from digits_jax.population import hyper_of, seeds_of

    data, members = run.data, run.members[0]
    seeds, hyper = seeds_of(run.config, members), hyper_of(run.config, len(members))
    order = run.order(seeds, epoch, n=len(data.train.rows))
    state, totals = run.states[0], run.programs.zeros(len(members))
    for i in range(steps):
        state, totals = run.train(
            state, totals, order, i, data.train, data.normalizer, seeds, hyper, steps=1
        )
    run.states[0] = jax.block_until_ready(state)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(globals()[name](*arguments)))
