"""The tests' own settings, whatever is installed and set where they run."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from digits_jax.console import console
from digits_jax.devices import backend
from tests.conftest import new_process

ROOT = Path(__file__).parent.parent
PLUGIN = """
import warnings
import pytest

class PluginWarning(pytest.PytestWarning):
    pass

def pytest_configure(config):
    warnings.warn(PluginWarning("as pytest-benchmark beside xdist"))
"""


def test_the_settings():
    assert jax.device_count() == 1
    assert backend.matmul_precision() == "highest"
    assert jnp.result_type(float) == jnp.float32
    assert console.no_color is False
    assert not console.is_terminal
    assert console.width == 80


def test_commands_in_new_processes_are_those_in_copies(command):
    """As on a system that can't copy them."""
    for arguments, program in (
        (["--config=configs/mnist1000.py"], ""),
        (["a", "b"], "import sys; print(sys.argv); sys.exit(7)"),
    ):
        copied = command(*arguments, program=program)
        assert copied[0] in (1, 7)
        assert new_process(*arguments, program=program) == copied


def test_they_hold_beside_a_plugin_that_warns_and_under_a_users_own(tmp_path):
    (tmp_path / "warns.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "xdg").mkdir()
    found = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    theirs = {
        "PYTHONPATH": found,
        "COLUMNS": "20",
        "FORCE_COLOR": "1",
        "NO_COLOR": "1",
        "JAX_ENABLE_X64": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    this = f"{Path(__file__)}::test_the_settings"
    command = [sys.executable, "-m", "pytest", "-p", "warns", "-p", "no:cacheprovider", this]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | theirs,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
