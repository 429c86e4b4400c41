"""One training on many devices and hosts, all of them made of this machine's cores."""

import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from reliability.faults import Row, finish, result, start

_RUN = ("--config.epochs=1", "--config.data.train=320", "--config.population.size=8")  # 20 steps
_LAYOUTS = ((8, 1), (4, 2), (2, 4), (1, 8), (4, 1), (2, 2), (1, 4), (2, 1), (1, 2))


def launch(
    workdir: Path, flags: Iterable[str], devices: int, processes: int = 1, bits: int = 32
) -> list[subprocess.Popen]:
    """The training by so many processes with so many devices each."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(bits == 64)),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    if processes == 1:
        return [start(workdir, *flags, **environment)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}"]
    shared += [f"--num_processes={processes}", *flags]
    return [start(workdir, *shared, f"--process_id={i}", **environment) for i in range(processes)]


def _all_end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        code, said = finish(process)
        if code:
            raise RuntimeError(said)


def layouts(folder: Path) -> list[Row]:
    """How far metrics and weights are from one device's, the same training on each mesh."""
    table = []
    for bits in (64, 32):
        _all_end(launch(folder / f"one-{bits}", _RUN, 1, bits=bits))
    for members, data in _LAYOUTS:
        for processes in (1, 2) if members * data == 4 else (1,):
            row: Row = {
                "processes": processes,
                "devices": members * data,
                "members x batch": f"{members} x {data}",
            }
            for bits in (64, 32):
                workdir = folder / f"{processes}-{members}-{data}-{bits}"
                flags = (*_RUN, f"--config.mesh.data={data}")
                _all_end(launch(workdir, flags, members * data // processes, processes, bits))
                metrics, weights = _apart(folder / f"one-{bits}", workdir)
                row[f"float{bits}: metrics"] = f"{metrics:.1e}"
                row[f"float{bits}: weights"] = f"{weights:.1e}"
            table.append(row)
    return table


def _apart(one: Path, other: Path) -> tuple[float, float]:
    """-> (largest difference between metrics, between weights)."""
    (rows, weights), (others, other_weights) = result(one), result(other)
    metrics = [abs(a[k] - b[k]) for a, b in zip(rows, others, strict=True) for k in a]
    return max(metrics), max(
        np.abs(weights[name] - other_weights[name]).max()
        for name in weights
        if name.startswith("weights/")
    )


def lost(folder: Path) -> list[Row]:
    """Either of two processes killed in the second epoch; how the other ends, and the restart."""
    flags = ("--config.epochs=12", "--config.mesh.data=2")
    _all_end(launch(folder / "whole", flags, 2, 2))
    table = []
    for victim in (0, 1):
        workdir = folder / f"without-{victim}"
        processes = launch(workdir, flags, 2, 2)
        while not (workdir / "checkpoints" / "1").exists():
            if processes[0].poll() is not None:
                raise RuntimeError(finish(processes[0])[1])
            time.sleep(0.02)
        processes[victim].kill()
        begun = time.perf_counter()
        finish(processes[victim])
        code, said = finish(processes[1 - victim])
        took = time.perf_counter() - begun
        if "Traceback" in said or not code or took > 60:
            raise RuntimeError(said)
        _all_end(launch(workdir, flags, 2, 2))
        (rows, weights), (others, other_weights) = result(folder / "whole"), result(workdir)
        table.append(
            {
                "killed": f"process {victim}",
                "the other ends after, s": round(took, 1),
                "with code": code,
                "and the words": said.strip().partition(" (what")[0],
                "restarted as undisturbed": rows == others
                and all(np.array_equal(weights[name], other_weights[name]) for name in weights),
            }
        )
    return table
