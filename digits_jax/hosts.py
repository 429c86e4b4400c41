"""Several processes, on one host or on many, as one run: JAX's own distributed runtime.

All do the same in the same order, each with its own devices' share of the members or of every
batch. All write checkpoints, which is why the workdir is one that they share; the first one alone
reports. https://docs.jax.dev/en/latest/multi_process.html
"""

import hashlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import absl.logging
import jax
import numpy as np
from jax.experimental import multihost_utils

from digits_jax.console import console
from digits_jax.errors import Stopped, UserError
from digits_jax.types import Array

_HEARTBEAT = 20  # s without one, and a process counts as gone
_LOG = "runtime-{host}-{number}.log"
_WITNESS = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"


@contextmanager
def joined(
    workdir: Path,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Iterator[None]:
    """This process as one of `processes`, until all are through or one ends early.

    coordinator: HOST:PORT of process 0, where it listens. What is None is taken from the cluster's
    environment (Slurm, Open MPI, Kubernetes, Cloud TPU). Raises UserError where that does not say,
    or where the others are lost and JAX notices in time. Else its runtime aborts the process, and
    `_witnessed` has the last word.
    """
    log = workdir / _LOG.format(host=socket.gethostname(), number=os.getpid())
    gone = (
        "error: this process was killed, or another one of its run has gone; start all of them "
        f"again, they go on from the last epoch (what the runtime said: {log})"
    )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with log.open("ab"):
            pass
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from None
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)
    with _witnessed(gone), _apart(log):
        local = (coordinator or "").startswith(("127.0.0.1:", "localhost:"))
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                heartbeat_timeout_seconds=_HEARTBEAT,
                # JAX's own choice is to listen to every network.
                coordinator_bind_address=coordinator if local else None,
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(f"the processes did not find each other: {_line(error)}") from None
        console.quiet = not leads()
        try:
            yield
        except Stopped:  # all of them, at the same step
            jax.distributed.shutdown()
            _forget(workdir)
            raise
        except jax.errors.JaxRuntimeError as error:
            raise UserError(
                f"{_line(error)}; if another process has gone: start all of them again, they go on "
                "from the last epoch"
            ) from None
        jax.distributed.shutdown()
        _forget(workdir)


def several() -> bool:
    """Is this process one of several?"""
    return jax.distributed.is_initialized()


def leads() -> bool:
    """Is this the process that reports?"""
    return not several() or jax.process_index() == 0


def agree(what: str, *parts: Array | bytes) -> None:
    """Waits for all processes; UserError where they differ in `parts`."""
    if not several():
        return
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part))
    digests = multihost_utils.process_allgather(np.frombuffer(digest.digest(), np.uint8))
    if (digests != digests[:1]).any():
        raise UserError(f"the processes of this run differ in {what}")


@contextmanager
def reports(workdir: Path) -> Iterator[Path]:
    """Where this process reports to: `workdir`, or, but for the first, a copy that is thrown away.

    So all do the same, and one leaves a trace.
    """
    if leads():
        yield workdir
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config.json", "metrics.jsonl"):
            if (workdir / name).exists():
                shutil.copy(workdir / name, folder)
        yield Path(folder)


class Interrupts:
    """`signals.Interrupts` for several processes: all hear of a signal to one at the same step.

    It is JAX's preemption service that listens to SIGTERM and makes them agree.
    """

    at_risk = False  # the others are at work, so nobody leaves before the next step

    def __init__(self) -> None:
        self._steps = 0

    def __enter__(self) -> "Interrupts":
        self._before: Any = signal.signal(
            signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        )
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def asked(self) -> bool:
        """Is it time to stop? Every process has to ask equally often."""
        self._steps += 1
        return multihost_utils.reached_preemption_sync_point(self._steps)


@contextmanager
def _apart(log: Path) -> Iterator[None]:
    """What JAX's runtime writes to file descriptors goes to `log`; what Python prints stays."""
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.flush()
    copies = [os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2)]
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = copies
    handler = absl.logging.get_absl_handler().python_handler
    handler.stream, stream = sys.stderr, handler.stream
    try:
        yield
    finally:
        for number, copy in zip((1, 2), copies, strict=True):
            copy.flush()
            os.dup2(copy.fileno(), number)
        (sys.stdout, sys.stderr), handler.stream = before, stream


@contextmanager
def _witnessed(text: str) -> Iterator[None]:
    """A process of its own says `text` should this one end without getting here again."""
    command = [sys.executable, "-I", "-c", _WITNESS, text]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as witness:
        try:
            yield
        finally:
            witness.communicate(b"heard")


def _forget(workdir: Path) -> None:
    """Deletes the logs, also those of ends that are overcome."""
    for log in workdir.glob(_LOG.format(host="*", number="*")):
        log.unlink(missing_ok=True)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
