"""The devices that a run uses, and what a command sets in its process for them."""

import ctypes
import logging
from pathlib import Path
from typing import Any

import absl.logging
import jax
from ml_collections import ConfigDict

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_HEAP = 64 * 2**20  # bytes of a heap of glibc's threads


def start(cache: Path) -> None:
    """Prepares the process of a command: quiet, and with compiled programs kept under `cache`.

    With them a first step comes within seconds, not minutes; an unwritable cache costs time,
    nothing else. It changes log levels, JAX's settings and, on CPU, those of malloc, so nothing
    that can be imported calls it: `launch.py` does.
    """
    quiet()
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_raise_persistent_cache_errors", False)
    if jax.default_backend() == "cpu":
        _keep_freed_memory()


def quiet() -> None:
    """The part of `start` that needs no devices yet: libraries keep their news to themselves."""
    # Orbax tells of its every move, and of its errors before it raises them.
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("digits_jax").setLevel(logging.WARNING)  # ours are still heard
    for chatty in ("xla_bridge", "compilation_cache", "distributed"):
        logging.getLogger(f"jax._src.{chatty}").setLevel(logging.ERROR)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where its caches lie without a home


def _keep_freed_memory() -> None:
    """Has glibc keep what a step frees for the next one; other C libraries go on as they do.

    It would map large buffers anew in every step and clear their pages: a fifth to a third of the
    main job's time. Threads have heaps of their own, which go with their last buffer unless there
    is to be that much room at the end: a step of phase5 took 35 to 60 ms, by luck, and takes 35.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, _HEAP)


def memory() -> int | None:
    """Bytes that a device can give to programs; None where it does not say (CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


def matmul_precision() -> str:
    """What JAX_DEFAULT_MATMUL_PRECISION asks of products of float32, 'highest' say.

    'default' is float32 on CPU, TensorFloat-32 on recent NVIDIA GPUs and bfloat16 on TPUs.
    """
    config: ConfigDict = jax.config
    return config.jax_default_matmul_precision or "default"


def once() -> dict[str, Any]:
    """For `jax.jit` of a program that runs once and briefly, such as drawing the first weights.

    On CPU it is compiled without optimisation: LLVM would take 21 s of one core over the weights of
    eight convolutions, of which 1.6 s are left.
    """
    unoptimised = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return {"compiler_options": unoptimised}
