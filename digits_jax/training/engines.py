"""What computes the steps: `config.engine`. Both modules have the same functions."""

from types import ModuleType

from digits_jax.core import population
from digits_jax.scratch import population as by_hand

ENGINES: dict[str, ModuleType] = {"jax": population, "numpy": by_hand}
