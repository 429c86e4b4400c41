"""Handwritten digits in JAX: small networks, whole populations, honest numbers.

    run = digits_jax.load("results/compact")
    run.predict(images).labels

Nothing is imported before its first use: `import digits_jax` loads neither JAX nor NumPy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from digits_jax.api import (
        Prediction,
        Reading,
        TrainedRun,
        get_config,
        load,
        register_augmentation,
        register_model,
        train,
    )
    from digits_jax.defaults import get_base
    from digits_jax.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "Prediction",
    "Reading",
    "TrainedRun",
    "UserError",
    "get_base",
    "get_config",
    "load",
    "register_augmentation",
    "register_model",
    "train",
]
_ELSEWHERE = {"UserError": "errors", "get_base": "defaults"}  # all others are in api


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'digits_jax' has no attribute '{name}'")
    module = importlib.import_module(f"digits_jax.{_ELSEWHERE.get(name, 'api')}")
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return ["__version__", *__all__]
