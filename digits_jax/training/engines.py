"""What computes the steps: `config.engine`."""

from digits_jax.core.population import Population
from digits_jax.scratch.population import NumpyPopulation

ENGINES: dict[str, type[Population]] = {"jax": Population, "numpy": NumpyPopulation}
