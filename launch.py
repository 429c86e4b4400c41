"""Trains what a config describes, or does something else with it: --mode.

python launch.py --config=configs/mnist100.py[:variant] [--workdir=DIR] [--config.field=value ...]
"""

from absl import flags

from digits_jax import cli

flags.adopt_module_key_flags(cli)  # for --help

if __name__ == "__main__":
    cli.main()
