"""The devices that a run uses, and what a command sets in its process for them."""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import absl.logging
import jax

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_HEAP = 64 * 2**20  # bytes kept at the end of each thread's heap
_LEVELS = {
    "digits_jax": logging.WARNING,
    "jax._src.xla_bridge": logging.ERROR,
    "jax._src.compilation_cache": logging.ERROR,
    "jax._src.distributed": logging.ERROR,
    "matplotlib": logging.ERROR,  # warns of a temporary cache where there is no home directory
}


@contextmanager
def command(cache: Path) -> Iterator[None]:
    """Sets up the process of a command: quiet libraries, and a compilation cache under `cache`.

    With the cache a first step takes seconds, not minutes; if it cannot be written, that is no
    error. Log levels and JAX's settings are restored at the end; on CPU, those of malloc stay.
    """
    settings = {
        "jax_compilation_cache_dir": str(cache / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_raise_persistent_cache_errors": False,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with quiet():
        if jax.default_backend() == "cpu":
            _keep_freed_memory()
        try:
            for name, value in settings.items():
                jax.config.update(name, value)
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)


@contextmanager
def quiet() -> Iterator[None]:
    """Within, libraries log errors at most."""
    verbosity = absl.logging.get_verbosity()
    levels = {name: logging.getLogger(name).level for name in ("", "absl", *_LEVELS)}
    # Orbax logs errors before it raises them. Sets the level of the root logger, or of absl's.
    absl.logging.set_verbosity(absl.logging.FATAL)
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step; does nothing with other C libraries.

    By default it maps large buffers anew in every step and clears their pages, a fifth to a third
    of the time of a training run. A thread's heap is released with its last buffer unless M_TOP_PAD
    keeps room at its end: without it a step of phase5 takes 35 to 60 ms, with it 35.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, _HEAP)


def memory() -> int | None:
    """Bytes of the first local device; None where it does not report them (CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


def matmul_precision() -> str:
    """JAX_DEFAULT_MATMUL_PRECISION, the precision of float32 matrix products, such as 'highest'.

    'default' is float32 on CPU, TensorFloat-32 on recent NVIDIA GPUs and bfloat16 on TPUs.
    """
    return jax.config.jax_default_matmul_precision or "default"


def once() -> dict[str, Any]:
    """Arguments of `jax.jit` for a function that is called once and is short, as initialisation is.

    On CPU it is compiled without optimisation: for the initial weights of eight convolutions LLVM
    takes 1.6 s instead of 21 s of one core.
    """
    unoptimised = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return {"compiler_options": unoptimised}
