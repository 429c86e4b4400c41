"""Members and batches over several devices, and slices that fit a device's memory."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import built, config_of, shrink, slow_except

from digits_jax.devices import backend, mesh
from digits_jax.errors import UserError
from digits_jax.training import resolve as resolving

ROOT = Path(__file__).parent.parent

SCRIPT = """
import os, sys
sys.path.insert(0, "tests")
from conftest import config_of, shrink
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count={count}"
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_compilation_cache_dir", {cache!r} + "/xla")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_numpy_rank_promotion", "raise")
from digits_jax.training import train as loop
from digits_jax.training.resolve import resolve
config = shrink(config_of({name!r}), {cache!r})
config.model.update({model!r})
config.data.train, config.batch_size, config.mesh.data = 320, 32, {data}
config.population.update(size={size}, slice={width})
config.data.folds = {folds}
if not {folds}:
    loop.finish = lambda *_: None
if {data} > 1:  # the work is shared, not done by each
    run = loop.build(resolve(config))
    own = run.begin_epoch(0, 1)
    text = run.train.compile(own, run.shared, program=run.program, steps=1).as_text()
    assert " all-reduce(" in text
    assert " all-gather(" not in text
    spec = jax.tree.leaves(run.states[0].params)[0].sharding.spec
    assert {count} == {data} or spec == jax.P("member"), spec
if {wild}:  # the second member's rate is no rate
    built = loop.build
    def build(config):
        run = built(config)
        rates = [members.hyper.learning_rate for members in run.members]
        rates[-1][-1] = 1e300
        return run
    loop.build = build
line = loop.EpochTable.print
def stop(*_):
    raise KeyboardInterrupt
if {begin}:
    loop.EpochTable.print = stop
    try:
        loop.train(config.copy_and_resolve_references(), loop.Path({workdir!r}))
    except KeyboardInterrupt:
        loop.EpochTable.print = line
if {end}:
    loop.train(config, loop.Path({workdir!r}))
"""
CNN = {"features": (2, 3), "hidden": (8,)}
# BatchNorm, dropout and rotation
COMPACT = {"layers": ("conv3 4", "pool", "conv3 6", "average 1", "linear1 classes")}


def rows(
    command,
    workdir,
    cache,
    name,
    model,
    *,
    count=1,
    data=1,
    size=1,
    width=0,
    wild=False,
    part="both",
    folds=0,
):
    """metrics.jsonl of 20 steps, resumed after the first ten, on `count` devices.

    part: "whole" without a stop, "first" or "second" for ten of them alone; wild: the last member
    diverges; with folds it is brought to its end, with its summary.
    """
    workdir = workdir / ("in-parts" if part in ("first", "second") else f"{count}-{data}-{wild}")
    fields = {"name": name, "model": model, "count": count, "data": data, "wild": wild}
    fields["folds"] = folds
    fields |= {"size": size, "width": width}
    fields |= {"begin": part in ("both", "first"), "end": part != "first"}
    program = SCRIPT.format(cache=str(cache), workdir=str(workdir), **fields)
    code, _, said = command(program=program)
    assert code == 0, said
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


@pytest.mark.slow
def test_members_over_four_devices(command, cache, tmp_path):
    """Five members, of which four share the devices and one is alone."""
    fields = {"size": 5, "width": 4}
    one, four = (rows(command, tmp_path, cache, "two_head", CNN, count=n, **fields) for n in (1, 4))
    assert len(one) == 10
    for row, other in zip(one, four, strict=True):
        assert row == pytest.approx(other, rel=1e-9, abs=1e-9)


def compact(command, workdir, cache, **how):
    return rows(command, workdir, cache, "compact:phase5", COMPACT, size=2, **how)


@pytest.fixture(scope="module")
def alone(command, cache, tmp_path_factory):
    """The rows of two members on one device."""
    one = compact(command, tmp_path_factory.mktemp("alone"), cache, part="whole")
    assert one[0]["loss"] != one[1]["loss"]
    return one


@pytest.mark.parametrize(
    "how",
    slow_except(
        [{"count": 4, "data": 2, "part": "whole"}],
        [
            {"count": 4, "data": 2, "part": "whole"},
            {"count": 4, "data": 2},
            {"count": 8, "data": 8},
        ],
    ),
    ids=str,
)
def test_batches_over_devices(command, alone, cache, tmp_path, how):
    """Statistics of a part of the batch would show in the first digits."""
    for row, other in zip(alone, compact(command, tmp_path, cache, **how), strict=True):
        assert row == pytest.approx(other, rel=1e-8, abs=1e-8)


@pytest.mark.slow
def test_a_run_that_began_on_four_devices_goes_on_on_one(command, alone, cache, tmp_path):
    compact(command, tmp_path, cache, count=4, data=2, part="first")
    for row, other in zip(alone, compact(command, tmp_path, cache, part="second"), strict=True):
        assert row == pytest.approx(other, rel=1e-8, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "data"), [(4, 2)])
def test_folds_over_devices(command, cache, tmp_path, count, data):
    """Members have their own validation digits, and all the same test digits."""
    fields = {"size": 2, "width": 2, "folds": 2}
    one = rows(command, tmp_path, cache, "two_head", CNN, part="whole", **fields)
    several = rows(command, tmp_path, cache, "two_head", CNN, count=count, data=data, **fields)
    assert [row["fold"] for row in one] == [0, 1, 0, 1]
    assert one[0]["validation_loss"] != one[1]["validation_loss"]
    for row, other in zip(one, several, strict=True):
        assert row == pytest.approx(other, rel=1e-8, abs=1e-8)
    first, second = (
        json.loads((tmp_path / name / "summary.json").read_text())
        for name in ("1-1-False", f"{count}-{data}-False")
    )
    for split in ("train", "validation", "test"):
        for figure in ("loss", "accuracy"):
            assert first[split][figure] == pytest.approx(second[split][figure], rel=1e-8)
    assert [m["test"] for m in first["members"]] == [m["test"] for m in second["members"]]


@pytest.mark.slow
def test_a_member_that_diverges_stops_alone_on_a_mesh_too(command, cache, tmp_path):
    one, four = (
        rows(command, tmp_path, cache, "two_head", CNN, size=2, wild=True, **how)
        for how in ({"part": "whole"}, {"count": 4, "data": 2})
    )
    assert [row["member"] for row in one] == [0, 0]
    for row, other in zip(one, four, strict=True):
        assert row == pytest.approx(other, rel=1e-8, abs=1e-8)


def test_a_mesh_that_does_not_fit_is_one_clear_line(cache, tmp_path):
    config = shrink(config_of("two_head:mlp"), cache)
    config.mesh.data = 3
    with pytest.raises(UserError, match=r"config\.mesh\.data=3 does not divide the 1 devices"):
        built(config)


def test_slices_are_halved_until_they_fit(cache, monkeypatch):
    config = shrink(config_of("two_head:mlp"), cache)
    config.population.update(size=6, slice=3)
    run = built(config)
    needed = run.bytes_needed()
    assert needed > sum(x.nbytes for x in jax.tree.leaves(run.states))
    config.population.slice = 0
    monkeypatch.setattr(resolving, "slice_size", lambda *_: 6)
    monkeypatch.setattr(backend, "memory", lambda: int(needed / 0.9) + 1)
    run = built(config)
    assert [len(ids) for ids in run.ids] == [3, 3]
    assert run.config.population.slice == 3
    assert sum(len(members.seed) for members in run.members) == 6
    np.testing.assert_array_equal(run.members[1].seed, [3, 4, 5])


def test_shapes_are_laid_out_as_arrays_are():
    like = jax.ShapeDtypeStruct((2, 3), np.float32)
    assert mesh._fetch(like) is like  # of several processes, too
    layout = mesh.Layout(1, 4)
    layout.alone = False
    assert layout.over_members([like])[0].sharding.spec == jax.P("member")


FREED = """
import ctypes, resource, threading
from digits_jax.devices import backend
backend._keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 40 * 2**20  # two do not fit into one of a thread's heaps
def step():
    buffer = c.malloc(size)
    c.memset(buffer, 1, size)
    c.free(buffer)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    step()
    kept = c.malloc(size)
    step()
    before = faults()
    for _ in range(10):
        step()
    print(faults() - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_thread_gets_the_pages_it_freed():
    """Mapped anew, ten buffers of 40 MB would be 100,000 faults on pages of 4 kB."""
    done = subprocess.run(
        [sys.executable, "-c", FREED], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 100
