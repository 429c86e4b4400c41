"""Two processes with two devices each, as one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from digits_jax.errors import SAVED

ROOT = Path(__file__).parent.parent
FLAGS = (
    "--config=configs/compact.py:phase5",
    "--config.model.layers=('conv3 4', 'pool', 'conv3 6', 'average 1', 'linear1 classes')",
    *("--config.data.source=drawn", "--config.data.drawn_train=400", "--config.data.drawn_test=50"),
    *("--config.data.train=320", "--config.data.test=40", "--config.batch_size=32"),
    *("--config.population.size=2", "--config.population.slice=2", "--config.epochs=8"),
)


def start(workdir, cache, *flags, devices=1, **variables):
    count = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    environment |= variables
    environment["XLA_FLAGS"] = f"{count} --xla_backend_optimization_level=0"
    return subprocess.Popen(
        [
            sys.executable,
            "launch.py",
            *FLAGS,
            f"--workdir={workdir}",
            f"--config.data.cache_dir={cache}",
            *flags,
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def by_hand():
    """How process `number` of two finds the other one: flags, and no environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    return lambda number: ((where, "--num_processes=2", f"--process_id={number}"), {})


def by_slurm():
    """The same as Slurm would tell it; JAX makes a port of the job's number."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}
    job |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}

    def found(number):
        me = str(number)
        return ("--distributed",), job | {"SLURM_PROCID": me, "SLURM_LOCALID": me}

    return found


def pair(workdir, cache, *others, how=by_hand):
    """Two processes that share the batches of each member; the second has `others` as flags."""
    found, processes = how(), []
    for number, mine in enumerate(((), others)):
        flags, variables = found(number)
        flags = ("--config.mesh.data=2", *flags, *mine)
        processes.append(start(workdir, cache, *flags, devices=2, **variables))
    return processes


def ends(processes):
    """-> ([exit codes], what they said on stderr)."""
    said = "".join(process.communicate(timeout=240)[1] for process in processes)
    return [process.returncode for process in processes], said


def logs(workdir):
    """What JAX's runtime wrote, of all processes."""
    return "".join(f"\n{log.name}:\n{log.read_text()}" for log in workdir.glob("runtime-*.log"))


def wait_for(path, processes):
    deadline = time.monotonic() + 240
    while not path.exists():
        assert all(process.poll() is None for process in processes), ends(processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def epochs(workdir):
    found = (workdir / "checkpoints").iterdir()
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


@pytest.mark.slow
def test_two_processes_stopped_and_killed_are_one_undisturbed(cache, tmp_path):
    alone = start(tmp_path / "alone", cache)
    workdir = tmp_path / "pair"
    processes = pair(workdir, cache)
    wait_for(workdir / "checkpoints" / "1", processes)
    processes[1].send_signal(signal.SIGTERM)  # to one, and both stop at the same step
    codes, said = ends(processes)
    assert codes == [SAVED, SAVED], said + logs(workdir)
    assert not list(workdir.glob("runtime-*"))

    processes = pair(workdir, cache)
    latest = epochs(workdir)[-1]
    wait_for(workdir / "checkpoints" / str(latest + 2), processes)
    processes[1].kill()
    begun = time.monotonic()
    codes, said = ends(processes)
    assert time.monotonic() - begun < 60
    assert codes[0] != 0
    assert "another one of its run has gone; start all of them again" in said
    assert "Traceback" not in said
    assert not (workdir / "summary.json").exists()

    latest = workdir / "checkpoints" / str(epochs(workdir)[-1])
    damaged = list((latest / "state" / "d").iterdir())
    for path in damaged:  # both go back to the one before
        path.write_bytes(bytes(path.stat().st_size))
    assert damaged
    codes, said = ends(pair(workdir, cache, how=by_slurm))
    assert codes == [0, 0], said + logs(workdir)
    assert f"the checkpoint of epoch {latest.name} cannot be read" in said
    assert ends([alone])[0] == [0]
    ones, others = rows(tmp_path / "alone"), rows(workdir)
    assert len(ones) == 16
    for one, other in zip(ones, others, strict=True):
        assert one == pytest.approx(other, rel=1e-8, abs=1e-8)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["mesh"] == {"member": 2, "data": 2, "processes": 2}
    assert not list(workdir.glob("runtime-*"))


def test_a_number_that_is_taken(cache, tmp_path):
    with filelock.FileLock(tmp_path / ".lock-0"), filelock.FileLock(tmp_path / ".lock-1"):
        codes, said = ends(pair(tmp_path, cache))
    assert codes == [1, 1], said
    for number in (0, 1):
        assert f"another process {number} is training in {tmp_path}" in said


@pytest.mark.slow
def test_processes_that_do_not_belong_together(cache, tmp_path):
    codes, said = ends(pair(tmp_path, cache, "--config.batch_size=16"))
    assert codes == [1, 1], said
    assert said.count("error: the processes of this run differ in their configs") == 2
    assert said.count("\n") == 2


@pytest.mark.slow
def test_a_workdir_that_they_do_not_share(cache, tmp_path):
    codes, said = ends(pair(tmp_path / "a", cache, f"--workdir={tmp_path / 'b'}"))
    assert codes == [1, 1], said
    assert said.count("which has to be a folder that all of them share") == 2
    assert said.count("\n") == 2


@pytest.mark.parametrize("place", ["127.0.0.1", "127.0.0.1:", "host:port"])
def test_a_coordinator_without_a_port_is_one_clear_line(command, tmp_path, place):
    code, _, said = command(*FLAGS, f"--workdir={tmp_path}", f"--coordinator={place}")
    assert code == 1
    assert said == f"error: --coordinator={place}: it is HOST:PORT of process 0"


def test_a_coordinator_without_numbers_is_one_clear_line(command, tmp_path):
    code, _, said = command(*FLAGS, f"--workdir={tmp_path}", "--coordinator=127.0.0.1:1")
    assert code == 1
    assert "the processes did not find each other: Number of processes must be defined" in said
    assert "\n" not in said
