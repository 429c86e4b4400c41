"""Trains what a config describes, or does something else with it: --mode.

python launch.py --config=configs/mnist100.py[:variant] [--workdir=DIR] [--config.field=value ...]
"""

from digits_jax import cli

if __name__ == "__main__":
    cli.main()
