"""Hyperparameter search: whole populations of trials. Needs requirements-search.txt.

May import training and analysis.
"""

from digits_jax.errors import UserError

try:
    import optuna  # noqa: F401
except ImportError as error:
    raise UserError(f'--mode=search needs {error.name}: pip install "digits_jax[search]"') from None
