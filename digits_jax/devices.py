"""The devices a run uses, and the compiled programs it keeps between runs."""

import logging
from pathlib import Path

import absl.logging
import jax


def start(cache: Path) -> str:
    """Keeps compiled programs under `cache` (a first step within seconds, not minutes).

    Returns the backend: 'cpu', 'gpu' or 'tpu'. An unwritable cache costs time, nothing else.
    """
    absl.logging.set_verbosity(absl.logging.WARNING)  # orbax tells of its every move
    for chatty in ("jax._src.xla_bridge", "jax._src.compilation_cache"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_raise_persistent_cache_errors", False)
    return jax.default_backend()
