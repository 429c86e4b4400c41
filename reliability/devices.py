"""One training on several virtual devices and processes of this machine."""

import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from configs import compact, lenet5, mnist
from reliability.faults import RUN, Row, finish, result, start, succeed

_RUN = ("--config.epochs=1", "--config.data.train=320", "--config.population.size=8")  # 20 steps
# Runs of one epoch on MNIST in float32, two members: {name: (config, flags)}
_EPOCHS = {
    "mnist.py:mlp128": (mnist.get_config("mlp128"), ()),
    "lenet5.py, tanh and average pooling": (
        lenet5.get_config(),
        ("--config.model.activation=tanh", "--config.model.pooling=average"),
    ),
    "lenet5.py": (lenet5.get_config(), ()),
    "compact.py:phase5": (compact.get_config("phase5"), ()),
}
_LAYOUTS = ((8, 1), (4, 2), (2, 4), (1, 8), (4, 1), (2, 2), (1, 4), (2, 1), (1, 2))


def launch(
    workdir: Path,
    flags: Iterable[str],
    devices: int,
    processes: int = 1,
    bits: int = 32,
    run: Iterable[str] = RUN,
) -> list[subprocess.Popen]:
    """Starts the training `run` in `processes` processes with `devices` devices each."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(bits == 64)),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    if processes == 1:
        return [start(workdir, *flags, run=run, **environment)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}"]
    shared += [f"--num_processes={processes}", *flags]
    return [
        start(workdir, *shared, f"--process_id={i}", run=run, **environment)
        for i in range(processes)
    ]


def _all_end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        succeed(process)


def layouts(folder: Path) -> list[Row]:
    """How far metrics and weights differ from those of one device, in float64."""
    table = []
    _all_end(launch(folder / "one", _RUN, 1, bits=64))
    for members, data in _LAYOUTS:
        for processes in (1, 2) if members * data == 4 else (1,):
            workdir = folder / f"{processes}-{members}-{data}"
            flags = (*_RUN, f"--config.mesh.data={data}")
            _all_end(launch(workdir, flags, members * data // processes, processes, 64))
            metrics, weights = _apart(folder / "one", workdir)
            table.append(
                {
                    "processes": processes,
                    "devices": members * data,
                    "members x batch": f"{members} x {data}",
                    "metrics": f"{metrics:.1e}",
                    "weights": f"{weights:.1e}",
                }
            )
    return table


def epochs(folder: Path) -> list[Row]:
    """How far the metrics of an epoch on MNIST differ from those of one device, in float32.

    For comparison: one device with the next larger float32 as its learning rate, a difference that
    float32 arithmetic cannot be expected to be insensitive to.
    """
    table = []
    for name, (config, more) in _EPOCHS.items():
        file, _, variant = name.partition(",")[0].partition(":")
        rate = float(np.nextafter(np.float32(config.optimizer.learning_rate), np.float32(1)))
        run: tuple[str, ...] = (f"--config=configs/{file}" + (f":{variant}" if variant else ""),)
        run += ("--config.epochs=1", "--config.population.size=2", "--config.report_test=False")
        others = {
            "one device, the rate one rounding higher": (1, 1, 1, rate),
            "2 devices, 2 x 1": (2, 1, 1, None),
            "2 devices, 1 x 2": (2, 1, 2, None),
            "4 devices of 2 processes, 2 x 2": (2, 2, 2, None),
            "8 devices, 2 x 4": (8, 1, 4, None),
        }
        one = folder / name
        _all_end(launch(one, more, 1, run=run))
        for layout, (devices, processes, data, other_rate) in others.items():
            workdir, flags = folder / f"{name}-{layout}", (*more, f"--config.mesh.data={data}")
            if other_rate:
                flags += (f"--config.optimizer.learning_rate={other_rate!r}",)
            _all_end(launch(workdir, flags, devices, processes, run=run))
            rows = list(zip(result(one)[0], result(workdir)[0], strict=True))

            def apart(*fields: str, rows: list[tuple[Row, Row]] = rows) -> str:
                return f"{max(abs(a[k] - b[k]) for a, b in rows for k in fields):.0e}"

            table.append(
                {
                    "run": name,
                    "members x batch": layout,
                    "loss": apart("loss"),
                    "accuracy": apart("accuracy"),
                    "loss after it": apart("train_loss", "validation_loss"),
                    "accuracy after it": apart("train_accuracy", "validation_accuracy"),
                }
            )
    return table


def _apart(one: Path, other: Path) -> tuple[float, float]:
    """The largest difference of two runs' metrics, and of their weights."""
    (rows, weights), (others, other_weights) = result(one), result(other)
    metrics = [abs(a[k] - b[k]) for a, b in zip(rows, others, strict=True) for k in a]
    return max(metrics), max(
        np.abs(weights[name] - other_weights[name]).max()
        for name in weights
        if name.startswith("weights/")
    )


def lost(folder: Path) -> list[Row]:
    """One of two processes killed in the second epoch: how the other one ends, and the restart."""
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
        code, text = finish(processes[1 - victim])
        took = time.perf_counter() - begun
        if "Traceback" in text or not code or took > 60:
            raise RuntimeError(text)
        _all_end(launch(workdir, flags, 2, 2))
        (rows, weights), (others, other_weights) = result(folder / "whole"), result(workdir)
        table.append(
            {
                "killed": f"process {victim}",
                "the other ends after, s": round(took, 1),
                "with code": code,
                "and the message": text.strip().partition(" (what")[0],
                "restarted as undisturbed": rows == others
                and all(np.array_equal(weights[name], other_weights[name]) for name in weights),
            }
        )
    return table
