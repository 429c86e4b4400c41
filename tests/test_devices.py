"""Members over several devices, and slices that fit a device's memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import config_of, shrink

from digits_jax import devices
from digits_jax import run as building
from digits_jax.train import build

ROOT = Path(__file__).parent.parent

SCRIPT = """
import os, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
)
from conftest import config_of, shrink
import jax
jax.config.update("jax_enable_x64", True)
from digits_jax import train as loop
config = shrink(config_of("two_head"), {cache!r})
config.model.update(features=(2, 3), hidden=(8,))
config.population.update(size=5, slice=4)
line = loop._epoch_line
def stop(*_):
    raise KeyboardInterrupt
loop._epoch_line = stop
try:
    loop.train(config, loop.Path({workdir!r}))
except KeyboardInterrupt:
    loop._epoch_line = line
    loop.train(config, loop.Path({workdir!r}))
"""


def test_members_over_four_devices(cache, tmp_path):
    """Five members, of which four share the devices and one is alone; resumed after an epoch."""
    rows = []
    for count in (1, 4):
        workdir = tmp_path / str(count)
        code = SCRIPT.format(root=str(ROOT), count=count, cache=str(cache), workdir=str(workdir))
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        rows.append([json.loads(line) | {"seconds": 0} for line in lines])
    assert len(rows[0]) == 10
    for one, other in zip(*rows, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9)


def test_slices_are_halved_until_they_fit(cache, monkeypatch):
    config = shrink(config_of("two_head:mlp"), cache)
    config.population.update(size=6, slice=3)
    run = build(config)
    needed = run.bytes_needed()
    assert needed > sum(x.nbytes for x in jax.tree.leaves(run.states))
    config.population.slice = 0
    monkeypatch.setattr(building, "slice_size", lambda *_: 6)
    monkeypatch.setattr(devices, "memory", lambda: int(needed / 0.9) + 1)
    run = build(config)
    assert [len(ids) for ids in run.ids] == [3, 3]
    assert config.population.slice == 3
    assert sum(len(members.seed) for members in run.members) == 6
    np.testing.assert_array_equal(run.members[1].seed, [3, 4, 5])
