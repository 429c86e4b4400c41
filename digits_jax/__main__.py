"""`python -m digits_jax`, the same as launch.py and as the command `digits-jax`."""

from digits_jax import cli

if __name__ == "__main__":
    cli.main()
