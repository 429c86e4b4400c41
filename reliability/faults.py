"""One training, killed, stopped or on a full disk, compared with the same one undisturbed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
# BatchNorm, dropout, averaged weights, augmentation and two members: everything a state can hold.
RUN = (
    "--config=configs/compact.py:phase5",
    "--config.population.size=2",
    "--config.data.source=drawn",
    "--config.data.drawn_train=600",
    "--config.data.drawn_test=100",
    "--config.data.train=256",
    "--config.optimizer.ema=0.9",
    "--config.batch_size=16",
)
Row = dict[str, Any]
_PAGE = 4096


def start(
    workdir: Path, *flags: str, run: Iterable[str] = RUN, **environment: str
) -> subprocess.Popen:
    """Starts the training `run` in a new process, its stderr in a pipe."""
    return subprocess.Popen(
        [sys.executable, "launch.py", *run, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Waits for the end; returns (exit code, stderr)."""
    _, text = process.communicate()
    return process.returncode, text


def succeed(process: subprocess.Popen) -> None:
    """Waits for the end; raises RuntimeError unless the exit code is 0."""
    code, text = finish(process)
    if code:
        raise RuntimeError(text)


def result(workdir: Path) -> tuple[list[Row], dict[str, np.ndarray]]:
    """What must be equal in equal runs: metrics.jsonl without seconds, and model.npz."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    with np.load(workdir / "model.npz", allow_pickle=False) as archive:
        return rows, {name: archive[name] for name in archive if name != "config"}


def identical(one: Path, other: Path) -> bool:
    """Bit for bit."""
    (rows, weights), (others, other_weights) = result(one), result(other)
    return (
        rows == others
        and weights.keys() == other_weights.keys()
        and all(np.array_equal(weights[name], other_weights[name]) for name in weights)
    )


def signals(folder: Path, kind: signal.Signals, count: int, epochs: int, seed: int = 0) -> Row:
    """`count` signals at random moments of one training, which is started again each time.

    A third of the processes get theirs before the first epoch ends, the others within or after one
    to three further epochs.
    """
    rng, flags = random.Random(seed), (f"--config.epochs={epochs}",)
    startup, training = _undisturbed(folder / "whole", flags)
    disturbed = folder / kind.name
    sent, waits, codes = 0, [], set()
    while True:
        process = start(disturbed, *flags)
        early = rng.random() < 1 / 3
        goal = _saved(disturbed) + rng.randint(1, 3)
        life = rng.uniform(0, startup if early else training / epochs)
        while sent < count and not early and process.poll() is None and _saved(disturbed) < goal:
            time.sleep(0.01)
        try:
            process.wait(timeout=life if sent < count else None)
        except subprocess.TimeoutExpired:
            process.send_signal(kind)
            sent, at = sent + 1, time.perf_counter()
            code, text = finish(process)
            waits.append(time.perf_counter() - at)
            codes.add(code)
            if "Traceback" in text:
                raise RuntimeError(text) from None
            continue
        succeed(process)
        break
    if sent < count:
        raise RuntimeError(f"the training was over after {sent} of {count} signals")
    return {
        "signal": kind.name,
        "sent": sent,
        "epochs": epochs,
        "exit codes": sorted(codes),
        "slowest exit, s": round(max(waits), 1),
        "as undisturbed": identical(folder / "whole", disturbed),
    }


def _saved(workdir: Path) -> int:
    """The latest epoch that has a checkpoint, 0 without one."""
    found = (workdir / "checkpoints").glob("*")
    return max((int(p.name) for p in found if p.name.isdecimal()), default=0)


def _undisturbed(workdir: Path, flags: Iterable[str]) -> tuple[float, float]:
    """Runs the training; returns (seconds to the first checkpoint, seconds from there)."""
    begun, first = time.perf_counter(), 0.0
    process = start(workdir, *flags)
    while process.poll() is None:
        if not first and (workdir / "checkpoints" / "1").exists():
            first = time.perf_counter()
        time.sleep(0.02)
    succeed(process)
    return first - begun, time.perf_counter() - first


@contextmanager
def small_disk(folder: Path) -> Iterator[Any]:
    """Mounts a file system in memory; yields a function that sets its size in bytes. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(folder)], check=True)

    def resize(size: int) -> None:
        command = ["mount", "-o", f"remount,size={size}", str(folder)]
        subprocess.run(command, check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(folder: Path, most: int) -> Row:
    """The training on disks of different sizes, each a page too small for one of its writes.

    Each time it must end with one line, and resume once there is room, with the result of the
    undisturbed run. At most `most` disks, evenly spaced among all writes that need more room than
    any earlier one.
    """
    flags = ("--config.epochs=3", "--config.keep_epochs=True")
    succeed(start(folder / "whole", *flags))
    disk = folder / "disk"
    with small_disk(disk) as resize:
        resize(2**30)
        levels = _levels(disk, start(disk / "run", *flags))
        chosen = np.unique(np.linspace(0, len(levels) - 1, most).round().astype(int))
        failed, same, epochs, where = 0, 0, set(), set()
        for i in chosen:
            subprocess.run(["rm", "-rf", str(disk / "run")], check=True)
            resize(max(levels[i] - _PAGE, _PAGE))
            code, text = finish(start(disk / "run", *flags))
            failed += code != 0
            if code not in (0, 1) or "Traceback" in text or (code and "error: " not in text):
                raise RuntimeError(f"{levels[i]}: {code} {text}")
            if code:
                where.add(re.findall(r"run/?([\w.-]*)", text)[0] or "the folder itself")
            resize(2**30)
            epochs.add(_saved(disk / "run"))
            succeed(start(disk / "run", *flags))
            same += identical(folder / "whole", disk / "run")
    return {
        "writes that need more room": len(levels),
        "disks": len(chosen),
        "too small": failed,
        "the write that failed": ", ".join(sorted(where)),
        "resumed from epochs": sorted(epochs),
        "as undisturbed": same == len(chosen),
    }


def _levels(disk: Path, process: subprocess.Popen) -> list[int]:
    """The bytes in use after each write that set a new maximum, until the process ends."""
    levels = [0]
    while process.poll() is None:
        room = os.statvfs(disk)
        used = (room.f_blocks - room.f_bfree) * room.f_frsize
        if used > levels[-1]:
            levels.append(used)
        time.sleep(0.0005)
    succeed(process)
    return levels[1:]
